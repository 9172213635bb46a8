//! The open gate: the one place where a name found inside an image becomes an open file.
//!
//! Deny is the default. A program brings its own [`Gate`]: the command line resolves names as QEMU does, the service resolves them
//! through its inventory.

use crate::options::Options;
use crate::{Error, Result, StorageRef};

/// What an image wants the named file for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The layer below.
    Backing,
    /// The guest data of this image (qcow2 external data file).
    DataFile,
    /// A part of this image (VMDK extent, bundle part).
    Extent,
}

/// A name as it stands inside an image.
#[derive(Debug, Clone, Copy)]
pub struct Reference<'a> {
    /// The name, not interpreted.
    pub name: &'a str,
    /// The format the image claims for it, if it does.
    pub format: Option<&'a str>,
    /// What for.
    pub role: Role,
    /// The storage that holds the name: relative names start from its folder.
    pub from: &'a StorageRef,
    /// Whether it is to be written.
    pub writable: bool,
}

/// A storage with what was said about how to open an image on it.
#[derive(Debug, Clone)]
pub struct Node {
    /// The bytes.
    pub storage: StorageRef,
    /// The format; `None` only where nobody said: opening then fails unless the caller detects it first.
    pub format: Option<String>,
    /// Open options for the driver (`key-secret`, `offset`, ...).
    pub options: Options,
    /// Where the layer below comes from.
    pub backing: BackingChoice,
}

/// Where the layer below an image comes from.
#[derive(Debug, Clone, Default)]
pub enum BackingChoice {
    /// From the image itself, through the gate.
    #[default]
    FromImage,
    /// There is none, whatever the image says: unallocated ranges read as zeroes.
    None,
    /// This one.
    Explicit(Box<Node>),
}

impl Node {
    /// A storage with its format and nothing else said.
    pub fn new(storage: StorageRef, format: impl Into<String>) -> Self {
        Self {
            storage,
            format: Some(format.into()),
            options: Options::new(),
            backing: BackingChoice::FromImage,
        }
    }
    /// The same without anything below it.
    #[must_use]
    pub fn without_backing(mut self) -> Self {
        self.backing = BackingChoice::None;
        self
    }
    /// The same with open options.
    #[must_use]
    pub fn with_options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }
}

/// Decides which names inside images may be opened or created, and opens them.
pub trait Gate: Send + Sync {
    /// Opens an existing file that an image refers to.
    ///
    /// # Errors
    /// `Denied` when the name may not be opened; what opening gives otherwise.
    fn open(&self, reference: &Reference<'_>) -> Result<Node>;

    /// Creates a new, empty file that belongs to an image being created (an extent, a data file).
    ///
    /// # Errors
    /// `Denied` when it may not; what creating gives otherwise.
    fn create(&self, reference: &Reference<'_>) -> Result<StorageRef>;
}

/// Opens nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct DenyAll;

impl Gate for DenyAll {
    fn open(&self, reference: &Reference<'_>) -> Result<Node> {
        Err(refusal(reference))
    }
    fn create(&self, reference: &Reference<'_>) -> Result<StorageRef> {
        Err(refusal(reference))
    }
}

fn refusal(reference: &Reference<'_>) -> Error {
    let what = match reference.role {
        Role::Backing => "backing file",
        Role::DataFile => "data file",
        Role::Extent => "extent",
    };
    let name = reference.name.escape_debug();
    Error::denied(format!(
        "the image names {what} \"{name}\", which may not be opened here"
    ))
    .at(reference.from.name())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::storage::MemoryStorage;

    #[test]
    fn the_default_gate_refuses_and_escapes_the_name() {
        let from: StorageRef = Arc::new(MemoryStorage::empty());
        let reference = Reference {
            name: "a\n\u{202e}",
            format: None,
            role: Role::Backing,
            from: &from,
            writable: false,
        };
        let error = DenyAll.open(&reference).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Denied);
        assert!(error.to_string().contains("a\\n\\u{202e}"), "{error}");
    }
}
