//! Options of create and open, with QEMU's names where QEMU has them.

use std::time::Duration;

use uuid::Uuid;

use crate::crypto::luks::{KdfCost, NewLuks};
use crate::crypto::{CipherAlgorithm, CipherMode, CipherSpec, HashAlgorithm, IvKind};
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
];

/// The header that create options ask for. The UUID is still nil.
pub(super) fn new_luks(options: &Options) -> Result<NewLuks> {
    let hash = HashAlgorithm::from_name(options.get("hash-alg").unwrap_or("sha256"))?;
    if hash.is_truncated() {
        return Err(Error::unsupported(format!("hash '{}' serves ESSIV alone", hash.name())));
    }
    Ok(NewLuks {
        spec: spec(options)?,
        hash,
        uuid: Uuid::nil(),
        detached: options.flag("detached-header")?.unwrap_or(false),
        cost: cost(options)?,
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

fn cost(options: &Options) -> Result<KdfCost> {
    match (options.number("iterations")?, options.number("iter-time")?) {
        (Some(_), Some(_)) => Err(Error::invalid("give 'iter-time' or 'iterations', not both")),
        (Some(count), None) => u32::try_from(count)
            .map(KdfCost::Iterations)
            .map_err(|_| Error::invalid(format!("option 'iterations' takes at most {}, not {count}", u32::MAX))),
        (None, Some(0)) => Err(Error::invalid("option 'iter-time' takes at least 1 millisecond")),
        (None, Some(time)) => Ok(KdfCost::Time(Duration::from_millis(time))),
        (None, None) => Ok(KdfCost::default()),
    }
}
