//! Argon2 (RFC 9106) with its costs bounded before anything is allocated.
//!
//! The library derives in one go and cannot be stopped. A thread of its own does that: who waits for it can leave, and it gives its memory
//! back when it is done. Until then the memory counts as in use, so that what was left behind does not pile up.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use zeroize::Zeroizing;

use super::turns::{LOOK, Turn, Turns};
use crate::{Error, Result};

/// Memory of all derivations of the process together. One of the greatest cost has it alone.
static MEMORY: Turns = Turns::new(1 << 30);

/// The two variants that LUKS2 knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Argon2Variant {
    /// Data-independent addressing.
    Argon2i,
    /// Half data-independent, half data-dependent.
    Argon2id,
}

/// Costs of a derivation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argon2Cost {
    /// Passes over the memory.
    pub time: u32,
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Lanes.
    pub lanes: u32,
}

/// What a derivation may cost at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Argon2Limit {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes times memory, in KiB: the work.
    pub work_kib: u64,
}

impl Argon2Cost {
    fn bytes(&self) -> u64 {
        u64::from(self.memory_kib) * 1024
    }

    /// Refuses costs beyond the limit.
    ///
    /// # Errors
    /// `LimitExceeded`.
    pub fn check(&self, limit: &Argon2Limit) -> Result<()> {
        if self.memory_kib > limit.memory_kib {
            let text = format!(
                "Argon2 wants {} KiB of memory, the limit is {}",
                self.memory_kib, limit.memory_kib
            );
            return Err(Error::limit(text));
        }
        if u64::from(self.memory_kib) * u64::from(self.time) > limit.work_kib {
            let text = format!(
                "Argon2 wants {} passes over {} KiB, more than the limit",
                self.time, self.memory_kib
            );
            return Err(Error::limit(text));
        }
        Ok(())
    }
}

/// Derives `out.len()` bytes from a passphrase, once there is memory for it: all derivations of the process share 1 GiB.
/// `cancelled` is asked every few milliseconds.
///
/// # Errors
/// `LimitExceeded` for costs beyond `limit` and for memory that the system does not give; `InvalidArgument` for costs, a
/// salt or an output that RFC 9106 excludes; `Cancelled`.
pub fn argon2(
    variant: Argon2Variant,
    passphrase: &[u8],
    salt: &[u8],
    cost: Argon2Cost,
    limit: &Argon2Limit,
    cancelled: &dyn Fn() -> bool,
    out: &mut [u8],
) -> Result<()> {
    cost.check(limit)?;
    let input = Input {
        variant,
        passphrase: Zeroizing::new(passphrase.to_vec()),
        salt: salt.to_vec(),
        cost,
    };
    let derived = derive_aside(&MEMORY, input, out.len(), cancelled)?;
    out.copy_from_slice(&derived);
    Ok(())
}

/// How long one pass takes by the clock `now`, which may count the time of this thread alone.
///
/// # Errors
/// As [`argon2`].
pub(super) fn time_of_a_pass(
    variant: Argon2Variant,
    cost: Argon2Cost,
    limit: &Argon2Limit,
    now: &dyn Fn() -> Duration,
    cancelled: &dyn Fn() -> bool,
) -> Result<Duration> {
    let cost = Argon2Cost { time: 1, ..cost };
    cost.check(limit)?;
    let input = Input {
        variant,
        passphrase: Zeroizing::new(b"passphrase".to_vec()),
        salt: vec![0x5a; 32],
        cost,
    };
    let turn = MEMORY.take(cost.bytes(), cancelled)?;
    let start = now();
    derive(&turn, &input, &mut [0; 64])?;
    Ok(now().saturating_sub(start))
}

/// What is derived from.
struct Input {
    variant: Argon2Variant,
    passphrase: Zeroizing<Vec<u8>>,
    salt: Vec<u8>,
    cost: Argon2Cost,
}

fn derive_aside(
    memory: &'static Turns,
    input: Input,
    len: usize,
    cancelled: &dyn Fn() -> bool,
) -> Result<Zeroizing<Vec<u8>>> {
    let turn = memory.take(input.cost.bytes(), cancelled)?;
    let (done, result) = mpsc::sync_channel(1);
    let work = move || {
        let mut out = Zeroizing::new(vec![0; len]);
        let derived = derive(&turn, &input, &mut out).map(|()| out);
        drop(turn);
        // Nobody may be there any more.
        let _ = done.send(derived);
    };
    std::thread::Builder::new()
        .name("argon2".to_owned())
        .spawn(work)
        .map_err(|error| Error::io("cannot start a thread for Argon2", error))?;
    loop {
        match result.recv_timeout(LOOK) {
            Ok(derived) => return derived,
            Err(RecvTimeoutError::Timeout) if cancelled() => return Err(Error::cancelled()),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(Error::limit("the thread of Argon2 ended early")),
        }
    }
}

fn derive(_memory: &Turn<'_>, input: &Input, out: &mut [u8]) -> Result<()> {
    let bad = |error: argon2::Error| Error::invalid(format!("Argon2 parameters are not valid: {error}"));
    let cost = input.cost;
    let params = Params::new(cost.memory_kib, cost.time, cost.lanes, Some(out.len())).map_err(bad)?;
    let algorithm = match input.variant {
        Argon2Variant::Argon2i => Algorithm::Argon2i,
        Argon2Variant::Argon2id => Algorithm::Argon2id,
    };
    let count = params.block_count();
    let mut memory = Vec::<Block>::new();
    memory
        .try_reserve_exact(count)
        .map_err(|_| Error::limit(format!("no {} KiB of memory for Argon2", cost.memory_kib)))?;
    memory.resize(count, Block::new());
    let hasher = Argon2::new(algorithm, Version::V0x13, params);
    let done = hasher
        .hash_password_into_with_memory(&input.passphrase, &input.salt, out, &mut memory)
        .map_err(bad);
    // The memory is a function of the passphrase.
    memory
        .iter_mut()
        .for_each(|block| zeroize::Zeroize::zeroize(block.as_mut()));
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn input(time: u32) -> Input {
        Input {
            variant: Argon2Variant::Argon2id,
            passphrase: Zeroizing::new(b"pass".to_vec()),
            salt: b"saltsalt".to_vec(),
            cost: Argon2Cost {
                time,
                memory_kib: 1024,
                lanes: 1,
            },
        }
    }

    #[test]
    fn who_cancels_a_derivation_does_not_wait_for_its_end() {
        static TURNS: Turns = Turns::new(1 << 20);
        // Some seconds of work.
        let left = derive_aside(&TURNS, input(4096), 32, &|| TURNS.used() > 0).unwrap_err();
        assert_eq!((left.kind(), TURNS.used()), (ErrorKind::Cancelled, 1 << 20));
        // What it left behind is in use yet: the next one waits, and can leave as well.
        let waiting = derive_aside(&TURNS, input(1), 32, &|| true).unwrap_err();
        assert_eq!(waiting.kind(), ErrorKind::Cancelled);
        assert!(derive_aside(&TURNS, input(1), 32, &|| false).is_ok());
        assert_eq!(TURNS.used(), 0);
    }
}
