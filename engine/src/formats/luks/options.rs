//! Options of create and open, with QEMU's names where QEMU has them.

use crate::options::{OptionKind, OptionSpec};

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
