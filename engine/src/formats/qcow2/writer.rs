//! What a writable image has not written yet, and the order in which it is written.
//!
//! Guest data is written at once; tables change in memory. [`Qcow2::write_back`] then makes the file follow, so that a crash between any two
//! writes loses nothing that was flushed before and leaves at most leaks:
//!
//! 1. refcount blocks and new L2 tables (nothing in the file refers to them yet); flush, which also makes guest data stable
//! 2. entries of the refcount table for new blocks; flush
//! 3. changed L2 tables, then L1 entries of new ones; flush
//! 4. clusters that nothing refers to any more are counted down and given back

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::PoisonError;

use super::bitmaps::LiveBitmaps;
use super::image::{Qcow2, Shared};
use super::layout::{L1Entry, words_to_be};
use super::refcounts::Refcounts;
use super::releases::{Release, Releases};
use crate::Result;

/// What writers know and readers need not.
pub(super) struct Writer {
    pub refcounts: Refcounts,
    /// L1 entries that differ from the file.
    pub l1_dirty: BTreeSet<usize>,
    pub released: Releases,
    /// Where the last compressed cluster ended; 0 when the next one starts a new cluster.
    pub packed_end: u64,
    /// Dirty bitmaps while they may change.
    pub live: Option<LiveBitmaps>,
    /// Whether the first change was prepared for.
    pub prepared: bool,
}

impl Writer {
    pub fn new(refcounts: Refcounts) -> Self {
        Self {
            refcounts,
            l1_dirty: BTreeSet::new(),
            released: Releases::default(),
            packed_end: 0,
            live: None,
            prepared: false,
        }
    }

    /// Notes that the file refers to some clusters once less, as soon as its tables are written.
    pub fn release(&mut self, clusters: Range<u64>, discard: bool) {
        self.released.add(clusters, discard);
    }
}

impl Qcow2 {
    /// Makes the file's tables follow those in memory.
    pub fn write_back(&self, writer: &mut Writer) -> Result<()> {
        let (fresh, linked) = self.changed_tables(writer)?;
        writer.refcounts.write_blocks()?;
        self.host.grow()?;
        if writer.refcounts.table_changed() || !linked.is_empty() || !writer.l1_dirty.is_empty() {
            self.host.flush()?;
        }
        if writer.refcounts.table_changed() {
            writer.refcounts.write_table()?;
            self.host.flush()?;
        }
        for index in &linked {
            self.write_table(*index)?;
        }
        // Where it fails the file may refer to some of them all the same.
        self.write_l1(writer)
            .inspect_err(|_| self.write_shared().l2.linked(&fresh))?;
        let mut shared = self.write_shared();
        shared.l2.written(&fresh);
        shared.l2.written(&linked);
        drop(shared);
        self.give_back(writer)
    }

    /// Writes new L2 tables; gives their indices, and those of tables that have to wait.
    fn changed_tables(&self, writer: &mut Writer) -> Result<(Vec<usize>, Vec<usize>)> {
        let mut fresh: Vec<(u64, usize)> = Vec::new();
        let mut linked = Vec::new();
        for (index, changed) in self.read_shared().l2.changed() {
            if changed.linked {
                linked.push(index);
            } else {
                fresh.push((changed.at, index));
            }
        }
        fresh.sort_unstable();
        for (at, index) in &fresh {
            writer.refcounts.no_longer_fresh(at + self.geometry.cluster_size());
            self.write_table(*index)?;
        }
        Ok((fresh.into_iter().map(|(_, index)| index).collect(), linked))
    }

    fn write_table(&self, index: usize) -> Result<()> {
        let found = {
            let shared = self.read_shared();
            let changed = shared.l2.changed_at(index);
            changed.map(|c| (c.at, c.table.clone(), c.dirty.clone(), c.linked))
        };
        let Some((at, table, dirty, linked)) = found else {
            return Ok(());
        };
        let words = if linked {
            dirty.start & !63..dirty.end.next_multiple_of(64).min(table.len())
        } else {
            0..table.len()
        };
        let start = words.start as u64 * 8;
        self.host
            .file
            .write_at(at + start, &words_to_be(table.get(words).unwrap_or_default()))
    }

    /// Writes the changed L1 entries, in whole sectors.
    fn write_l1(&self, writer: &mut Writer) -> Result<()> {
        let shared = self.read_shared();
        let mut next = 0;
        for index in &writer.l1_dirty {
            if *index < next {
                continue;
            }
            let start = index & !63;
            next = start + 64;
            let words = shared.l1.get(start..next.min(shared.l1.len())).unwrap_or_default();
            self.host
                .file
                .write_at(shared.header.l1_offset + start as u64 * 8, &words_to_be(words))?;
        }
        writer.l1_dirty.clear();
        Ok(())
    }

    /// Step 4. The flush comes first: as long as the file may refer to a cluster, it is counted.
    fn give_back(&self, writer: &mut Writer) -> Result<()> {
        if writer.released.is_empty() {
            return Ok(());
        }
        self.host.flush()?;
        for release in writer.released.take() {
            self.free_now(writer, &release)?;
        }
        writer.refcounts.write_blocks()
    }

    /// Counts clusters down at once: for those that nothing in the file refers to.
    pub fn free_now(&self, writer: &mut Writer, release: &Release) -> Result<()> {
        let bits = self.geometry.cluster_bits;
        *self.unpacked.lock().unwrap_or_else(PoisonError::into_inner) = None;
        for freed in writer.refcounts.decrement_by(release.clusters.clone(), release.times)? {
            if freed.contains(&(writer.packed_end >> bits)) {
                writer.packed_end = 0;
            }
            if release.discard {
                self.host
                    .file
                    .discard(freed.start << bits, (freed.end - freed.start) << bits)?;
            }
        }
        Ok(())
    }
}

impl Shared {
    /// Changes an L1 entry, in memory. What the table holds must be known there before the lock is given back.
    pub fn set_l1(&mut self, writer: &mut Writer, index: usize, entry: L1Entry) {
        if let Some(slot) = self.l1.get_mut(index) {
            *slot = entry.encode();
            writer.l1_dirty.insert(index);
        }
    }
}
