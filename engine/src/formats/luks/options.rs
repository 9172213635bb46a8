//! Options of create and open, with QEMU's names where QEMU has them.

use std::time::Duration;

use uuid::Uuid;

use crate::crypto::luks::{KdfCost, KeyWork, NewLuks, measure_argon2};
use crate::crypto::{Argon2Cost, Argon2Variant, CipherAlgorithm, CipherMode, CipherSpec, HashAlgorithm, IvKind};
use crate::options::{OptionKind, OptionSpec, Options};
use crate::{Error, Result};

const fn option(name: &'static str, kind: OptionKind, default: Option<&'static str>, help: &'static str) -> OptionSpec {
    OptionSpec {
        name,
        kind,
        default,
        help,
    }
}

pub(super) const OPEN: &[OptionSpec] = &[
    option(
        "key-secret",
        OptionKind::Text,
        None,
        "ID of the secret that provides the keyslot passphrase",
    ),
    option(
        "header",
        OptionKind::Text,
        None,
        "Name of the file with the header, where that is detached",
    ),
];

pub(super) const CREATE: &[OptionSpec] = &[
    option(
        "key-secret",
        OptionKind::Text,
        None,
        "ID of the secret that provides the keyslot passphrase",
    ),
    option(
        "cipher-alg",
        OptionKind::Text,
        Some("aes-256"),
        "Name of encryption cipher algorithm",
    ),
    option(
        "cipher-mode",
        OptionKind::Text,
        Some("xts"),
        "Name of encryption cipher mode",
    ),
    option(
        "ivgen-alg",
        OptionKind::Text,
        Some("plain64"),
        "Name of IV generator algorithm",
    ),
    option(
        "ivgen-hash-alg",
        OptionKind::Text,
        None,
        "Name of IV generator hash algorithm",
    ),
    option(
        "hash-alg",
        OptionKind::Text,
        Some("sha256"),
        "Name of encryption hash algorithm",
    ),
    option(
        "iter-time",
        OptionKind::Number,
        Some("2000"),
        "Time to spend in PBKDF in milliseconds",
    ),
    option(
        "iterations",
        OptionKind::Number,
        None,
        "PBKDF iterations of the key slot, in place of a time",
    ),
    option(
        "detached-header",
        OptionKind::Bool,
        Some("off"),
        "Create a detached LUKS header",
    ),
    option(
        "preallocation",
        OptionKind::Choice(&["off", "metadata", "falloc", "full"]),
        Some("off"),
        "Preallocation mode (allowed values: off, metadata, falloc, full)",
    ),
    option(
        "version",
        OptionKind::Choice(&["1", "2"]),
        Some("1"),
        "LUKS version; QEMU reads 1 alone",
    ),
    option(
        "sector-size",
        OptionKind::Size,
        Some("512"),
        "Encryption sector size (LUKS2: 512 to 4096)",
    ),
    option(
        "pbkdf",
        OptionKind::Choice(&["pbkdf2", "argon2i", "argon2id"]),
        None,
        "Key derivation of LUKS2 (default: argon2id)",
    ),
    option("pbkdf-memory", OptionKind::Size, Some("256M"), "Memory of Argon2"),
    option("pbkdf-parallel", OptionKind::Number, Some("4"), "Lanes of Argon2"),
];

/// The header that create options ask for. The UUID is still nil.
pub(super) fn new_luks(options: &Options, work: &KeyWork<'_>) -> Result<NewLuks> {
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
    Ok(NewLuks {
        version,
        spec: spec(options)?,
        sector_size: sector_size as u32,
        hash,
        uuid: Uuid::nil(),
        detached: options.flag("detached-header")?.unwrap_or(false),
        cost: cost(options, version, work)?,
    })
}

fn spec(options: &Options) -> Result<CipherSpec> {
    let algorithm = CipherAlgorithm::from_name(options.get("cipher-alg").unwrap_or("aes-256"))?;
    let mode = CipherMode::from_name(options.get("cipher-mode").unwrap_or("xts"))?;
    let iv = match (
        options.get("ivgen-alg").unwrap_or("plain64"),
        options.get("ivgen-hash-alg"),
    ) {
        ("essiv", hash) => IvKind::Essiv(HashAlgorithm::from_name(hash.unwrap_or("sha256"))?),
        (name, None) => IvKind::parse(name)?,
        (name, Some(_)) => {
            return Err(Error::invalid(format!(
                "IV generator '{name}' takes no hash; option 'ivgen-hash-alg' is for essiv"
            )));
        }
    };
    CipherSpec::new(algorithm, mode, iv)
}

fn cost(options: &Options, version: u16, work: &KeyWork<'_>) -> Result<KdfCost> {
    let time = match options.number("iter-time")? {
        Some(0) => return Err(Error::invalid("option 'iter-time' takes at least 1 millisecond")),
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
