//! What deriving a key may cost, and what a new key slot shall cost.

use std::time::Duration;

use crate::crypto::{Argon2Cost, Argon2Limit, Argon2Variant, HashAlgorithm, measure_pbkdf2, time_of_a_pass};
use crate::{Error, Limits, Result};

/// Surroundings of key derivations.
#[derive(Clone, Copy)]
pub struct KeyWork<'a> {
    /// Bounds on iterations and memory.
    pub limits: &'a Limits,
    /// Asked every few milliseconds whether to stop.
    pub cancelled: &'a (dyn Fn() -> bool + Sync),
    /// Time since some fixed moment, or of the processor for this thread, to measure by; `None` when there is no clock.
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

    /// What may be spent on one passphrase.
    pub(crate) fn effort(&self) -> Effort<'_> {
        Effort {
            work: self,
            left: u64::from(self.limits.kdf_derivations) * WHOLE,
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

/// What trying one passphrase on slot after slot may still cost: many slots, each within its limits, take hours together.
pub(crate) struct Effort<'a> {
    work: &'a KeyWork<'a>,
    /// In parts of the dearest derivation, of which it has [`WHOLE`].
    left: u64,
}

const WHOLE: u64 = 1_000_000;

impl Effort<'_> {
    /// Takes the cost of PBKDF2 off what is left.
    pub(crate) fn spend_iterations(&mut self, count: u32) -> Result<()> {
        self.spend(u64::from(count), self.work.limits.kdf_iterations)
    }

    /// Takes the cost of Argon2 off what is left.
    pub(crate) fn spend_argon2(&mut self, cost: Argon2Cost) -> Result<()> {
        let work = u64::from(cost.memory_kib) * u64::from(cost.time);
        self.spend(work, self.work.argon2_limit().work_kib)
    }

    fn spend(&mut self, cost: u64, dearest: u64) -> Result<()> {
        let share = u128::from(cost) * u128::from(WHOLE) / u128::from(dearest.max(1));
        let left = u64::try_from(share).ok().and_then(|share| self.left.checked_sub(share));
        self.left = left.ok_or_else(|| {
            Error::limit(format!(
                "trying the passphrase on all key slots costs more than {} derivations of the greatest cost: name the slot",
                self.work.limits.kdf_derivations
            ))
        })?;
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
    /// This many PBKDF2 iterations; passes, for a new key of a volume that Argon2 opened.
    Iterations(u32),
    /// As many as this machine does in this time (`iter-time`).
    Time(Duration),
    /// Argon2, which LUKS2 alone has.
    Argon2(Argon2Variant, Argon2Cost),
}

impl Default for KdfCost {
    /// Two seconds, as QEMU and cryptsetup have it.
    fn default() -> Self {
        Self::Time(Duration::from_secs(2))
    }
}

impl KdfCost {
    /// PBKDF2 iterations of a volume key's digest: an eighth of the cost, since a volume key cannot be guessed.
    pub(crate) fn digest_iterations(self, hash: HashAlgorithm, least: u32, work: &KeyWork<'_>) -> Result<u32> {
        match self {
            Self::Argon2(..) => Ok(least.max(1 << 16)),
            other => other.iterations(hash, 20, 8, least, work),
        }
    }

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
            Self::Argon2(..) => return Err(Error::invalid("LUKS1 knows PBKDF2 alone, not Argon2")),
        };
        let most = u32::try_from(work.limits.kdf_iterations).unwrap_or(u32::MAX);
        Ok(wanted.max(least).min(most))
    }
}

/// Fewest passes of Argon2, as cryptsetup has it.
const MIN_PASSES: u32 = 4;

/// Argon2 with as many passes as this machine does in `time`, four without a clock.
///
/// # Errors
/// `LimitExceeded` for more memory than the limits allow, `InvalidArgument` for costs that Argon2 excludes.
pub fn measure_argon2(
    variant: Argon2Variant,
    memory_kib: u32,
    lanes: u32,
    time: Duration,
    work: &KeyWork<'_>,
) -> Result<KdfCost> {
    let limit = work.argon2_limit();
    let cost = |time| Argon2Cost {
        time,
        memory_kib,
        lanes,
    };
    if (work.elapsed)().is_none() {
        return Ok(KdfCost::Argon2(variant, cost(MIN_PASSES)));
    }
    let now = || (work.elapsed)().unwrap_or_default();
    let took = time_of_a_pass(variant, cost(1), &limit, &now, work.cancelled)?;
    let passes = u32::try_from(time.as_nanos() / took.as_nanos().max(1)).unwrap_or(u32::MAX);
    let most = u32::try_from(limit.work_kib / u64::from(memory_kib.max(1))).unwrap_or(u32::MAX);
    Ok(KdfCost::Argon2(variant, cost(passes.min(most).max(MIN_PASSES))))
}
