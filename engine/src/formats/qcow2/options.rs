//! Create options: QEMU's names and defaults.

use crate::options::{OptionKind, OptionSpec};

const fn option(name: &'static str, kind: OptionKind, default: Option<&'static str>, help: &'static str) -> OptionSpec {
    OptionSpec {
        name,
        kind,
        default,
        help,
    }
}

/// What `open` takes.
pub(super) const OPEN: &[OptionSpec] = &[
    option(
        "encrypt.format",
        OptionKind::Text,
        None,
        "Encryption that the header must name: 'aes' or 'luks'",
    ),
    option(
        "encrypt.key-secret",
        OptionKind::Text,
        None,
        "ID of secret providing qcow AES key or LUKS passphrase",
    ),
];

/// What `create` takes.
pub(super) const CREATE: &[OptionSpec] = &[
    option("cluster_size", OptionKind::Size, Some("65536"), "qcow2 cluster size"),
    option(
        "compat",
        OptionKind::Choice(&["0.10", "1.1", "v2", "v3"]),
        Some("1.1"),
        "Compatibility level (v2 [0.10] or v3 [1.1])",
    ),
    option(
        "compression_type",
        OptionKind::Choice(&["zlib", "zstd"]),
        Some("zlib"),
        "Compression method used for image cluster compression",
    ),
    option(
        "data_file",
        OptionKind::Text,
        None,
        "File name of an external data file",
    ),
    option(
        "data_file_raw",
        OptionKind::Bool,
        Some("off"),
        "The external data file must stay valid as a raw image",
    ),
    option(
        "encrypt.cipher-alg",
        OptionKind::Text,
        None,
        "Name of encryption cipher algorithm",
    ),
    option(
        "encrypt.cipher-mode",
        OptionKind::Text,
        None,
        "Name of encryption cipher mode",
    ),
    option(
        "encrypt.format",
        OptionKind::Text,
        None,
        "Encrypt the image, format choices: 'aes', 'luks'",
    ),
    option(
        "encrypt.hash-alg",
        OptionKind::Text,
        None,
        "Name of encryption hash algorithm",
    ),
    option(
        "encrypt.iter-time",
        OptionKind::Number,
        None,
        "Time to spend in PBKDF in milliseconds",
    ),
    option(
        "encrypt.ivgen-alg",
        OptionKind::Text,
        None,
        "Name of IV generator algorithm",
    ),
    option(
        "encrypt.ivgen-hash-alg",
        OptionKind::Text,
        None,
        "Name of IV generator hash algorithm",
    ),
    option(
        "encrypt.key-secret",
        OptionKind::Text,
        None,
        "ID of secret providing qcow AES key or LUKS passphrase",
    ),
    option(
        "encryption",
        OptionKind::Bool,
        None,
        "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
    ),
    option("extended_l2", OptionKind::Bool, Some("off"), "Extended L2 tables"),
    option(
        "lazy_refcounts",
        OptionKind::Bool,
        Some("off"),
        "Postpone refcount updates",
    ),
    option(
        "preallocation",
        OptionKind::Choice(&["off", "metadata", "falloc", "full"]),
        Some("off"),
        "Preallocation mode (allowed values: off, metadata, falloc, full)",
    ),
    option(
        "refcount_bits",
        OptionKind::Number,
        Some("16"),
        "Width of a reference count entry in bits",
    ),
];
