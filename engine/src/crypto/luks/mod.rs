//! LUKS volumes: a header with key slots in front of, or apart from, encrypted data.
//!
//! [`LuksHeader`] reads, checks, creates and changes headers on any storage, the header at its byte 0: the `luks` format has it at the
//! start of the file, qcow2 in clusters of its own (give it a [`SliceStorage`](crate::storage::SliceStorage)). [`LuksVolume`] is a header
//! with its key: the cipher of the data. LUKS1 and LUKS2 are told apart by the version in the header.
//!
//! Refused: unknown ciphers and hashes and null ciphers (`Unsupported`); LUKS2 integrity and re-encryption in progress (`Unsupported`);
//! overlapping areas and what else contradicts the specifications (`Corrupt`); derivations beyond [`Limits`] (`LimitExceeded`). A wrong
//! passphrase is `WrongKey`, with the same words whatever the reason was.

mod cost;
mod describe;
mod info;
mod keys;
mod options;
mod v1;
mod v2;
mod volume;
mod wipe;

pub use cost::{KdfCost, KeyEnv, KeyWork, measure_argon2};
pub use describe::describe;
pub use info::{LuksInfo, LuksSlot};
pub use keys::{EraseKeys, NewKey};
pub use options::new_luks;
pub use volume::{LuksHeader, LuksVolume, NewLuks, VolumeLayout};

use zeroize::Zeroizing;

/// First bytes of every LUKS header.
pub const LUKS_MAGIC: [u8; 6] = *b"LUKS\xba\xbe";

/// Whether the first bytes of a file are a LUKS2 header whose magic alone is lost, with a second header where it says.
pub(crate) fn lost_its_magic(head: &[u8]) -> bool {
    v2::lost_its_magic(head)
}

/// A volume key and the slot it came from.
pub(crate) struct UnlockedKey {
    pub(crate) key: Zeroizing<Vec<u8>>,
    pub(crate) slot: u32,
}

/// Compares without a hint in the time it takes.
pub(crate) fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |sum, (x, y)| sum | (x ^ y)) == 0
}
