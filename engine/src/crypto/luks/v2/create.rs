//! A new LUKS2 header, laid out as cryptsetup does: two copies of 16 KiB, key material, data at 16 MiB.

use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::header::Header;
use super::layout::{BINARY_LEN, SIZES};
use super::slots::new_digest;
use crate::crypto::luks::{KeyEnv, NewLuks};
use crate::crypto::to_base64;
use crate::{Error, Result, Storage};

/// Where the data begins, and where key material ends.
pub(crate) const DATA_OFFSET: u64 = 16 << 20;
const MIN_DIGEST_ITERATIONS: u32 = 1000;

/// Writes a header with one key slot. Gives the header and the volume key.
///
/// The copies are first written when the key material of the slot is stable.
pub(crate) fn create(
    storage: &dyn Storage,
    new: &NewLuks,
    passphrase: &[u8],
    env: &KeyEnv<'_>,
) -> Result<(Header, Zeroizing<Vec<u8>>)> {
    let mut key = Zeroizing::new(vec![0; new.spec.key_len()]);
    (env.random)(&mut key);
    let digest_cost = new.cost.digest_iterations(new.hash, MIN_DIGEST_ITERATIONS, &env.work)?;
    let json = metadata(new, &key, digest_cost, env)?;
    let mut header = Header::fresh(json, SIZES.first().copied().unwrap_or(0x4000), new.uuid, &env.work)?;
    let sealed = header.seal(&key, passphrase, new.cost, None, env)?;
    header.store_key(storage, 0, &sealed, None, env)?;
    Ok((header, key))
}

fn metadata(new: &NewLuks, key: &[u8], iterations: u32, env: &KeyEnv<'_>) -> Result<Map<String, Value>> {
    let header_len = SIZES.first().copied().unwrap_or(0x4000);
    let digest = new_digest(new.hash, iterations, key, env)?;
    let offset = if new.detached { 0 } else { DATA_OFFSET };
    let json = json!({
        "keyslots": {},
        "tokens": {},
        "segments": { "0": {
            "type": "crypt",
            "offset": offset.to_string(),
            "size": "dynamic",
            "iv_tweak": "0",
            "encryption": format!("{}-{}", new.spec.algorithm().family(), new.mode_text()),
            "sector_size": new.sector_size,
        } },
        "digests": { "0": {
            "type": "pbkdf2",
            "keyslots": [],
            "segments": ["0"],
            "hash": digest.hash.name(),
            "iterations": digest.iterations,
            "salt": to_base64(&digest.salt),
            "digest": to_base64(&digest.digest),
        } },
        "config": {
            "json_size": (header_len - BINARY_LEN as u64).to_string(),
            "keyslots_size": (DATA_OFFSET - 2 * header_len).to_string(),
        },
    });
    match json {
        Value::Object(map) => Ok(map),
        _ => Err(Error::invalid("the JSON of a LUKS2 header is an object")),
    }
}
