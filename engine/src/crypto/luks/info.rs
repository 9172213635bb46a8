//! What a header says to people.

use super::v1;
use super::volume::{Form, LuksHeader};
use crate::crypto::HashAlgorithm;

/// Facts of a header; nothing secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LuksInfo {
    /// 1 or 2.
    pub version: u16,
    /// The volume's identity as text.
    pub uuid: String,
    /// Hash of the volume key's digest.
    pub hash: HashAlgorithm,
    /// PBKDF2 iterations of the volume key's digest.
    pub digest_iterations: u32,
    /// The key slots: all eight of LUKS1, those that exist of LUKS2.
    pub slots: Vec<LuksSlot>,
}

/// A key slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LuksSlot {
    /// Its number.
    pub number: u32,
    /// Whether something stands in it.
    pub active: bool,
    /// Whether it holds the key of the data, as far as the header tells: a LUKS2 slot may hold another key, or one that nobody here can read.
    pub holds_key: bool,
    /// Whether that key opens the data without being asked for by number: a LUKS2 slot of priority 0 is to be ignored.
    pub opens_data: bool,
    /// Name of the derivation: `pbkdf2`, `argon2i`, `argon2id`, or `unknown`.
    pub kdf: &'static str,
    /// PBKDF2 iterations, or passes of Argon2; 0 when empty.
    pub iterations: u32,
    /// Memory of Argon2 in KiB; 0 for PBKDF2.
    pub memory_kib: u32,
    /// First byte of the key material, from the start of the header.
    pub key_offset: u64,
    /// Stripes of the anti-forensic splitter.
    pub stripes: u32,
}

impl LuksHeader {
    /// What is wrong with one of the two copies of a LUKS2 header, if something is: it is damaged or out of date.
    #[must_use]
    pub fn damaged_copy(&self) -> Option<&str> {
        match &self.form {
            Form::V1(_) => None,
            Form::V2(header) => header.damaged_copy.as_deref(),
        }
    }

    /// Facts of the header.
    #[must_use]
    pub fn info(&self) -> LuksInfo {
        match &self.form {
            Form::V1(header) => v1_info(header),
            Form::V2(header) => header.info(),
        }
    }
}

fn v1_info(header: &v1::Header) -> LuksInfo {
    let slots = header.slots.iter().zip(0..).map(|(slot, number)| LuksSlot {
        number,
        active: slot.iterations.is_some(),
        holds_key: slot.iterations.is_some(),
        opens_data: slot.iterations.is_some(),
        kdf: "pbkdf2",
        iterations: slot.iterations.unwrap_or(0),
        memory_kib: 0,
        key_offset: slot.key_offset,
        stripes: v1::STRIPES,
    });
    LuksInfo {
        version: 1,
        uuid: header.uuid.clone(),
        hash: header.hash,
        digest_iterations: header.key_digest_iterations(),
        slots: slots.collect(),
    }
}
