//! The mapping that qed and qcow (version 1) share: an L1 table of offsets of L2 tables, whose 64-bit entries say where a cluster is.
//!
//! Changes of tables stay in memory until [`TwoLevel::flush`], which writes them in the order that a crash at any write survives:
//! guest data and empty new tables, flush, L2 entries, flush, L1 entries, flush. A crash in between loses what was not flushed and
//! leaves at most space at the end of the file that nothing refers to. Space is taken at the end of the file and never given back.

mod check;
mod data;
mod tables;
mod users;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Mutex, RwLock};

use crate::crypto::SectorCipher;
use crate::{Error, Result, StorageRef};
use tables::State;
pub(super) use users::Users;

/// Where a cluster is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Slot {
    /// Not in this layer.
    Unallocated,
    /// Reads as zeroes.
    Zero,
    /// Stored as is at this offset.
    Data(u64),
    /// Stored compressed.
    Compressed {
        /// First byte.
        at: u64,
        /// Stored bytes.
        len: u64,
    },
}

/// What differs between the formats.
pub(super) trait Codec: Send + Sync {
    /// What an L2 entry says. Offsets are checked against the file by the caller.
    fn decode(&self, entry: u64) -> Result<Slot>;
    /// The entry for a slot; `None` when the format cannot say it.
    fn encode(&self, slot: Slot) -> Option<u64>;
    /// Reads a compressed cluster into `out`, one whole cluster.
    fn inflate(&self, packed: &[u8], out: &mut [u8]) -> Result<()>;
    /// Whether guest data is stored encrypted.
    fn encrypted(&self) -> bool {
        false
    }
    /// The cipher of guest data, counted by where the guest sees it.
    ///
    /// # Errors
    /// `WrongKey` when the key is not known.
    fn cipher(&self) -> Result<Option<&SectorCipher>> {
        Ok(None)
    }
}

/// Shape of the tables.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// Bytes of a cluster, a power of two.
    pub cluster: u64,
    /// Entries of an L2 table, a power of two.
    pub l2_entries: u64,
    /// Where the L1 table is.
    pub l1_offset: u64,
    /// Entries of the L1 table that are used.
    pub l1_entries: u64,
    /// First byte that clusters and tables can have.
    pub first_free: u64,
    /// Whether entries are stored little-endian.
    pub little_endian: bool,
    /// New L2 tables and clusters get places at multiples of this.
    pub alignment: u64,
    /// Places that are not at multiples of this are refused.
    pub accepted_alignment: u64,
    /// Memory for clean cached tables, in bytes.
    pub cache_bytes: u64,
}

/// The mapping of one open image.
pub(super) struct TwoLevel<C> {
    file: StorageRef,
    codec: C,
    shape: Shape,
    /// Virtual size in bytes.
    size: AtomicU64,
    state: RwLock<State>,
    /// Held by whoever takes space or writes tables out; the number is the end of the used file.
    space: Mutex<Space>,
    /// The same end for readers that check offsets.
    end: AtomicU64,
    /// Pages changed and not yet written.
    dirty_pages: AtomicUsize,
    /// No two entries name one place, as far as a first write looks.
    looked: AtomicBool,
    /// Held while an encrypted sector is read, changed in part and written back.
    partial: Mutex<()>,
}

/// What the holder of the space lock knows.
#[derive(Debug)]
struct Space {
    end: u64,
    /// A flush failed: what is stable is no longer known, and later flushes must not say otherwise.
    broken: bool,
}

impl<C: Codec> TwoLevel<C> {
    /// Loads the L1 table. `Shape` and `size` come from a checked header.
    pub(super) fn open(file: StorageRef, codec: C, shape: Shape, size: u64, limits: &crate::Limits) -> Result<Self> {
        let bytes = shape
            .l1_entries
            .checked_mul(8)
            .ok_or_else(|| Error::corrupt("the L1 table is too large"))?;
        let raw = super::common::read_table(file.as_ref(), "the L1 table", shape.l1_offset, bytes, limits)?;
        let end = file.len()?.max(shape.first_free);
        Ok(Self {
            state: RwLock::new(State::new(tables::decode_entries(&raw, shape.little_endian))),
            space: Mutex::new(Space { end, broken: false }),
            end: end.into(),
            dirty_pages: AtomicUsize::new(0),
            looked: AtomicBool::new(false),
            partial: Mutex::new(()),
            file,
            codec,
            shape,
            size: size.into(),
        })
    }
}
