//! What comes in from outside when an image is opened or created.

use std::time::Duration;

use crate::gate::{DenyAll, Gate};
use crate::options::Options;
use crate::{Error, Limits, Result};

/// Gives the values of secrets by their id, and watches over the work that deriving keys from them is.
pub trait Secrets: Send + Sync {
    /// The bytes of a secret (a passphrase or a key).
    ///
    /// # Errors
    /// `WrongKey` when there is none of this id.
    fn get(&self, id: &str) -> Result<zeroize::Zeroizing<Vec<u8>>>;

    /// Time since some fixed moment, or of the processor for this thread, to measure key derivations by (`iter-time`); `None` where there is no clock: costs are then given as counts.
    fn elapsed(&self) -> Option<Duration> {
        None
    }
    /// Asked every few milliseconds of a key derivation whether to stop.
    fn cancelled(&self) -> bool {
        false
    }
}

/// Knows no secret.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoSecrets;

impl Secrets for NoSecrets {
    fn get(&self, id: &str) -> Result<zeroize::Zeroizing<Vec<u8>>> {
        Err(Error::new(
            crate::ErrorKind::WrongKey,
            format!("no secret with id '{id}'"),
        ))
    }
}

/// Everything a driver may use while it opens an image, and what the image will be used for.
#[derive(Clone, Copy)]
pub struct OpenEnv<'a> {
    /// Whether the image will be changed.
    pub writable: bool,
    /// Whether the image is opened only to be checked or repaired: damage that `check` reports is no reason to refuse then.
    pub for_check: bool,
    /// Whether metadata alone is wanted: a missing key or a dirty log is then no reason to refuse.
    pub metadata_only: bool,
    /// Whether the caller puts the image over a layer that its header need not name.
    pub over_base: bool,
    /// Opens the names inside images.
    pub gate: &'a dyn Gate,
    /// Bounds.
    pub limits: &'a Limits,
    /// Keys and passphrases.
    pub secrets: &'a dyn Secrets,
}

impl<'a> OpenEnv<'a> {
    /// For reading, opening nothing else, with no secrets.
    pub fn closed(limits: &'a Limits) -> Self {
        Self {
            writable: false,
            for_check: false,
            metadata_only: false,
            over_base: false,
            gate: &DenyAll,
            limits,
            secrets: &NoSecrets,
        }
    }
    /// The same for writing.
    #[must_use]
    pub fn writable(mut self) -> Self {
        self.writable = true;
        self
    }
    /// The same for reading.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.writable = false;
        self
    }
    /// The same with another gate.
    #[must_use]
    pub fn with_gate(mut self, gate: &'a dyn Gate) -> Self {
        self.gate = gate;
        self
    }
    /// The same with secrets.
    #[must_use]
    pub fn with_secrets(mut self, secrets: &'a dyn Secrets) -> Self {
        self.secrets = secrets;
        self
    }
    /// The same for a check.
    #[must_use]
    pub fn for_check(mut self) -> Self {
        self.for_check = true;
        self
    }
    /// The same for metadata alone.
    #[must_use]
    pub fn metadata_only(mut self) -> Self {
        self.metadata_only = true;
        self
    }
}

/// Everything a driver may use while it creates an image.
#[derive(Clone, Copy)]
pub struct CreateEnv<'a> {
    /// Creates the files that belong to the image.
    pub gate: &'a dyn Gate,
    /// Bounds.
    pub limits: &'a Limits,
    /// Keys and passphrases.
    pub secrets: &'a dyn Secrets,
    /// Fills a buffer with random bytes (identifiers, keys, salts).
    pub random: &'a dyn Fn(&mut [u8]),
    /// Seconds since 1970-01-01 UTC, for formats that store a creation time.
    pub now: u64,
}

/// What image to create.
#[derive(Debug, Clone, Default)]
pub struct CreateSpec {
    /// Bytes that the guest sees.
    pub virtual_size: u64,
    /// Create options, checked against the driver's table.
    pub options: Options,
    /// The layer below, as it is to stand in the header.
    pub backing: Option<BackingReference>,
}

/// A backing file as a header names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackingReference {
    /// The name, not interpreted.
    pub name: String,
    /// The format, where the header says it.
    pub format: Option<String>,
}
