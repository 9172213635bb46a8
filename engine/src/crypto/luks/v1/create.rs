//! A new LUKS1 header.

use zeroize::Zeroizing;

use super::header::{Header, fresh};
use crate::Result;
use crate::crypto::luks::{KeyEnv, NewLuks};
use crate::storage::Storage;

/// Least iterations of the volume key's digest (the specification's recommendation).
const MIN_DIGEST_ITERATIONS: u32 = 1000;

/// The header that `new` asks for, without anything written: to know its size.
pub(crate) fn plan(new: &NewLuks) -> Result<Header> {
    fresh(new)
}

/// Writes a header with one key slot. Gives the header and the volume key.
///
/// Key material comes before the header, so that a crash leaves no header that cannot be opened.
pub(crate) fn create(
    storage: &dyn Storage,
    new: &NewLuks,
    passphrase: &[u8],
    env: &KeyEnv<'_>,
) -> Result<(Header, Zeroizing<Vec<u8>>)> {
    let mut header = plan(new)?;
    let mut key = Zeroizing::new(vec![0; new.spec.key_len()]);
    (env.random)(&mut key);
    let digest = new.cost.digest_iterations(new.hash, MIN_DIGEST_ITERATIONS, &env.work)?;
    header.set_volume_key(&key, digest, env)?;
    let slot = new
        .cost
        .iterations(new.hash, key.len(), 1, super::MIN_SLOT_ITERATIONS, &env.work)?;
    let sealed = header.seal(&key, passphrase, slot, env)?;
    header.store_key(storage, 0, &sealed)?;
    Ok((header, key))
}
