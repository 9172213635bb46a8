//! PBKDF2 (RFC 8018, section 5.2) that can be stopped.
//!
//! The iteration count stands in a file that anybody may have written, so the loop asks now and then whether to go on;
//! the `pbkdf2` crate cannot, and is what the tests compare with.

use std::time::Duration;

use hmac::{EagerHash, Hmac, KeyInit, Mac};
use zeroize::Zeroizing;

use super::{
    chain::{Chain, Sha256Chain},
    hash::{HashAlgorithm, with_hash},
};
use crate::{Error, Result};

/// Iterations between two looks at the cancel check: a few milliseconds.
const STRIDE: u32 = 16 * 1024;

/// Iterations from which on a thread for each block of the key is worth its start.
const PARALLEL: u32 = 20_000;

/// Derives `out.len()` bytes from a passphrase. `cancelled` is asked every few milliseconds.
///
/// # Errors
/// `InvalidArgument` for no iterations at all, `Unsupported` for a truncated hash, `Cancelled`.
pub fn pbkdf2(
    hash: HashAlgorithm,
    passphrase: &[u8],
    salt: &[u8],
    iterations: u32,
    cancelled: &(dyn Fn() -> bool + Sync),
    out: &mut [u8],
) -> Result<()> {
    if iterations == 0 {
        return Err(Error::invalid("PBKDF2 with 0 iterations"));
    }
    if hash.is_truncated() {
        return Err(Error::unsupported(format!(
            "PBKDF2 over '{}' is not supported",
            hash.name()
        )));
    }
    with_hash!(hash, D => {
        let keyed = keyed::<D>(passphrase)?;
        match hash {
            HashAlgorithm::Sha256 => {
                derive(&keyed, &Sha256Chain::new(passphrase), salt, iterations, cancelled, out)
            }
            _ => derive(&keyed, &keyed, salt, iterations, cancelled, out),
        }
    })
}

fn keyed<D: EagerHash>(passphrase: &[u8]) -> Result<Hmac<D>> {
    KeyInit::new_from_slice(passphrase).map_err(|_| Error::invalid("HMAC does not take this passphrase"))
}

/// `chain` is `keyed`, or the same HMAC by a shorter way.
fn derive<D: EagerHash>(
    keyed: &Hmac<D>,
    chain: &dyn Chain,
    salt: &[u8],
    iterations: u32,
    cancelled: &(dyn Fn() -> bool + Sync),
    out: &mut [u8],
) -> Result<()>
where
    Hmac<D>: Sync,
{
    let block_len = keyed.clone().finalize().into_bytes().len();
    let out_len = out.len();
    let mut blocks = out.chunks_mut(block_len).zip(1_u32..);
    if iterations < PARALLEL || out_len <= block_len {
        return blocks.try_for_each(|(block, index)| fill(keyed, chain, salt, iterations, cancelled, index, block));
    }
    // The blocks do not depend on each other.
    std::thread::scope(|scope| {
        let work = |(block, index)| scope.spawn(move || fill(keyed, chain, salt, iterations, cancelled, index, block));
        let threads: Vec<_> = blocks.map(work).collect();
        let ended = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(Error::cancelled())));
        ended.collect()
    })
}

/// Computes block number `index` of the derived key, or its beginning.
fn fill<D: EagerHash>(
    keyed: &Hmac<D>,
    chain: &dyn Chain,
    salt: &[u8],
    iterations: u32,
    cancelled: &(dyn Fn() -> bool + Sync),
    index: u32,
    block: &mut [u8],
) -> Result<()> {
    let mut first = keyed.clone();
    first.update(salt);
    first.update(&index.to_be_bytes());
    let mut link = Zeroizing::new(first.finalize().into_bytes().to_vec());
    block.copy_from_slice(link.get(..block.len()).unwrap_or_default());
    let mut left = iterations - 1;
    while left > 0 {
        if cancelled() {
            return Err(Error::cancelled());
        }
        let now = left.min(STRIDE);
        chain.go_on(&mut link, now, block);
        left -= now;
    }
    Ok(())
}

/// Finds how many iterations for `len` bytes of key this machine does in `time`, by doing a small part of them.
///
/// Blocks of a key are computed side by side, so that one stands for all. It is computed in the calling thread, whose processor time `now` may
/// tell: a machine that is busy with other work is not taken for a slow one.
///
/// # Errors
/// As [`pbkdf2`].
pub fn measure_pbkdf2(
    hash: HashAlgorithm,
    len: usize,
    time: Duration,
    now: &dyn Fn() -> Duration,
    cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<u32> {
    let mut out = Zeroizing::new(vec![0; len.min(hash.digest_len())]);
    let mut count: u32 = 1 << 12;
    loop {
        let start = now();
        pbkdf2(hash, b"passphrase", &[0x5a; 32], count, cancelled, &mut out)?;
        let took = now().saturating_sub(start);
        if took >= MEASURED || count >= 1 << 28 {
            let scaled = u128::from(count) * time.as_nanos() / took.as_nanos().max(1);
            return Ok(u32::try_from(scaled).unwrap_or(u32::MAX));
        }
        count *= 2;
    }
}

/// Work that is long enough to be measured.
const MEASURED: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn the_measured_work_is_done_by_the_thread_that_measures() {
        let (calls, here) = (Cell::new(0), std::thread::current().id());
        // So long that a key of several blocks is computed by several threads.
        let now = || {
            calls.set(calls.get() + 1);
            Duration::from_millis(if calls.get() < 10 { 0 } else { 100 })
        };
        let elsewhere = AtomicBool::new(false);
        let cancelled = || {
            elsewhere.fetch_or(std::thread::current().id() != here, Ordering::Relaxed);
            false
        };
        let second = Duration::from_secs(1);
        let count = measure_pbkdf2(HashAlgorithm::Sha256, 64, second, &now, &cancelled).unwrap();
        assert_eq!((count, elsewhere.into_inner()), ((1 << 16) * 10, false));
    }
}
