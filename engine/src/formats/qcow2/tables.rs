//! Changing L2 tables in memory: making them, unsharing them, replacing entries.

use std::sync::Arc;

use super::cache::Table;
use super::image::Qcow2;
use super::layout::{L1Entry, L2Entry};
use super::writer::Writer;
use crate::{Error, Result};

impl Qcow2 {
    /// Makes sure that the L2 table at `index` exists and belongs to the active image alone.
    pub fn ensure_table(&self, writer: &mut Writer, index: usize) -> Result<()> {
        let raw = {
            let shared = self.read_shared();
            if shared.l2.changed_at(index).is_some() {
                return Ok(());
            }
            shared.l1.get(index).copied().unwrap_or(0)
        };
        let bits = self.geometry.cluster_bits;
        match L1Entry::decode(raw, &self.geometry)? {
            L1Entry::Unallocated => {
                let zeroes = Arc::new(vec![0; self.geometry.l2_words()]);
                self.new_table(writer, index, zeroes)
            }
            L1Entry::Table { at, copied } => {
                let refcount = writer.refcounts.get(at >> bits)?;
                if refcount == 0 {
                    self.host.note_damage();
                    return Err(Error::corrupt(format!(
                        "the L2 table at {at:#x} has refcount 0; run a repair"
                    )));
                }
                if copied && refcount == 1 {
                    return Ok(());
                }
                let table = self.table(&self.read_shared(), index)?.unwrap_or_default();
                self.new_table(writer, index, table)?;
                self.write_metadata().remove(at, 1);
                writer.release(at >> bits..(at >> bits) + 1, false);
                Ok(())
            }
        }
    }

    fn new_table(&self, writer: &mut Writer, index: usize, table: Table) -> Result<()> {
        let at = writer.refcounts.allocate(1)?.start << self.geometry.cluster_bits;
        self.write_metadata().add(at, 1);
        // All at once: whoever sees the L1 entry sees the table, which the file does not have yet.
        let mut shared = self.write_shared();
        shared.set_l1(writer, index, L1Entry::Table { at, copied: true });
        shared.l2.forget(index);
        let words = 0..table.len();
        shared.l2.change(index, at, false, || table).touch(words);
        Ok(())
    }

    /// Where the active image's L2 table lies, if there is one.
    pub fn l2_table_place(&self, index: usize) -> Result<Option<u64>> {
        let raw = self.read_shared().l1.get(index).copied().unwrap_or(0);
        Ok(match L1Entry::decode(raw, &self.geometry)? {
            L1Entry::Table { at, .. } => Some(at),
            L1Entry::Unallocated => None,
        })
    }

    /// Takes an L2 table out of the active image.
    pub fn forget_table(&self, writer: &mut Writer, index: usize, at: u64, discard: bool) {
        let mut shared = self.write_shared();
        shared.set_l1(writer, index, L1Entry::Unallocated);
        shared.l2.forget(index);
        drop(shared);
        self.write_metadata().remove(at, 1);
        let cluster = at >> self.geometry.cluster_bits;
        writer.release(cluster..cluster + 1, discard);
    }

    /// The entry of a guest cluster.
    pub fn entry(&self, guest: u64) -> Result<L2Entry> {
        let shared = self.read_shared();
        match self.table(&shared, self.geometry.l1_index(guest))? {
            None => Ok(L2Entry::UNALLOCATED),
            Some(table) => self.decode_entry(&table, guest, shared.header.version),
        }
    }

    /// The entry of a guest cluster in its table.
    ///
    /// # Errors
    /// `Corrupt` for one that makes no sense, and for one that names another place in a data file than the guest's own.
    pub fn decode_entry(&self, table: &[u64], guest: u64, version: u32) -> Result<L2Entry> {
        let entry = L2Entry::decode(table, self.geometry.l2_index(guest), &self.geometry, version)?;
        entry
            .refuse_elsewhere(self.geometry.cluster_start(guest), &self.geometry)
            .inspect_err(|_| self.host.note_damage())?;
        Ok(entry)
    }

    /// The entries of `count` guest clusters, all in one L2 table, from `guest` on.
    pub fn entries(&self, guest: u64, count: u64) -> Result<Vec<L2Entry>> {
        let shared = self.read_shared();
        let first = self.geometry.l2_index(guest);
        let count = count.min(self.geometry.l2_entries() - first as u64) as usize;
        match self.table(&shared, self.geometry.l1_index(guest))? {
            None => Ok(vec![L2Entry::UNALLOCATED; count]),
            Some(table) => (0..count as u64)
                .map(|n| self.decode_entry(&table, guest + (n << self.geometry.cluster_bits), shared.header.version))
                .collect(),
        }
    }

    /// Replaces entries in a table that [`ensure_table`](Self::ensure_table) made ours, and lets go of what the old ones used.
    pub fn replace(&self, writer: &mut Writer, guest: u64, new: &[L2Entry], discard: bool) -> Result<()> {
        let old = self.entries(guest, new.len() as u64)?;
        self.set_entries(writer, guest, new)?;
        for (old, new) in old.iter().zip(new) {
            self.release_entry(writer, *old, *new, discard);
        }
        Ok(())
    }

    /// Sets entries without letting go of anything.
    pub fn set_entries(&self, writer: &Writer, guest: u64, new: &[L2Entry]) -> Result<()> {
        let index = self.geometry.l1_index(guest);
        let first = self.geometry.l2_index(guest);
        let mut shared = self.write_shared();
        let table = self.table(&shared, index)?.unwrap_or_default();
        let raw = shared.l1.get(index).copied().unwrap_or(0);
        let L1Entry::Table { at, .. } = L1Entry::decode(raw, &self.geometry)? else {
            return Err(Error::corrupt(format!("guest offset {guest:#x} has no L2 table")));
        };
        let linked = !writer.l1_dirty.contains(&index);
        let step = self.geometry.entry_words();
        let changed = shared.l2.change(index, at, linked, || table);
        let words = changed.touch(first * step..(first + new.len()) * step);
        for (n, entry) in new.iter().enumerate() {
            entry.encode(words, first + n, &self.geometry);
        }
        Ok(())
    }

    pub fn release_entry(&self, writer: &mut Writer, old: L2Entry, new: L2Entry, discard: bool) {
        if let (L2Entry::Standard { at: old, .. }, L2Entry::Standard { at: new, .. }) = (old, new)
            && old == new
        {
            return;
        }
        writer.release(old.clusters(&self.geometry), discard);
    }

    /// Whether a cluster's host cluster belongs to the active image alone, so that it may be written in place.
    ///
    /// # Errors
    /// `Corrupt` where the refcounts deny that it is used at all.
    pub fn owns(&self, writer: &mut Writer, entry: L2Entry) -> Result<Option<u64>> {
        let L2Entry::Standard {
            at: Some(at), copied, ..
        } = entry
        else {
            return Ok(None);
        };
        if self.geometry.data_file {
            return Ok(Some(at));
        }
        match writer.refcounts.get(at >> self.geometry.cluster_bits)? {
            0 => {
                self.host.note_damage();
                Err(Error::corrupt(format!(
                    "the cluster at {at:#x} is used, but its refcount is 0; run a repair"
                )))
            }
            1 if copied => {
                self.read_metadata()
                    .refuse_data(at, 1)
                    .inspect_err(|_| self.host.note_damage())?;
                Ok(Some(at))
            }
            _ => Ok(None),
        }
    }

    /// Gives up to `count` clusters in a row for guest data at `guest`: host offset and how many.
    pub fn allocate_data(&self, writer: &mut Writer, guest: u64, count: u64) -> Result<(u64, u64)> {
        if self.geometry.data_file {
            return Ok((self.geometry.cluster_start(guest), count));
        }
        let row = writer.refcounts.allocate(count)?;
        Ok((row.start << self.geometry.cluster_bits, row.end - row.start))
    }

    /// Takes back what [`allocate_data`](Self::allocate_data) gave, when it came to nothing.
    pub fn undo_allocation(&self, writer: &mut Writer, at: u64, count: u64) {
        if !self.geometry.data_file {
            let first = at >> self.geometry.cluster_bits;
            // Nothing refers to these clusters: the worst that can happen is a leak.
            let _ = writer.refcounts.decrement(first..first + count);
        }
    }
}
