//! Hashes by name, as LUKS headers and QEMU's options spell them.

use ripemd::Ripemd160;
use sha1::Sha1;
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use whirlpool::Whirlpool;
use zeroize::Zeroizing;

use crate::{Error, Result};

/// A hash function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HashAlgorithm {
    /// SHA-1 (FIPS 180-4).
    Sha1,
    /// SHA-224 (FIPS 180-4).
    Sha224,
    /// SHA-256 (FIPS 180-4).
    Sha256,
    /// SHA-384 (FIPS 180-4).
    Sha384,
    /// SHA-512 (FIPS 180-4).
    Sha512,
    /// RIPEMD-160 (ISO/IEC 10118-3).
    Ripemd160,
    /// Whirlpool (ISO/IEC 10118-3), final version.
    Whirlpool,
    /// The first 48 bytes of Whirlpool, a name of the Linux kernel.
    Whirlpool384,
    /// The first 32 bytes of Whirlpool, a name of the Linux kernel.
    Whirlpool256,
}

const TABLE: &[(HashAlgorithm, &str, usize)] = &[
    (HashAlgorithm::Sha1, "sha1", 20),
    (HashAlgorithm::Sha224, "sha224", 28),
    (HashAlgorithm::Sha256, "sha256", 32),
    (HashAlgorithm::Sha384, "sha384", 48),
    (HashAlgorithm::Sha512, "sha512", 64),
    (HashAlgorithm::Ripemd160, "ripemd160", 20),
    (HashAlgorithm::Whirlpool, "whirlpool", 64),
    (HashAlgorithm::Whirlpool384, "wp384", 48),
    (HashAlgorithm::Whirlpool256, "wp256", 32),
];

/// Runs `$body` with `$D` as the hash's type. The truncated Whirlpools share the full one's.
macro_rules! with_hash {
    ($alg:expr, $D:ident => $body:expr) => {
        match $alg {
            $crate::crypto::hash::HashAlgorithm::Sha1 => {
                type $D = sha1::Sha1;
                $body
            }
            $crate::crypto::hash::HashAlgorithm::Sha224 => {
                type $D = sha2::Sha224;
                $body
            }
            $crate::crypto::hash::HashAlgorithm::Sha256 => {
                type $D = sha2::Sha256;
                $body
            }
            $crate::crypto::hash::HashAlgorithm::Sha384 => {
                type $D = sha2::Sha384;
                $body
            }
            $crate::crypto::hash::HashAlgorithm::Sha512 => {
                type $D = sha2::Sha512;
                $body
            }
            $crate::crypto::hash::HashAlgorithm::Ripemd160 => {
                type $D = ripemd::Ripemd160;
                $body
            }
            $crate::crypto::hash::HashAlgorithm::Whirlpool
            | $crate::crypto::hash::HashAlgorithm::Whirlpool384
            | $crate::crypto::hash::HashAlgorithm::Whirlpool256 => {
                type $D = whirlpool::Whirlpool;
                $body
            }
        }
    };
}
pub(crate) use with_hash;

impl HashAlgorithm {
    /// The name in headers and options, such as `sha256`.
    #[must_use]
    pub fn name(self) -> &'static str {
        TABLE.iter().find(|row| row.0 == self).map_or("sha256", |row| row.1)
    }

    /// Length of a digest in bytes.
    #[must_use]
    pub fn digest_len(self) -> usize {
        TABLE.iter().find(|row| row.0 == self).map_or(32, |row| row.2)
    }

    /// All hashes, in the order that help texts list them.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.0)
    }

    /// Finds a hash by name. Old headers have names in capital letters (`SHA1`), which cryptsetup accepts as well.
    ///
    /// # Errors
    /// `Unsupported` for a name that is none of [`Self::all`].
    pub fn from_name(name: &str) -> Result<Self> {
        let found = TABLE.iter().find(|row| row.1.eq_ignore_ascii_case(name));
        let found = found
            .map(|row| row.0)
            .or(name.eq_ignore_ascii_case("wp512").then_some(Self::Whirlpool));
        found.ok_or_else(|| Error::unsupported(format!("hash '{name}' is not supported")))
    }

    /// Whether this is one of the Linux kernel's truncated hashes, which serve ESSIV alone: HMAC over them is not defined.
    #[must_use]
    pub fn is_truncated(self) -> bool {
        matches!(self, Self::Whirlpool384 | Self::Whirlpool256)
    }

    /// The digest of the parts one after the other.
    #[must_use]
    pub fn digest(self, parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
        let mut digest = match self {
            Self::Sha1 => digest_of::<Sha1>(parts),
            Self::Sha224 => digest_of::<Sha224>(parts),
            Self::Sha256 => digest_of::<Sha256>(parts),
            Self::Sha384 => digest_of::<Sha384>(parts),
            Self::Sha512 => digest_of::<Sha512>(parts),
            Self::Ripemd160 => digest_of::<Ripemd160>(parts),
            Self::Whirlpool | Self::Whirlpool384 | Self::Whirlpool256 => digest_of::<Whirlpool>(parts),
        };
        digest.truncate(self.digest_len());
        digest
    }
}

fn digest_of<D: Digest>(parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    let mut hash = D::new();
    parts.iter().for_each(|part| hash.update(part));
    Zeroizing::new(hash.finalize().to_vec())
}
