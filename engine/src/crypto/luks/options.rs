//! From create options to the header that they ask for, for all formats that hold LUKS headers.

use std::time::Duration;

use uuid::Uuid;

use super::{KdfCost, KeyWork, NewLuks, measure_argon2};
use crate::crypto::{Argon2Cost, Argon2Variant, CipherAlgorithm, CipherMode, CipherSpec, HashAlgorithm, IvKind};
use crate::options::Options;
use crate::{Error, Result};

/// The header that create options ask for: QEMU's names (`cipher-alg`, `hash-alg`, `iter-time`, ...) and our own for LUKS2. The UUID is still nil.
///
/// # Errors
/// `InvalidArgument` and `Unsupported` for values that are not known or do not go together.
pub fn new_luks(options: &Options, work: &KeyWork<'_>) -> Result<NewLuks> {
    let hash = HashAlgorithm::from_name(options.get("hash-alg").unwrap_or("sha256"))?;
    if hash.is_truncated() {
        return Err(Error::unsupported(format!("hash '{}' serves ESSIV alone", hash.name())));
    }
    let version = if options.get("version") == Some("2") { 2 } else { 1 };
    let sector_size = options.size("sector-size")?.unwrap_or(512);
    if !matches!(sector_size, 512 | 1024 | 2048 | 4096) || (version == 1 && sector_size != 512) {
        let text = format!("LUKS{version} has no sectors of {sector_size} bytes");
        return Err(Error::invalid(text));
    }
    let (spec, ignored_iv_hash) = spec(options)?;
    Ok(NewLuks {
        version,
        spec,
        ignored_iv_hash,
        sector_size: sector_size as u32,
        hash,
        uuid: Uuid::nil(),
        detached: options.flag("detached-header")?.unwrap_or(false),
        cost: cost(options, version, work)?,
    })
}

/// The cipher, and the hash of an IV generator that takes none. QEMU stores that one behind the generator's name, and libvirt asks for it.
fn spec(options: &Options) -> Result<(CipherSpec, Option<HashAlgorithm>)> {
    let algorithm = CipherAlgorithm::from_name(options.get("cipher-alg").unwrap_or("aes-256"))?;
    let mode = CipherMode::from_name(options.get("cipher-mode").unwrap_or("xts"))?;
    let hash = options
        .get("ivgen-hash-alg")
        .map(HashAlgorithm::from_name)
        .transpose()?;
    let (iv, ignored) = match options.get("ivgen-alg").unwrap_or("plain64") {
        "essiv" => (IvKind::Essiv(hash.unwrap_or(HashAlgorithm::Sha256)), None),
        name => {
            let iv = IvKind::parse(name)?;
            if hash.is_some() && !iv.ignores_hash() {
                return Err(Error::invalid(format!(
                    "IV generator '{name}' takes no hash; option 'ivgen-hash-alg' is for essiv, plain and plain64"
                )));
            }
            (iv, hash)
        }
    };
    Ok((CipherSpec::new(algorithm, mode, iv)?, ignored))
}

fn cost(options: &Options, version: u16, work: &KeyWork<'_>) -> Result<KdfCost> {
    let time = match options.number("iter-time")? {
        Some(_) if options.get("iterations").is_some() => {
            return Err(Error::invalid("give 'iter-time' or 'iterations', not both"));
        }
        time => Duration::from_millis(time.unwrap_or(2000)),
    };
    let count = number(options, "iterations")?;
    let variant = match (options.get("pbkdf"), version) {
        (Some("argon2i"), 2) => Argon2Variant::Argon2i,
        (Some("argon2id") | None, 2) => Argon2Variant::Argon2id,
        (Some("argon2i" | "argon2id"), _) => return Err(Error::invalid("LUKS1 knows PBKDF2 alone, not Argon2")),
        _ => {
            if let Some(name) = ["pbkdf-memory", "pbkdf-parallel"]
                .iter()
                .find(|name| options.get(name).is_some())
            {
                return Err(Error::invalid(format!("option '{name}' is for Argon2")));
            }
            return Ok(count.map_or(KdfCost::Time(time), KdfCost::Iterations));
        }
    };
    let lanes = number(options, "pbkdf-parallel")?.unwrap_or(4);
    let memory = options.size("pbkdf-memory")?.unwrap_or(256 << 20).min(1 << 41) / 1024;
    let memory_kib = u32::try_from(memory).unwrap_or(u32::MAX);
    match count {
        Some(time) => Ok(KdfCost::Argon2(
            variant,
            Argon2Cost {
                time,
                memory_kib,
                lanes,
            },
        )),
        None => measure_argon2(variant, memory_kib, lanes, time, work),
    }
}

fn number(options: &Options, name: &str) -> Result<Option<u32>> {
    let narrow = |n: u64| {
        u32::try_from(n).map_err(|_| Error::invalid(format!("option '{name}' takes at most {}, not {n}", u32::MAX)))
    };
    options.number(name)?.map(narrow).transpose()
}
