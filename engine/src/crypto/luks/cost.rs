//! What deriving a key may cost, and what a new key slot shall cost.

use std::time::Duration;

use crate::crypto::{Argon2Limit, HashAlgorithm, measure_pbkdf2};
use crate::{Error, Limits, Result};

/// Surroundings of key derivations.
#[derive(Clone, Copy)]
pub struct KeyWork<'a> {
    /// Bounds on iterations and memory.
    pub limits: &'a Limits,
    /// Asked every few milliseconds whether to stop.
    pub cancelled: &'a dyn Fn() -> bool,
    /// Time since some fixed moment, to measure by; `None` when there is no clock.
    pub elapsed: &'a dyn Fn() -> Option<Duration>,
}

impl<'a> KeyWork<'a> {
    /// Within `limits`, without a clock and without an end.
    #[must_use]
    pub fn within(limits: &'a Limits) -> Self {
        Self {
            limits,
            cancelled: &|| false,
            elapsed: &|| None,
        }
    }

    /// What Argon2 may cost: the memory of the limits, and passes that take about half a minute at that.
    pub(crate) fn argon2_limit(&self) -> Argon2Limit {
        let memory = self.limits.kdf_memory / 1024;
        let memory_kib = u32::try_from(memory).unwrap_or(u32::MAX);
        Argon2Limit {
            memory_kib,
            work_kib: u64::from(memory_kib).saturating_mul(32),
        }
    }

    /// Refuses iteration counts beyond the limits.
    pub(crate) fn check_iterations(&self, count: u32) -> Result<()> {
        let limit = self.limits.kdf_iterations;
        if u64::from(count) > limit {
            return Err(Error::limit(format!(
                "{count} PBKDF2 iterations are more than the limit of {limit}"
            )));
        }
        Ok(())
    }
}

/// What changing key slots needs.
#[derive(Clone, Copy)]
pub struct KeyEnv<'a> {
    /// Bounds, cancelling and the clock.
    pub work: KeyWork<'a>,
    /// Fills a buffer with random bytes (keys, salts, stripes).
    pub random: &'a dyn Fn(&mut [u8]),
}

/// How long guessing a passphrase shall take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KdfCost {
    /// This many PBKDF2 iterations.
    Iterations(u32),
    /// As many as this machine does in this time (`iter-time`).
    Time(Duration),
}

impl Default for KdfCost {
    /// Two seconds, as QEMU and cryptsetup have it.
    fn default() -> Self {
        Self::Time(Duration::from_secs(2))
    }
}

impl KdfCost {
    /// PBKDF2 iterations for `len` bytes of key in a `share`-th of the cost; at least `least`, at most what the limits let open again.
    pub(crate) fn iterations(
        self,
        hash: HashAlgorithm,
        len: usize,
        share: u32,
        least: u32,
        work: &KeyWork<'_>,
    ) -> Result<u32> {
        let wanted = match self {
            Self::Iterations(count) => {
                work.check_iterations(count)?;
                count / share
            }
            Self::Time(time) => {
                let now = || (work.elapsed)().unwrap_or_default();
                if (work.elapsed)().is_none() {
                    return Err(Error::invalid(
                        "no clock to measure key derivation by: give an iteration count",
                    ));
                }
                measure_pbkdf2(hash, len, time / share, &now, work.cancelled)?
            }
        };
        let most = u32::try_from(work.limits.kdf_iterations).unwrap_or(u32::MAX);
        Ok(wanted.max(least).min(most))
    }
}
