//! The error of the ciphers and key derivations.

use std::fmt;

/// Why a cryptographic step failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CryptoErrorKind {
    /// The name of a cipher, mode, IV generator or hash is known to nobody here, or the combination makes no sense.
    Unsupported,
    /// A length, a parameter or an encoding given by the caller is wrong.
    InvalidArgument,
    /// A key derivation would cost more than the limits allow.
    LimitExceeded,
    /// The caller's cancel check said so.
    Cancelled,
}

/// A failed cryptographic step. The text never holds key material.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CryptoError {
    /// What to do about it.
    pub kind: CryptoErrorKind,
    /// What was expected and what was found.
    pub what: String,
}

impl CryptoError {
    pub(crate) fn unsupported(what: impl Into<String>) -> Self {
        Self {
            kind: CryptoErrorKind::Unsupported,
            what: what.into(),
        }
    }

    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Self {
            kind: CryptoErrorKind::InvalidArgument,
            what: what.into(),
        }
    }

    pub(crate) fn limit(what: impl Into<String>) -> Self {
        Self {
            kind: CryptoErrorKind::LimitExceeded,
            what: what.into(),
        }
    }

    pub(crate) fn cancelled() -> Self {
        Self {
            kind: CryptoErrorKind::Cancelled,
            what: "key derivation was cancelled".into(),
        }
    }
}

impl fmt::Display for CryptoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for CryptoError {}
