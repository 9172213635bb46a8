//! Argon2 (RFC 9106) with its costs bounded before anything is allocated.

use argon2::{Algorithm, Argon2, Block, Params, Version};

use crate::{Error, Result};

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

/// Derives `out.len()` bytes from a passphrase. A single pass cannot be interrupted: the limit is what bounds the time.
///
/// # Errors
/// `LimitExceeded` for costs beyond `limit` and for memory that the system does not give; `InvalidArgument` for costs, a
/// salt or an output that RFC 9106 excludes.
pub fn argon2(
    variant: Argon2Variant,
    passphrase: &[u8],
    salt: &[u8],
    cost: Argon2Cost,
    limit: &Argon2Limit,
    out: &mut [u8],
) -> Result<()> {
    cost.check(limit)?;
    let bad = |error: argon2::Error| Error::invalid(format!("Argon2 parameters are not valid: {error}"));
    let params = Params::new(cost.memory_kib, cost.time, cost.lanes, Some(out.len())).map_err(bad)?;
    let algorithm = match variant {
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
        .hash_password_into_with_memory(passphrase, salt, out, &mut memory)
        .map_err(bad);
    // The memory is a function of the passphrase.
    memory
        .iter_mut()
        .for_each(|block| zeroize::Zeroize::zeroize(block.as_mut()));
    done
}
