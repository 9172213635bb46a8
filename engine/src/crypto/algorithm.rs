//! Block ciphers by name and key length.

use crate::{Error, Result};

/// A block cipher with its key length, in the names of QEMU and dm-crypt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CipherAlgorithm {
    /// AES with a 128-bit key (FIPS 197).
    Aes128,
    /// AES with a 192-bit key (FIPS 197).
    Aes192,
    /// AES with a 256-bit key (FIPS 197).
    Aes256,
    /// Serpent with a 128-bit key.
    Serpent128,
    /// Serpent with a 192-bit key.
    Serpent192,
    /// Serpent with a 256-bit key.
    Serpent256,
    /// Twofish with a 128-bit key.
    Twofish128,
    /// Twofish with a 192-bit key.
    Twofish192,
    /// Twofish with a 256-bit key.
    Twofish256,
    /// CAST5 (CAST-128) with a 128-bit key (RFC 2144); blocks of 8 bytes.
    Cast5,
}

const TABLE: &[(CipherAlgorithm, &str, &str, usize)] = &[
    (CipherAlgorithm::Aes128, "aes-128", "aes", 16),
    (CipherAlgorithm::Aes192, "aes-192", "aes", 24),
    (CipherAlgorithm::Aes256, "aes-256", "aes", 32),
    (CipherAlgorithm::Serpent128, "serpent-128", "serpent", 16),
    (CipherAlgorithm::Serpent192, "serpent-192", "serpent", 24),
    (CipherAlgorithm::Serpent256, "serpent-256", "serpent", 32),
    (CipherAlgorithm::Twofish128, "twofish-128", "twofish", 16),
    (CipherAlgorithm::Twofish192, "twofish-192", "twofish", 24),
    (CipherAlgorithm::Twofish256, "twofish-256", "twofish", 32),
    (CipherAlgorithm::Cast5, "cast5-128", "cast5", 16),
];

impl CipherAlgorithm {
    fn row(self) -> (&'static str, &'static str, usize) {
        let found = TABLE.iter().find(|row| row.0 == self);
        found.map_or(("aes-256", "aes", 32), |row| (row.1, row.2, row.3))
    }

    /// All ciphers, in the order that help texts list them.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.0)
    }

    /// QEMU's name (`cipher-alg`), such as `aes-256`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().0
    }

    /// The name without the key length, as a LUKS header has it, such as `aes`.
    #[must_use]
    pub fn family(self) -> &'static str {
        self.row().1
    }

    /// Length of the key in bytes.
    #[must_use]
    pub fn key_len(self) -> usize {
        self.row().2
    }

    /// Length of a block in bytes: 16, and 8 for CAST5.
    #[must_use]
    pub fn block_len(self) -> usize {
        if self == Self::Cast5 { 8 } else { 16 }
    }

    /// Finds a cipher by QEMU's name (`aes-256`).
    ///
    /// # Errors
    /// `Unsupported` for a name that is none of [`Self::all`].
    pub fn from_name(name: &str) -> Result<Self> {
        let found = TABLE.iter().find(|row| row.1 == name);
        found
            .map(|row| row.0)
            .ok_or_else(|| Error::unsupported(format!("cipher '{name}' is not supported")))
    }

    /// Finds a cipher by a LUKS header's name (`aes`) and the bytes of one cipher key.
    ///
    /// # Errors
    /// `Unsupported` for an unknown name, and for a key length that the cipher does not have.
    pub fn from_family(family: &str, key_len: usize) -> Result<Self> {
        if !TABLE.iter().any(|row| row.2 == family) {
            return Err(Error::unsupported(format!("cipher '{family}' is not supported")));
        }
        let found = TABLE.iter().find(|row| row.2 == family && row.3 == key_len);
        found
            .map(|row| row.0)
            .ok_or_else(|| Error::unsupported(format!("cipher '{family}' does not take a key of {key_len} bytes")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cipher_is_found_by_both_its_names() {
        for alg in CipherAlgorithm::all() {
            assert_eq!(CipherAlgorithm::from_name(alg.name()).unwrap(), alg);
            assert_eq!(CipherAlgorithm::from_family(alg.family(), alg.key_len()).unwrap(), alg);
        }
    }

    #[test]
    fn unknown_names_and_lengths_are_refused() {
        assert!(CipherAlgorithm::from_name("cipher_null").is_err());
        assert!(CipherAlgorithm::from_family("cipher_null", 32).is_err());
        assert!(CipherAlgorithm::from_family("aes", 20).is_err());
        assert!(CipherAlgorithm::from_family("cast5", 32).is_err());
    }
}
