//! Secrets in QEMU's model (`--object secret`, docs/system/secrets.rst): raw or base64 text, plain or encrypted with
//! AES-256-CBC under another secret. Pure data: whoever parses options looks up names and reads files.

use aes::cipher::{BlockModeDecrypt, KeyIvInit, block_padding::Pkcs7};
use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use zeroize::Zeroizing;

use super::{
    algorithm::CipherAlgorithm,
    iv::IvKind,
    memory::keep_in_memory,
    sector::SectorCipher,
    spec::{CipherMode, CipherSpec},
};
use crate::{Error, Result};

/// A passphrase or key. It is zeroized when dropped and never printed.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the value over; the caller's buffer becomes the secret's.
    #[must_use]
    pub fn new(value: Vec<u8>) -> Self {
        keep_in_memory(value.as_slice());
        Self(Zeroizing::new(value))
    }

    /// The value itself.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// How the text of a secret is to be read (`format=`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SecretFormat {
    /// The bytes as they are.
    #[default]
    Raw,
    /// Base64 of the bytes; line breaks are ignored.
    Base64,
}

impl SecretFormat {
    /// Parses `raw` or `base64`.
    ///
    /// # Errors
    /// `InvalidArgument` for anything else.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "raw" => Ok(Self::Raw),
            "base64" => Ok(Self::Base64),
            _ => Err(Error::invalid(format!(
                "secret format '{name}' is neither raw nor base64"
            ))),
        }
    }
}

/// What an encrypted secret is encrypted with: `keyid=` looked up, and `iv=` as it was given.
#[derive(Debug, Clone, Copy)]
pub struct SealedUnder<'a> {
    /// The master secret, decoded: 32 bytes.
    pub master: &'a Secret,
    /// Base64 of the 16-byte IV.
    pub iv: &'a str,
}

/// Decodes the text of a secret. With `sealed` the text, after its base64 where that is the format, is AES-256-CBC with
/// PKCS#7 padding.
///
/// # Errors
/// `InvalidArgument` for broken base64, a master key that is not 32 bytes, an IV that is not 16, and data that does not
/// decrypt under them.
pub fn decode_secret(text: &[u8], format: SecretFormat, sealed: Option<SealedUnder<'_>>) -> Result<Secret> {
    let bytes = match format {
        SecretFormat::Raw => Zeroizing::new(text.to_vec()),
        SecretFormat::Base64 => from_base64(text, "data of the secret")?,
    };
    match sealed {
        None => Ok(Secret(bytes)),
        Some(sealed) => unseal(bytes, sealed),
    }
}

fn unseal(mut bytes: Zeroizing<Vec<u8>>, sealed: SealedUnder<'_>) -> Result<Secret> {
    let key: &[u8; 32] = sealed.master.bytes().try_into().map_err(|_| {
        Error::invalid(format!(
            "the master key has {} bytes where 32 are needed",
            sealed.master.bytes().len()
        ))
    })?;
    let iv = from_base64(sealed.iv.as_bytes(), "iv of the secret")?;
    let iv: &[u8; 16] = iv
        .as_slice()
        .try_into()
        .map_err(|_| Error::invalid(format!("the iv has {} bytes where 16 are needed", iv.len())))?;
    let cipher = cbc::Decryptor::<aes::Aes256>::new(key.into(), iv.into());
    let wrong = |_| Error::invalid("the secret does not decrypt: master key, iv and data do not belong together");
    let len = cipher.decrypt_padded::<Pkcs7>(&mut bytes).map_err(wrong)?.len();
    bytes.truncate(len);
    Ok(Secret(bytes))
}

/// Base64 with or without its padding, line breaks and spaces ignored (`openssl enc -a` breaks lines).
pub(crate) fn from_base64(text: &[u8], what: &str) -> Result<Zeroizing<Vec<u8>>> {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let engine = GeneralPurpose::new(&STANDARD, config);
    let dense = Zeroizing::new(
        text.iter()
            .copied()
            .filter(|c| !c.is_ascii_whitespace())
            .collect::<Vec<u8>>(),
    );
    let decoded = engine.decode(dense.as_slice());
    decoded
        .map(Zeroizing::new)
        .map_err(|_| Error::invalid(format!("the {what} is not base64")))
}

/// Base64 with its padding.
pub(crate) fn to_base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// The cipher of legacy encrypted qcow and qcow2 (`encrypt.format=aes`): AES-128-CBC, the key being the first 16 bytes of the
/// passphrase filled up with zeros, the IV the number of the guest's 512-byte sector. Nothing in it can tell a wrong
/// passphrase.
///
/// # Errors
/// None in practice; the signature is that of all keyings.
pub fn legacy_qcow_cipher(passphrase: &Secret) -> Result<SectorCipher> {
    let mut key = Zeroizing::new([0_u8; 16]);
    key.iter_mut()
        .zip(passphrase.bytes())
        .for_each(|(to, from)| *to = *from);
    let spec = CipherSpec::new(CipherAlgorithm::Aes128, CipherMode::Cbc, IvKind::Plain64)?;
    SectorCipher::new(spec, key.as_slice(), 512)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Made with `openssl enc -aes-256-cbc -a -K $KEY -iv $IV` of OpenSSL 3.0.
    const MASTER: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const IV: &str = "8PHy8/T19vf4+fr7/P3+/w==";
    const SEALED: &str = "QavOmomxHLkHyfEppdflLerI2u7R7t5AXOXInfRD59s=";

    fn master() -> Secret {
        decode_secret(MASTER.as_bytes(), SecretFormat::Base64, None).unwrap()
    }

    #[test]
    fn raw_text_is_the_secret_itself() {
        let secret = decode_secret(b"letmein\n", SecretFormat::Raw, None).unwrap();
        assert_eq!(secret.bytes(), b"letmein\n");
    }

    #[test]
    fn what_openssl_encrypted_is_decrypted() {
        let under = SealedUnder {
            master: &master(),
            iv: IV,
        };
        let secret = decode_secret(SEALED.as_bytes(), SecretFormat::Base64, Some(under)).unwrap();
        assert_eq!(secret.bytes(), b"correct horse battery staple");
    }

    #[test]
    fn lines_and_missing_padding_of_base64_do_not_matter() {
        let broken = format!("{}\n{}\r\n", &SEALED[..20], SEALED[20..].trim_end_matches('='));
        let under = SealedUnder {
            master: &master(),
            iv: IV.trim_end_matches('='),
        };
        let secret = decode_secret(broken.as_bytes(), SecretFormat::Base64, Some(under)).unwrap();
        assert_eq!(secret.bytes(), b"correct horse battery staple");
    }

    #[test]
    fn another_master_key_does_not_decrypt() {
        let other = Secret::new(vec![7; 32]);
        let under = SealedUnder { master: &other, iv: IV };
        assert!(decode_secret(SEALED.as_bytes(), SecretFormat::Base64, Some(under)).is_err());
    }

    #[test]
    fn wrong_lengths_are_refused() {
        let (short, master) = (Secret::new(vec![7; 31]), master());
        for (master, iv, data) in [
            (&short, IV, SEALED),
            (&master, "AAAA", SEALED),
            (&master, IV, "AAAA"),
            (&master, IV, ""),
        ] {
            let under = Some(SealedUnder { master, iv });
            assert!(
                decode_secret(data.as_bytes(), SecretFormat::Base64, under).is_err(),
                "{iv} {data}"
            );
        }
        assert!(decode_secret(b"no*base64", SecretFormat::Base64, None).is_err());
    }

    #[test]
    fn a_secret_does_not_print_its_value() {
        assert_eq!(format!("{:?}", Secret::new(b"hunter2".to_vec())), "Secret(..)");
    }
}
