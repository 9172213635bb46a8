//! What a volume is encrypted with: cipher, mode, IV generator; and its text in LUKS headers.

use super::{algorithm::CipherAlgorithm, iv::IvKind};
use crate::{Error, Result};

/// Chaining mode of a block cipher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CipherMode {
    /// Electronic code book. Equal blocks stay visibly equal: never choose it.
    Ecb,
    /// Cipher block chaining within each sector.
    Cbc,
    /// Counter mode. Rewritten sectors give their old content away: never choose it for disks.
    Ctr,
    /// XEX with two keys (IEEE 1619).
    Xts,
    /// The predecessor of XTS, with a 16-byte tweak key after the cipher's.
    Lrw,
}

const MODES: &[(CipherMode, &str)] = &[
    (CipherMode::Ecb, "ecb"),
    (CipherMode::Cbc, "cbc"),
    (CipherMode::Ctr, "ctr"),
    (CipherMode::Xts, "xts"),
    (CipherMode::Lrw, "lrw"),
];

impl CipherMode {
    /// The name in headers and options.
    #[must_use]
    pub fn name(self) -> &'static str {
        MODES.iter().find(|row| row.0 == self).map_or("xts", |row| row.1)
    }

    /// Finds a mode by name.
    ///
    /// # Errors
    /// `Unsupported` for an unknown name.
    pub fn from_name(name: &str) -> Result<Self> {
        let found = MODES.iter().find(|row| row.1 == name).map(|row| row.0);
        found.ok_or_else(|| Error::unsupported(format!("cipher mode '{name}' is not supported")))
    }

    /// Bytes of key that a cipher with keys of `cipher_key_len` bytes needs in this mode.
    #[must_use]
    pub fn key_len(self, cipher_key_len: usize) -> usize {
        match self {
            Self::Xts => cipher_key_len * 2,
            Self::Lrw => cipher_key_len + 16,
            Self::Ecb | Self::Cbc | Self::Ctr => cipher_key_len,
        }
    }
}

/// Cipher, mode and IV generator of a volume, checked to fit each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CipherSpec {
    algorithm: CipherAlgorithm,
    mode: CipherMode,
    iv: IvKind,
}

impl CipherSpec {
    /// Puts the three together.
    ///
    /// # Errors
    /// `Unsupported` for XTS and LRW over 8-byte blocks, and for ESSIV with a hash whose length is none of the cipher's
    /// key lengths.
    pub fn new(algorithm: CipherAlgorithm, mode: CipherMode, iv: IvKind) -> Result<Self> {
        if matches!(mode, CipherMode::Xts | CipherMode::Lrw) && algorithm.block_len() != 16 {
            let text = format!(
                "mode {} needs blocks of 16 bytes, {} has 8",
                mode.name(),
                algorithm.name()
            );
            return Err(Error::unsupported(text));
        }
        if let IvKind::Essiv(hash) = iv {
            CipherAlgorithm::from_family(algorithm.family(), hash.digest_len())?;
        }
        Ok(Self { algorithm, mode, iv })
    }

    /// Reads the two texts of a LUKS1 header: `family` as in `aes`, `mode` as in `cbc-essiv:sha256`, and the length of the
    /// volume key in bytes.
    ///
    /// # Errors
    /// `Unsupported` for what is unknown or does not fit together.
    pub fn parse(family: &str, mode: &str, key_bytes: usize) -> Result<Self> {
        let (mode_name, iv) = match mode.split_once('-') {
            Some((name, iv)) => (name, Some(iv)),
            None => (mode, None),
        };
        let mode = CipherMode::from_name(mode_name)?;
        let iv = match iv {
            Some(_) if mode == CipherMode::Ecb => IvKind::Null,
            Some(text) => IvKind::parse(text)?,
            None if mode == CipherMode::Ecb => IvKind::Null,
            None => {
                return Err(Error::unsupported(format!(
                    "cipher mode '{mode_name}' needs an IV generator"
                )));
            }
        };
        let cipher_key = match mode {
            CipherMode::Xts if key_bytes.is_multiple_of(2) => Some(key_bytes / 2),
            CipherMode::Xts => None,
            CipherMode::Lrw => key_bytes.checked_sub(16),
            CipherMode::Ecb | CipherMode::Cbc | CipherMode::Ctr => Some(key_bytes),
        };
        let odd = || Error::unsupported(format!("mode {mode_name} does not take a key of {key_bytes} bytes"));
        Self::new(
            CipherAlgorithm::from_family(family, cipher_key.ok_or_else(odd)?)?,
            mode,
            iv,
        )
    }

    /// Reads the single text of a LUKS2 segment or keyslot area, as in `aes-xts-plain64`.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_joined(text: &str, key_bytes: usize) -> Result<Self> {
        let split = text.split_once('-');
        let (family, mode) = split.ok_or_else(|| Error::unsupported(format!("cipher '{text}' has no mode")))?;
        Self::parse(family, mode, key_bytes)
    }

    /// The block cipher.
    #[must_use]
    pub fn algorithm(&self) -> CipherAlgorithm {
        self.algorithm
    }

    /// The chaining mode.
    #[must_use]
    pub fn mode(&self) -> CipherMode {
        self.mode
    }

    /// The IV generator.
    #[must_use]
    pub fn iv(&self) -> IvKind {
        self.iv
    }

    /// Length of the volume key in bytes: in XTS two cipher keys.
    #[must_use]
    pub fn key_len(&self) -> usize {
        self.mode.key_len(self.algorithm.key_len())
    }

    /// Mode and IV generator as a LUKS1 header has them, such as `xts-plain64`. ECB gets an IV name too, without which
    /// QEMU does not open the volume.
    #[must_use]
    pub fn mode_text(&self) -> String {
        let iv = if self.mode == CipherMode::Ecb && self.iv == IvKind::Null {
            IvKind::Plain64
        } else {
            self.iv
        };
        format!("{}-{}", self.mode.name(), iv.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_texts_round_trip() {
        for (family, mode, key) in [
            ("aes", "xts-plain64", 64),
            ("aes", "xts-plain64", 32),
            ("aes", "cbc-essiv:sha256", 16),
            ("aes", "cbc-plain", 24),
            ("serpent", "lrw-benbi", 48),
            ("twofish", "ctr-plain64", 32),
            ("cast5", "cbc-plain64", 16),
        ] {
            let spec = CipherSpec::parse(family, mode, key).unwrap();
            assert_eq!(
                (spec.algorithm().family(), spec.mode_text().as_str(), spec.key_len()),
                (family, mode, key)
            );
        }
    }

    #[test]
    fn a_hash_behind_plain_and_plain64_means_nothing() {
        for (mode, same) in [("xts-plain64:sha256", "xts-plain64"), ("cbc-plain:sha1", "cbc-plain")] {
            let parse = |mode| CipherSpec::parse("aes", mode, 32).unwrap();
            assert_eq!(parse(mode), parse(same));
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (family, mode, key) in [
            ("cipher_null", "ecb", 32),
            ("aes", "xts-plain64", 33),
            ("aes", "xts-plain64", 24),
            ("aes", "xts", 64),
            ("aes", "cbc-essiv", 32),
            ("aes", "cbc-essiv:sha1", 32),
            ("aes", "cbc-essiv:md5", 32),
            ("aes", "cbc-random", 32),
            ("aes", "xts-plain64:md6", 64),
            ("aes", "xts-plain64:", 64),
            ("aes", "lrw-benbi:sha256", 48),
            ("aes", "lrw-benbi", 8),
            ("cast5", "xts-plain64", 32),
            ("cast5", "cbc-essiv:sha256", 16),
            ("aes", "cbc-plain64", 0),
            ("aes", "", 32),
        ] {
            assert!(CipherSpec::parse(family, mode, key).is_err(), "{family} {mode} {key}");
        }
    }
}
