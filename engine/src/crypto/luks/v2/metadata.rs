//! What the JSON of a LUKS2 header says, checked (specification, section 3).

use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::json::Object;
use super::segment::{Segment, segment};
use crate::crypto::luks::KeyWork;
use crate::crypto::{Argon2Cost, Argon2Variant, CipherSpec, HashAlgorithm, from_base64};
use crate::{Error, ErrorKind, Result};

/// Bytes of all key material at most, as cryptsetup has it.
const MAX_KEYSLOTS_LEN: u64 = 128 << 20;
/// Slots at most, as cryptsetup has it.
pub(crate) const SLOTS: u32 = 32;
/// Stripes of the anti-forensic splitter; cryptsetup knows no other number.
pub(super) const STRIPES: u32 = 4000;

/// The checked content of a header.
pub(crate) struct Metadata {
    pub(super) slots: Vec<Slot>,
    pub(super) digests: Vec<Digest>,
    /// What can be opened, or why nothing can.
    pub(super) segment: Result<Segment, String>,
    /// First and last byte plus one of the area for key material.
    pub(super) area: (u64, u64),
}

/// A key slot of any type.
pub(super) struct Slot {
    pub(super) number: u32,
    pub(super) offset: u64,
    pub(super) size: u64,
    /// How to get at the key; or why this program cannot.
    pub(super) key: Result<SlotKey, String>,
}

/// How a passphrase opens a slot.
pub(super) struct SlotKey {
    /// 2: first, 1: normal, 0: only when asked for by number.
    pub(super) priority: u32,
    /// Bytes of the volume key.
    pub(super) len: usize,
    pub(super) af_hash: HashAlgorithm,
    /// Cipher of the key material.
    pub(super) spec: CipherSpec,
    pub(super) kdf: Kdf,
    pub(super) salt: Vec<u8>,
}

/// A derivation with its cost.
#[derive(Clone, Copy)]
pub(super) enum Kdf {
    Pbkdf2 { hash: HashAlgorithm, iterations: u32 },
    Argon2 { variant: Argon2Variant, cost: Argon2Cost },
}

/// A digest of any type.
pub(super) struct Digest {
    /// The slots that hold its key.
    pub(super) slots: Vec<u32>,
    /// The segments that its key opens.
    pub(super) segments: Vec<u32>,
    /// How to tell the key; or why this program cannot.
    pub(super) how: Result<KeyDigest, String>,
}

/// How to tell a volume key.
pub(super) struct KeyDigest {
    pub(super) hash: HashAlgorithm,
    pub(super) iterations: u32,
    pub(super) salt: Vec<u8>,
    pub(super) digest: Zeroizing<Vec<u8>>,
}

/// Checks the JSON of a header of `header_len` bytes a copy.
pub(super) fn check(json: &Map<String, Value>, header_len: u64, work: &KeyWork<'_>) -> Result<Metadata> {
    let root = Object::new(json, "header");
    let area = key_area(root.object("config")?, header_len)?;
    let mut slots = Vec::new();
    for entry in root.object("keyslots")?.numbered() {
        let (number, value) = entry?;
        if number >= SLOTS {
            let text = format!("LUKS2 keyslot {number} is not one of the {SLOTS} that a header may have");
            return Err(Error::corrupt(text));
        }
        slots.push(slot(number, Object::of(value, "keyslot")?, area, work)?);
    }
    check_apart(&slots)?;
    let mut digests = Vec::new();
    for entry in root.object("digests")?.numbered() {
        digests.push(digest(Object::of(entry?.1, "digest")?, work)?);
    }
    root.object("tokens")?;
    let segment = segment(&root, &slots, &digests, area.1)?;
    Ok(Metadata {
        slots,
        digests,
        segment,
        area,
    })
}

fn key_area(config: Object<'_>, header_len: u64) -> Result<(u64, u64)> {
    let json_size = config.u64("json_size")?;
    if json_size.checked_add(super::layout::BINARY_LEN as u64) != Some(header_len) {
        return Err(Error::corrupt(format!(
            "LUKS2 config has JSON of {json_size} bytes in a header of {header_len}"
        )));
    }
    let len = config.u64("keyslots_size")?;
    if len > MAX_KEYSLOTS_LEN || !len.is_multiple_of(4096) {
        return Err(Error::corrupt(format!("LUKS2 config has {len} bytes of key material")));
    }
    Ok((2 * header_len, 2 * header_len + len))
}

fn slot(number: u32, object: Object<'_>, area: (u64, u64), work: &KeyWork<'_>) -> Result<Slot> {
    let place = object.object("area")?;
    let (offset, size) = (place.u64("offset")?, place.u64("size")?);
    let inside = offset
        .checked_add(size)
        .is_some_and(|end| offset >= area.0 && end <= area.1);
    if !inside {
        let text = format!("LUKS2 keyslot {number} lies at {offset:#x}+{size:#x}, not in its area");
        return Err(Error::corrupt(text));
    }
    Ok(Slot {
        number,
        offset,
        size,
        key: usable_or_reason(slot_key(number, object, size, work))?,
    })
}

fn slot_key(number: u32, object: Object<'_>, size: u64, work: &KeyWork<'_>) -> Result<SlotKey> {
    if object.text("type")? != "luks2" {
        let kind = object.text("type")?.escape_debug();
        return Err(Error::unsupported(format!(
            "LUKS2 keyslot {number} of type '{kind}' is not supported"
        )));
    }
    let (af, place, kdf) = (object.object("af")?, object.object("area")?, object.object("kdf")?);
    if af.text("type")? != "luks1" || af.u32("stripes")? != STRIPES {
        let text = format!("LUKS2 keyslot {number} is not split into {STRIPES} stripes");
        return Err(Error::corrupt(text));
    }
    let len = object.u32("key_size")? as usize;
    if len == 0 || (len as u64 * u64::from(STRIPES)).next_multiple_of(512) > size {
        let text = format!("a key of {len} bytes does not fit into the {size} bytes of LUKS2 keyslot {number}");
        return Err(Error::corrupt(text));
    }
    let salt = from_base64(kdf.text("salt")?.as_bytes(), "salt of a LUKS2 keyslot").map_err(damage)?;
    let kdf = derivation(kdf, work)?;
    if place.text("type")? != "raw" {
        let text = format!("the area of LUKS2 keyslot {number} is not raw");
        return Err(Error::unsupported(text));
    }
    Ok(SlotKey {
        priority: object.get("priority").and_then(Value::as_u64).unwrap_or(1).min(2) as u32,
        len,
        af_hash: usable(af.text("hash")?)?,
        spec: CipherSpec::parse_joined(place.text("encryption")?, place.u32("key_size")? as usize)?,
        kdf,
        salt: salt.to_vec(),
    })
}

/// What is wrong in a header is damage, whoever found it.
fn damage(error: Error) -> Error {
    Error::corrupt(error.what())
}

fn derivation(kdf: Object<'_>, work: &KeyWork<'_>) -> Result<Kdf> {
    let variant = match kdf.text("type")? {
        "pbkdf2" => {
            let (hash, iterations) = (usable(kdf.text("hash")?)?, kdf.u32("iterations")?);
            check_iterations(iterations, work)?;
            return Ok(Kdf::Pbkdf2 { hash, iterations });
        }
        "argon2i" => Argon2Variant::Argon2i,
        "argon2id" => Argon2Variant::Argon2id,
        other => {
            return Err(Error::unsupported(format!(
                "key derivation '{}' is not supported",
                other.escape_debug()
            )));
        }
    };
    let cost = Argon2Cost {
        time: kdf.u32("time")?,
        memory_kib: kdf.u32("memory")?,
        lanes: kdf.u32("cpus")?,
    };
    cost.check(&work.argon2_limit())?;
    Ok(Kdf::Argon2 { variant, cost })
}

fn check_iterations(count: u32, work: &KeyWork<'_>) -> Result<()> {
    if count == 0 {
        return Err(Error::corrupt("a LUKS2 header has 0 PBKDF2 iterations"));
    }
    work.check_iterations(count)
}

fn usable(hash: &str) -> Result<HashAlgorithm> {
    let found = HashAlgorithm::from_name(hash)?;
    if found.is_truncated() {
        return Err(Error::unsupported(format!(
            "hash '{}' serves ESSIV alone",
            found.name()
        )));
    }
    Ok(found)
}

fn check_apart(slots: &[Slot]) -> Result<()> {
    let mut places: Vec<_> = slots.iter().map(|slot| (slot.offset, slot.size, slot.number)).collect();
    places.sort_unstable();
    for (before, after) in places.iter().zip(places.iter().skip(1)) {
        if before.0 + before.1 > after.0 {
            return Err(Error::corrupt(format!(
                "LUKS2 keyslots {} and {} overlap",
                before.2, after.2
            )));
        }
    }
    Ok(())
}

fn digest(object: Object<'_>, work: &KeyWork<'_>) -> Result<Digest> {
    Ok(Digest {
        slots: object.references("keyslots")?,
        segments: object.references("segments")?,
        how: usable_or_reason(key_digest(object, work))?,
    })
}

fn key_digest(object: Object<'_>, work: &KeyWork<'_>) -> Result<KeyDigest> {
    if object.text("type")? != "pbkdf2" {
        return Err(Error::unsupported("a LUKS2 digest is not of type pbkdf2"));
    }
    let hash = usable(object.text("hash")?)?;
    let iterations = object.u32("iterations")?;
    check_iterations(iterations, work)?;
    let digest = from_base64(object.text("digest")?.as_bytes(), "digest of a LUKS2 header").map_err(damage)?;
    if digest.len() < 20 || digest.len() > hash.digest_len() {
        return Err(Error::corrupt(format!("a LUKS2 digest has {} bytes", digest.len())));
    }
    let salt = from_base64(object.text("salt")?.as_bytes(), "salt of a LUKS2 digest").map_err(damage)?;
    Ok(KeyDigest {
        hash,
        iterations,
        salt: salt.to_vec(),
        digest,
    })
}

/// What is only not supported here is no reason to refuse the header: it may not be needed.
fn usable_or_reason<T>(found: Result<T>) -> Result<Result<T, String>> {
    match found {
        Ok(found) => Ok(Ok(found)),
        Err(error) if error.kind() == ErrorKind::Unsupported => Ok(Err(error.what().to_owned())),
        Err(error) => Err(error),
    }
}
