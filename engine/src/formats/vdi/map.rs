//! The block map in memory, with what of it the file does not have yet.

use std::ops::Range;

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

use super::layout::{Entry, Header, MOVED_AT_MOST};
use crate::formats::common::check_table;
use crate::storage::read_vec;
use crate::{Error, Limits, Result, Storage, StorageRef};

/// Entries of the map that are written as one piece: a sector's worth.
const PIECE: usize = 128;

/// The block map and the next free place behind the blocks of the file.
#[derive(Debug)]
pub(super) struct BlockMap {
    entries: Vec<U32>,
    /// Index of the next new block: behind every block that the header or the map knows.
    next: u64,
    /// Pieces that differ from the file's.
    dirty: Vec<bool>,
    any_dirty: bool,
    /// One past the highest index that the file could hold.
    bound: u64,
}

/// What is wrong with a map as such.
#[derive(Debug, Default)]
pub(super) struct Damage {
    /// Guest blocks whose entry is no block of the image.
    pub outside: Vec<u64>,
    /// Guest blocks whose place an earlier guest block has already.
    pub shared: Vec<u64>,
}

/// Bytes of a map, which may be as long as the limits allow.
pub(super) fn check_size(blocks: u64, limits: &Limits) -> Result<u64> {
    let bytes = blocks.saturating_mul(4);
    check_table("the block map", bytes, limits)?;
    Ok(bytes)
}

impl BlockMap {
    /// Reads the map. The caller decides about [`damage`](Self::damage).
    ///
    /// # Errors
    /// `LimitExceeded` for a map over the limit, `Corrupt` for one that the file cannot hold, `Io`.
    pub fn read(file: &StorageRef, header: &Header, limits: &Limits) -> Result<Self> {
        let bytes = check_size(header.blocks, limits)?;
        let len = usize::try_from(bytes).map_err(|_| Error::limit(format!("a block map of {bytes} bytes")))?;
        let raw = read_vec(file.as_ref(), header.map_offset, len).map_err(|e| e.at("block map"))?;
        let bound = index_bound(file.len()?, header);
        Ok(Self::from_bytes(&raw, header.allocated, bound))
    }
    /// Takes a table as bytes; `allocated` is the header's count of blocks, `bound` one past the highest index that can be true.
    pub fn from_bytes(raw: &[u8], allocated: u64, bound: u64) -> Self {
        let whole = raw.get(..raw.len() / 4 * 4).unwrap_or_default();
        let entries = <[U32]>::ref_from_bytes(whole).unwrap_or_default().to_vec();
        let used = entries.iter().filter_map(|e| index_of(*e)).filter(|i| *i < bound).max();
        Self {
            next: used.map_or(0, |i| i + 1).max(allocated),
            dirty: vec![false; entries.len().div_ceil(PIECE)],
            any_dirty: false,
            entries,
            bound,
        }
    }

    pub fn next(&self) -> u64 {
        self.next
    }
    /// One past the highest index that can be true.
    pub fn bound(&self) -> u64 {
        self.bound
    }
    /// Says that blocks from `next` on are gone from the file.
    pub fn set_next(&mut self, next: u64) {
        self.next = next;
    }
    /// The entry of a guest block; `Free` past the end.
    pub fn get(&self, block: u64) -> Entry {
        let raw = usize::try_from(block).ok().and_then(|b| self.entries.get(b));
        raw.map_or(Entry::Free, |e| Entry::decode(e.get()))
    }
    /// Changes an entry in memory.
    pub fn set(&mut self, block: u64, entry: Entry) {
        let Ok(at) = usize::try_from(block) else { return };
        if let (Some(slot), Some(dirty)) = (self.entries.get_mut(at), self.dirty.get_mut(at / PIECE)) {
            slot.set(entry.encode());
            *dirty = true;
            self.any_dirty = true;
            if let Entry::Block(index) = entry {
                self.next = self.next.max(u64::from(index) + 1);
                self.bound = self.bound.max(self.next);
            }
        }
    }
    /// Adds free entries at the end. The file's map has them already.
    pub fn grow(&mut self, blocks: u64) {
        let blocks = usize::try_from(blocks).unwrap_or(usize::MAX);
        self.entries
            .resize(blocks.max(self.entries.len()), U32::new(Entry::Free.encode()));
        self.dirty.resize(self.entries.len().div_ceil(PIECE), false);
        self.bound = self.bound.max(self.entries.len() as u64);
    }
    /// All entries in order.
    pub fn entries(&self) -> impl Iterator<Item = (u64, Entry)> {
        (0..).zip(self.entries.iter().map(|e| Entry::decode(e.get())))
    }
    /// The table as bytes.
    pub fn bytes(&self) -> &[u8] {
        self.entries.as_bytes()
    }
    pub fn is_dirty(&self) -> bool {
        self.any_dirty
    }
    pub fn mark_clean(&mut self) {
        self.dirty.fill(false);
        self.any_dirty = false;
    }
    /// Writes the pieces that changed, neighbours together.
    pub fn write_dirty(&self, file: &dyn Storage, map_offset: u64) -> Result<()> {
        let mut piece = 0;
        while piece < self.dirty.len() {
            let run = self.dirty[piece..].iter().take_while(|d| **d).count();
            if run > 0 {
                let range = piece * PIECE..((piece + run) * PIECE).min(self.entries.len());
                self.write(file, map_offset, range)?;
            }
            piece += run + 1;
        }
        Ok(())
    }
    fn write(&self, file: &dyn Storage, map_offset: u64, range: Range<usize>) -> Result<()> {
        let at = map_offset + range.start as u64 * 4;
        file.write_at(at, self.entries.get(range).unwrap_or_default().as_bytes())
    }

    /// Indexes of the image that no entry has, lowest first.
    pub fn unused(&self) -> Vec<u64> {
        let mut used: Vec<u64> = self.entries.iter().filter_map(|e| index_of(*e)).collect();
        used.sort_unstable();
        used.dedup();
        let mut used = used.into_iter().peekable();
        let all = 0..self.entries.len() as u64;
        all.filter(|index| used.next_if_eq(index).is_none()).collect()
    }
    /// Looks for entries that cannot be true.
    pub fn damage(&self) -> Damage {
        let mut damage = Damage::default();
        let mut seen = vec![0u64; usize::try_from(self.bound.div_ceil(64)).unwrap_or(0)];
        for (block, entry) in self.entries() {
            let Entry::Block(index) = entry else { continue };
            match seen.get_mut(index as usize / 64) {
                Some(bits) if u64::from(index) < self.bound => {
                    let bit = 1 << (index % 64);
                    if *bits & bit != 0 {
                        damage.shared.push(block);
                    }
                    *bits |= bit;
                }
                _ => damage.outside.push(block),
            }
        }
        damage
    }
}

/// Indexes are below the count of blocks, except while the map of a full image is moved to grow it: then they are in the file at least.
fn index_bound(file_len: u64, header: &Header) -> u64 {
    let in_file = file_len.saturating_sub(header.data_offset) / header.stride();
    in_file.min(header.blocks + MOVED_AT_MOST).max(header.blocks)
}

fn index_of(raw: U32) -> Option<u64> {
    match Entry::decode(raw.get()) {
        Entry::Block(index) => Some(u64::from(index)),
        Entry::Free | Entry::Zero => None,
    }
}
