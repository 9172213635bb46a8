//! Secrets by id, as `--object secret` options define them.

use std::collections::BTreeMap;

use zeroize::Zeroizing;

use super::secret::{SealedUnder, Secret, SecretFormat, decode_secret};
use crate::env::Secrets;
use crate::{Error, ErrorKind, Result};

/// A secret as its options give it: `data=` or the content of `file=`, `format=`, `keyid=` and `iv=`.
#[derive(Clone, Copy)]
pub struct SecretText<'a> {
    /// The text.
    pub data: &'a [u8],
    /// How to read it.
    pub format: SecretFormat,
    /// The id of the secret that it is encrypted under.
    pub keyid: Option<&'a str>,
    /// Base64 of the IV of that; given exactly when `keyid` is.
    pub iv: Option<&'a str>,
}

/// Decoded secrets.
#[derive(Debug, Default)]
pub struct Keyring(BTreeMap<String, Secret>);

impl Keyring {
    /// Knows none.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Decodes a secret and keeps it. The one it is encrypted under must be there already.
    ///
    /// # Errors
    /// `InvalidArgument` for an id that is taken, an unknown `keyid`, `iv` without `keyid` or the other way round, and what does not decode.
    pub fn add(&mut self, id: &str, text: &SecretText<'_>) -> Result<()> {
        if id.is_empty() || self.0.contains_key(id) {
            return Err(Error::invalid(format!(
                "a secret needs an id of its own, '{}' is not one",
                id.escape_debug()
            )));
        }
        let sealed = match (text.keyid, text.iv) {
            (None, None) => None,
            (Some(keyid), Some(iv)) => {
                let unknown = || Error::invalid(format!("secret '{id}' names the key '{keyid}', which is not defined"));
                Some(SealedUnder {
                    master: self.0.get(keyid).ok_or_else(unknown)?,
                    iv,
                })
            }
            (Some(_), None) => return Err(Error::invalid(format!("secret '{id}' is encrypted, but has no iv"))),
            (None, Some(_)) => return Err(Error::invalid(format!("secret '{id}' has an iv, but no keyid"))),
        };
        let secret =
            decode_secret(text.data, text.format, sealed).map_err(|error| error.at(format!("secret '{id}'")))?;
        self.0.insert(id.to_owned(), secret);
        Ok(())
    }

    /// A decoded secret.
    #[must_use]
    pub fn secret(&self, id: &str) -> Option<&Secret> {
        self.0.get(id)
    }
}

impl Secrets for Keyring {
    fn get(&self, id: &str) -> Result<Zeroizing<Vec<u8>>> {
        let unknown = || {
            Error::new(
                ErrorKind::WrongKey,
                format!("no secret with id '{}'", id.escape_debug()),
            )
        };
        self.0
            .get(id)
            .map(|secret| secret.bytes().to_vec().into())
            .ok_or_else(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(data: &[u8]) -> SecretText<'_> {
        SecretText {
            data,
            format: SecretFormat::Raw,
            keyid: None,
            iv: None,
        }
    }

    #[test]
    fn a_secret_under_another_is_decoded_through_it() {
        let mut keys = Keyring::new();
        let master = b"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        keys.add(
            "master",
            &SecretText {
                format: SecretFormat::Base64,
                ..raw(master)
            },
        )
        .unwrap();
        // Made with `openssl enc -aes-256-cbc -a -K $KEY -iv $IV` of OpenSSL 3.0.
        let sealed = SecretText {
            data: b"QavOmomxHLkHyfEppdflLerI2u7R7t5AXOXInfRD59s=",
            format: SecretFormat::Base64,
            keyid: Some("master"),
            iv: Some("8PHy8/T19vf4+fr7/P3+/w=="),
        };
        keys.add("sec", &sealed).unwrap();
        assert_eq!(keys.get("sec").unwrap().as_slice(), b"correct horse battery staple");
        assert!(keys.add("two", &SecretText { keyid: None, ..sealed }).is_err());
        assert!(keys.add("two", &SecretText { iv: None, ..sealed }).is_err());
        assert!(
            keys.add(
                "two",
                &SecretText {
                    keyid: Some("none"),
                    ..sealed
                }
            )
            .is_err()
        );
    }

    #[test]
    fn ids_are_unique_and_unknown_ones_have_no_key() {
        let mut keys = Keyring::new();
        keys.add("a", &raw(b"x")).unwrap();
        assert!(keys.add("a", &raw(b"y")).is_err());
        assert_eq!(keys.get("b").unwrap_err().kind(), ErrorKind::WrongKey);
        assert!(!format!("{keys:?}").contains('x'));
    }
}
