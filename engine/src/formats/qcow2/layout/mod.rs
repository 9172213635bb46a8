//! The bytes of qcow2: pure functions over slices, no I/O, no allocation sized by the input.
//!
//! Source of every rule: QEMU's `docs/interop/qcow2.rst`; where QEMU 10 is stricter, its bound is taken.

pub(super) mod entries;
pub(super) mod extensions;
pub(super) mod geometry;
pub(super) mod header;
pub(super) mod refcounts;

pub(super) use entries::{L1Entry, L2Entry, RefTableEntry, Subclusters};
pub(super) use extensions::{BitmapsExtension, Extension, Extensions};
pub(super) use geometry::Geometry;
pub(super) use header::{Autoclear, Compatible, Compression, Crypt, Header, Incompatible};

use crate::{Error, Result};

/// Big-endian `u32` at `at`.
///
/// # Errors
/// `Corrupt` when `bytes` ends before it.
pub(super) fn be32(bytes: &[u8], at: usize) -> Result<u32> {
    bytes
        .get(at..)
        .and_then(|b| b.first_chunk())
        .map(|b| u32::from_be_bytes(*b))
        .ok_or_else(|| short(at))
}

/// Big-endian `u64` at `at`.
///
/// # Errors
/// `Corrupt` when `bytes` ends before it.
pub(super) fn be64(bytes: &[u8], at: usize) -> Result<u64> {
    bytes
        .get(at..)
        .and_then(|b| b.first_chunk())
        .map(|b| u64::from_be_bytes(*b))
        .ok_or_else(|| short(at))
}

fn short(at: usize) -> Error {
    Error::corrupt(format!("a structure ends before its field at {at:#x}"))
}

/// A table of big-endian words as host words.
pub(super) fn words_from_be(bytes: &[u8]) -> Vec<u64> {
    let (words, _) = bytes.as_chunks();
    words.iter().map(|w| u64::from_be_bytes(*w)).collect()
}

/// A table of host words as big-endian bytes.
pub(super) fn words_to_be(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_be_bytes()).collect()
}
