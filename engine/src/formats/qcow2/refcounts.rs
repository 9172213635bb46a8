//! Refcounts of host clusters: looking them up, giving clusters out, taking them back.
//!
//! What is in memory never counts less than what the file's tables refer to: clusters are counted before something points to them, and given
//! back only after the pointer's end is stable. So changed blocks may be written at any time; only the refcount table must wait until the
//! blocks that it names are stable.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use super::host::Host;
use super::layout::header::{MAX_HOST_OFFSET, MAX_REFTABLE_BYTES};
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
    Down,
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
    /// `Corrupt` when one of these clusters, which tables refer to, counts as free.
    pub fn require_used(&mut self, range: Range<u64>) -> Result<()> {
        for cluster in range {
            if self.get(cluster)? == 0 {
                return Err(uncounted(cluster << self.geometry.cluster_bits));
            }
        }
        Ok(())
    }

    /// The first free cluster from `from` on. Where there is no block, everything is free.
    fn next_free(&mut self, from: u64) -> Result<u64> {
        let width = self.width;
        let per = self.per_block();
        let mut cluster = from;
        loop {
            let (index, slot) = self.split(cluster);
            let Some(block) = self.block(index)? else {
                return Ok(cluster);
            };
            let found = (slot..per as usize).find(|s| width.get(&block.bytes, *s) == 0);
            if let Some(found) = found {
                return Ok(cluster - slot as u64 + found as u64);
            }
            cluster = (cluster / per + 1) * per;
        }
    }

    /// Takes up to `most` free clusters in a row: the first one and how many.
    ///
    /// # Errors
    /// `Corrupt` when the refcounts call something free that is not.
    pub fn allocate(&mut self, most: u64) -> Result<Range<u64>> {
        let width = self.width;
        loop {
            let first = self.next_free(self.hint)?;
            self.hint = first;
            self.check_reach(first)?;
            let (index, slot) = self.split(first);
            if self.ensure_block(index, &(first..first))? {
                continue;
            }
            let Some(block) = self.block(index)? else { continue };
            let count = width.count(block_len(block));
            let run = (slot..count as usize)
                .take(usize::try_from(most).unwrap_or(usize::MAX))
                .take_while(|s| width.get(&block.bytes, *s) == 0)
                .count() as u64;
            let range = first..first + run.max(1);
            self.take(range.clone())?;
            self.hint = range.end;
            return Ok(range);
        }
    }

    /// Takes exactly `count` clusters in a row.
    pub fn allocate_row(&mut self, count: u64) -> Result<u64> {
        let mut first = self.next_free(self.hint)?;
        let lowest = first;
        let mut end = first;
        while end - first < count {
            let free = self.next_free(end)?;
            if free != end {
                first = free;
            }
            end = free + 1;
        }
        self.check_reach(end)?;
        let row = first..end;
        let (from, to) = (self.split(first).0, self.split(end - 1).0);
        for index in from..=to {
            self.ensure_block(index, &row)?;
        }
        self.take(row)?;
        if first == lowest {
            self.hint = end;
        }
        Ok(first)
    }

    fn check_reach(&self, cluster: u64) -> Result<()> {
        if cluster >= MAX_HOST_OFFSET >> self.geometry.cluster_bits {
            return Err(Error::limit("the image file would grow past 2^56 bytes"));
        }
        Ok(())
    }

    fn take(&mut self, range: Range<u64>) -> Result<()> {
        let bits = self.geometry.cluster_bits;
        self.read_metadata()
            .refuse_data(range.start << bits, (range.end - range.start) << bits)
            .map_err(|e| {
                self.host.note_damage();
                Error::corrupt("the refcounts call used clusters free; run a repair").because(e)
            })?;
        self.change(range, Change::Up).map(|_| ())
    }

    /// Makes sure that there is a refcount block, without using clusters in `avoid`; true when one was made.
    fn ensure_block(&mut self, index: usize, avoid: &Range<u64>) -> Result<bool> {
        if index >= self.table.len() {
            self.grow_table(index as u64 + 1, avoid.end)?;
            return Ok(true);
        }
        if self.block_at(index)?.is_some() {
            return Ok(false);
        }
        loop {
            let mut place = self.next_free(self.hint)?;
            if avoid.contains(&place) {
                place = self.next_free(avoid.end)?;
            }
            let (home, _) = self.split(place);
            if home >= self.table.len() {
                self.grow_table(home as u64 + 1, avoid.end)?;
            } else if home == index || self.block_at(home)?.is_some() {
                self.new_block(index, place)?;
                return Ok(true);
            } else {
                // Its own range has no block yet: that block goes there and counts itself.
                self.new_block(home, place)?;
            }
        }
    }

    fn new_block(&mut self, index: usize, place: u64) -> Result<()> {
        self.make_room()?;
        let at = place << self.geometry.cluster_bits;
        self.read_metadata().refuse_data(at, 1)?;
        let len = self.geometry.cluster_len();
        self.blocks.insert(
            index,
            Block {
                bytes: vec![0; len],
                dirty: 0..len,
            },
        );
        self.table[index] = at;
        self.table_dirty.insert(index);
        self.change(place..place + 1, Change::Up)?;
        self.write_metadata().add(at, 1);
        Ok(())
    }

    /// Moves the table to a longer place behind everything that the present one covers, with the blocks that count that place.
    ///
    /// Order: blocks, new table, flush, header, flush, then the old table is free.
    fn grow_table(&mut self, entries: u64, past: u64) -> Result<()> {
        let per = self.per_block();
        let old = self.table_place();
        let start = (self.table.len() as u64 * per).max(past);
        let first_block = start / per;
        let mut wanted = entries.max(self.table.len() as u64 * 3 / 2);
        let (table_clusters, end_block) = loop {
            let table_clusters = self.geometry.clusters(wanted * 8);
            let mut blocks = 1;
            while (start + table_clusters + blocks).div_ceil(per) - first_block > blocks {
                blocks += 1;
            }
            if first_block + blocks <= table_clusters * (self.geometry.cluster_size() / 8) {
                break (table_clusters, first_block + blocks);
            }
            wanted = (wanted + 1).max(first_block + blocks);
        };
        if table_clusters << self.geometry.cluster_bits > MAX_REFTABLE_BYTES {
            return Err(Error::limit(
                "the refcount table cannot grow further; use larger clusters",
            ));
        }
        let old_len = self.table.len();
        let len = (table_clusters << self.geometry.cluster_bits) / 8;
        self.table.resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
        self.move_table(start, first_block..end_block, table_clusters)
            .inspect_err(|_| self.undo_growth(old_len))?;
        let old_first = old.0 >> self.geometry.cluster_bits;
        self.write_metadata().remove(old.0, old.1 << self.geometry.cluster_bits);
        self.change(old_first..old_first + old.1, Change::Down)?;
        self.hint = self.hint.min(old_first);
        Ok(())
    }

    fn undo_growth(&mut self, old_len: usize) {
        let bits = self.geometry.cluster_bits;
        for at in self.table.split_off(old_len).into_iter().filter(|at| *at != 0) {
            self.write_metadata().remove(at, 1 << bits);
        }
        self.blocks.retain(|index, _| *index < old_len);
        self.table_dirty.split_off(&old_len);
    }

    fn move_table(&mut self, start: u64, blocks: Range<u64>, table_clusters: u64) -> Result<()> {
        for (place, index) in (start..).zip(blocks.clone()) {
            self.new_block(index as usize, place)?;
        }
        let first = start + (blocks.end - blocks.start);
        self.change(first..first + table_clusters, Change::Up)?;
        let at = first << self.geometry.cluster_bits;
        self.write_blocks()?;
        self.host.file.write_at(at, &words_to_be(&self.table))?;
        self.host.flush()?;
        let (_, clusters) = self.table_place();
        let clusters = u32::try_from(clusters).map_err(|_| Error::limit("the refcount table is too large"))?;
        let mut field = at.to_be_bytes().to_vec();
        field.extend_from_slice(&clusters.to_be_bytes());
        self.host.file.write_at(Header::AT_REFTABLE, &field)?;
        self.host.flush()?;
        self.table_at = at;
        self.table_dirty.clear();
        self.write_metadata()
            .add(at, u64::from(clusters) << self.geometry.cluster_bits);
        self.no_longer_fresh(at + self.table.len() as u64 * 8);
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
        self.change(range, Change::Down)
    }

    fn change(&mut self, range: Range<u64>, change: Change) -> Result<Vec<Range<u64>>> {
        let width = self.width;
        let mut freed: Vec<Range<u64>> = Vec::new();
        for cluster in range {
            let (index, slot) = self.split(cluster);
            let bits = self.geometry.cluster_bits;
            let Some(block) = self.block(index)? else {
                return Err(uncounted(cluster << bits));
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
                Change::Down => now.checked_sub(1).ok_or_else(|| uncounted(cluster << bits))?,
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
            self.host
                .file
                .write_at(at + start as u64, block.bytes.get(start..end).unwrap_or_default())?;
            block.dirty = 0..0;
            self.fresh_from = self.fresh_from.max(at + self.geometry.cluster_size());
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

fn block_len(block: &Block) -> u64 {
    block.bytes.len() as u64
}

fn uncounted(at: u64) -> Error {
    Error::corrupt(format!(
        "the cluster at {at:#x} is used, but its refcount is 0; run a repair"
    ))
}
