//! Refcounts of host clusters: looking them up, giving clusters out, taking them back.
//!
//! What is in memory never counts less than what the file's tables refer to: clusters are counted before something points to them, and given
//! back only after the pointer's end is stable. So changed blocks may be written at any time; only the refcount table must wait until the
//! blocks that it names are stable.

mod allocate;
mod growth;

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use super::host::Host;
use super::layout::refcounts::RefcountWidth;
use super::layout::{Geometry, Header, RefTableEntry, words_to_be};
use super::metadata::MetadataMap;
use crate::{Error, Result};

/// A refcount block in memory.
struct Block {
    bytes: Vec<u8>,
    /// Bytes that differ from the file.
    dirty: Range<usize>,
}

/// Refcount table and blocks of a writable image.
pub(super) struct Refcounts {
    host: Arc<Host>,
    metadata: Arc<RwLock<MetadataMap>>,
    geometry: Geometry,
    width: RefcountWidth,
    table_at: u64,
    table: Vec<u64>,
    table_dirty: BTreeSet<usize>,
    blocks: HashMap<usize, Block>,
    most_blocks: usize,
    /// No cluster below this number is free.
    hint: u64,
    /// Bytes from here on were never written.
    fresh_from: u64,
}

/// What one pass over a refcount block's range does.
enum Change {
    Up,
    /// By so many.
    Down(u64),
}

impl Refcounts {
    /// Takes over the table as it was read; `table` may be shorter than the header says where the file ends.
    pub fn new(
        host: Arc<Host>,
        metadata: Arc<RwLock<MetadataMap>>,
        geometry: Geometry,
        header: &Header,
        table: Vec<u64>,
        cache_bytes: u64,
    ) -> Result<Self> {
        let fresh_from = if host.file.can_resize() {
            host.file.len()?
        } else {
            u64::MAX
        };
        Ok(Self {
            width: RefcountWidth::new(header.refcount_order),
            table_at: header.reftable_offset,
            table,
            table_dirty: BTreeSet::new(),
            blocks: HashMap::new(),
            most_blocks: usize::try_from(cache_bytes >> geometry.cluster_bits)
                .unwrap_or(usize::MAX)
                .max(4),
            hint: 0,
            fresh_from,
            host,
            metadata,
            geometry,
        })
    }

    /// Refcounts in one block.
    pub fn per_block(&self) -> u64 {
        self.width.count(self.geometry.cluster_size())
    }
    /// Width of a refcount.
    pub fn width(&self) -> RefcountWidth {
        self.width
    }
    /// Where the table is, and its length in clusters.
    pub fn table_place(&self) -> (u64, u64) {
        (self.table_at, self.geometry.clusters(self.table.len() as u64 * 8))
    }
    /// The table's entries.
    pub fn table(&self) -> &[u64] {
        &self.table
    }
    /// Whether a host range was never written, so that it reads as zeroes once the file reaches it.
    pub fn is_fresh(&self, at: u64) -> bool {
        at >= self.fresh_from
    }
    /// How many bytes at the start of a host range may hold old ones. Those behind them are fresh.
    pub fn old_part(&self, at: u64, len: u64) -> u64 {
        self.fresh_from.saturating_sub(at).min(len)
    }
    /// Everything up to `end` may hold old bytes from now on.
    pub fn no_longer_fresh(&mut self, end: u64) {
        self.fresh_from = self.fresh_from.max(end);
    }

    /// The last cluster with a refcount.
    pub fn last_used(&mut self) -> Result<u64> {
        let width = self.width;
        let per = self.per_block();
        for index in (0..self.table.len()).rev() {
            let Some(block) = self.block(index)? else { continue };
            if let Some(slot) = width.last_used(&block.bytes) {
                return Ok(index as u64 * per + slot);
            }
        }
        Ok(0)
    }
    /// Takes the table as it is in the file now, and forgets all blocks.
    pub fn reload(&mut self, at: u64, table: Vec<u64>) {
        self.table_at = at;
        self.table = table;
        self.table_dirty.clear();
        self.blocks.clear();
        self.hint = 0;
    }
    /// Takes over structures that were just written.
    pub fn adopt(&mut self, width: RefcountWidth, at: u64, table: Vec<u64>) {
        self.width = width;
        self.no_longer_fresh(at + table.len() as u64 * 8);
        self.reload(at, table);
    }

    fn split(&self, cluster: u64) -> (usize, usize) {
        let per = self.per_block();
        (
            usize::try_from(cluster / per).unwrap_or(usize::MAX),
            (cluster % per) as usize,
        )
    }

    fn block_at(&self, index: usize) -> Result<Option<u64>> {
        let raw = self.table.get(index).copied().unwrap_or(0);
        RefTableEntry::decode(raw, &self.geometry)
    }

    /// The block of this table index; `None` where there is none.
    fn block(&mut self, index: usize) -> Result<Option<&mut Block>> {
        let Some(at) = self.block_at(index)? else {
            return Ok(None);
        };
        if !self.blocks.contains_key(&index) {
            self.make_room()?;
            self.read_metadata().refuse_shared("refcount block", at)?;
            let bytes = crate::storage::read_vec(self.host.file.as_ref(), at, self.geometry.cluster_len())?;
            self.blocks.insert(index, Block { bytes, dirty: 0..0 });
        }
        Ok(self.blocks.get_mut(&index))
    }

    fn make_room(&mut self) -> Result<()> {
        if self.blocks.len() < self.most_blocks {
            return Ok(());
        }
        self.write_blocks()?;
        self.blocks.clear();
        Ok(())
    }

    fn read_metadata(&self) -> std::sync::RwLockReadGuard<'_, MetadataMap> {
        self.metadata.read().unwrap_or_else(PoisonError::into_inner)
    }
    fn write_metadata(&self) -> std::sync::RwLockWriteGuard<'_, MetadataMap> {
        self.metadata.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The refcount of a cluster.
    pub fn get(&mut self, cluster: u64) -> Result<u64> {
        let (index, slot) = self.split(cluster);
        let width = self.width;
        Ok(self.block(index)?.map_or(0, |b| width.get(&b.bytes, slot)))
    }

    /// # Errors
    /// `Corrupt` when one of these clusters, which tables refer to so many times, counts fewer users.
    pub fn require_users(&mut self, range: Range<u64>, times: u64) -> Result<()> {
        for cluster in range {
            let now = self.get(cluster)?;
            if now < times {
                return Err(too_few(cluster << self.geometry.cluster_bits, now, times));
            }
        }
        Ok(())
    }

    /// Counts one more user of each cluster.
    ///
    /// # Errors
    /// `Unsupported` when a refcount has no room; nothing is changed then for the failing cluster and those after it.
    pub fn increment(&mut self, range: Range<u64>) -> Result<()> {
        self.change(range, Change::Up).map(|_| ())
    }

    /// Counts one user less of each cluster; gives the ranges that nobody uses any more.
    pub fn decrement(&mut self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        self.decrement_by(range, 1)
    }

    /// Counts so many users less of each cluster; gives the ranges that nobody uses any more.
    pub fn decrement_by(&mut self, range: Range<u64>, times: u64) -> Result<Vec<Range<u64>>> {
        self.change(range, Change::Down(times))
    }

    fn change(&mut self, range: Range<u64>, change: Change) -> Result<Vec<Range<u64>>> {
        let width = self.width;
        let mut freed: Vec<Range<u64>> = Vec::new();
        for cluster in range {
            let (index, slot) = self.split(cluster);
            let bits = self.geometry.cluster_bits;
            let Some(block) = self.block(index)? else {
                return Err(too_few(cluster << bits, 0, 1));
            };
            let now = width.get(&block.bytes, slot);
            let new = match change {
                Change::Up if now == width.max() => {
                    return Err(Error::unsupported(format!(
                        "the cluster at {:#x} has the largest refcount of {} bits",
                        cluster << bits,
                        1u64 << width.order()
                    )));
                }
                Change::Up => now + 1,
                Change::Down(times) => now
                    .checked_sub(times)
                    .ok_or_else(|| too_few(cluster << bits, now, times))?,
            };
            width.set(&mut block.bytes, slot, new);
            let touched = width.bytes_of(slot);
            block.dirty = if block.dirty.is_empty() {
                touched
            } else {
                block.dirty.start.min(touched.start)..block.dirty.end.max(touched.end)
            };
            if new == 0 {
                self.hint = self.hint.min(cluster);
                match freed.last_mut() {
                    Some(last) if last.end == cluster => last.end += 1,
                    _ => freed.push(cluster..cluster + 1),
                }
            }
        }
        Ok(freed)
    }

    /// Writes the changed blocks, in rising order.
    pub fn write_blocks(&mut self) -> Result<()> {
        let mut dirty: Vec<usize> = self
            .blocks
            .iter()
            .filter(|(_, b)| !b.dirty.is_empty())
            .map(|(i, _)| *i)
            .collect();
        dirty.sort_unstable();
        for index in dirty {
            let Some(at) = self.block_at(index)? else { continue };
            let Some(block) = self.blocks.get_mut(&index) else {
                continue;
            };
            // Whole sectors: a torn write then keeps old and new counts apart.
            let (start, end) = (
                block.dirty.start & !511,
                block.dirty.end.next_multiple_of(512).min(block.bytes.len()),
            );
            self.fresh_from = self.fresh_from.max(at + self.geometry.cluster_size());
            self.host
                .file
                .write_at(at + start as u64, block.bytes.get(start..end).unwrap_or_default())?;
            block.dirty = 0..0;
        }
        Ok(())
    }

    /// Whether the table names blocks that the file's table does not.
    pub fn table_changed(&self) -> bool {
        !self.table_dirty.is_empty()
    }

    /// Writes the changed table entries. The blocks that they name must be stable.
    pub fn write_table(&mut self) -> Result<()> {
        let (Some(first), Some(last)) = (self.table_dirty.first(), self.table_dirty.last()) else {
            return Ok(());
        };
        let (first, last) = (first & !63, (last | 63).min(self.table.len().saturating_sub(1)));
        let words = self.table.get(first..=last).unwrap_or_default();
        self.host
            .file
            .write_at(self.table_at + first as u64 * 8, &words_to_be(words))?;
        self.table_dirty.clear();
        Ok(())
    }
}

fn too_few(at: u64, refcount: u64, users: u64) -> Error {
    Error::corrupt(match refcount {
        0 => format!("the cluster at {at:#x} is used, but its refcount is 0; run a repair"),
        _ => format!("the cluster at {at:#x} has {users} users, but its refcount is {refcount}; run a repair"),
    })
}
