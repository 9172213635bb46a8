//! Ciphers over sectors, key derivation, the anti-forensic splitter and secrets.
//!
//! Supported: AES, Serpent and Twofish with 128, 192 and 256-bit keys, CAST5 with 128; ECB, CBC, CTR, XTS and LRW; the IV
//! generators null, plain, plain64, plain64be, essiv and benbi; SHA-1, SHA-2, RIPEMD-160 and Whirlpool; PBKDF2 and Argon2.
//! What is unknown is refused with [`ErrorKind::Unsupported`].

mod afsplit;
mod algorithm;
mod argon2;
mod bytes;
mod chain;
mod hash;
mod iv;
mod keyring;
mod lrw;
pub mod luks;
mod memory;
mod modes;
mod pbkdf2;
mod secret;
mod sector;
mod spec;
mod turns;
mod twofish;
mod xts;

pub use afsplit::{af_merge, af_split};
pub use algorithm::CipherAlgorithm;
use argon2::time_of_a_pass;
pub use argon2::{Argon2Cost, Argon2Limit, Argon2Variant, argon2};
pub(crate) use bytes::EncryptedBytes;
pub use hash::HashAlgorithm;
pub use iv::IvKind;
pub use keyring::{Keyring, SecretText};
pub use memory::{keep_in_memory, refuse_core_dumps};
pub use pbkdf2::{measure_pbkdf2, pbkdf2};
pub use secret::{SealedUnder, Secret, SecretFormat, decode_secret, legacy_qcow_cipher};
pub(crate) use secret::{from_base64, to_base64};
pub use sector::SectorCipher;
pub use spec::{CipherMode, CipherSpec};

#[cfg(test)]
mod oracle_tests;
#[cfg(test)]
mod vector_tests;
