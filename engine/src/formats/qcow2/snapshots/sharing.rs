//! What snapshots share with the active image: counting the users of clusters, the copied flags, and the mark around a change of many.

use std::ops::Range;
use std::sync::MutexGuard;

use super::super::image::Qcow2;
use super::super::layout::{Incompatible, L1Entry, L2Entry, words_from_be};
use super::super::open::read_table;
use super::super::releases::Release;
use super::super::writer::Writer;
use super::Snapshot;
use crate::image::Repair;
use crate::{Control, Result};

impl Qcow2 {
    /// Runs a change of many refcounts and flags, marked by the dirty bit; when it fails, everything is counted anew. Damage in the active
    /// tables and in those of the given snapshots is told before: an image that cannot be counted could never lose the mark again.
    pub fn marked(&self, involved: &[Snapshot], change: impl FnOnce(&mut Writer) -> Result<()>) -> Result<()> {
        let mut writer = self.quiet_writer()?;
        let active = self.read_shared().l1.clone();
        self.references(&active, |clusters| writer.refcounts.require_users(clusters, 1))?;
        drop(active);
        for snapshot in involved {
            let l1 = self.snapshot_l1(snapshot)?;
            self.references(&l1, |clusters| writer.refcounts.require_users(clusters, 1))?;
        }
        let marks = self.read_shared().header.version >= 3;
        if marks {
            self.change_header(&writer, |s| s.header.incompatible.0 |= Incompatible::DIRTY)?;
            self.host.flush()?;
        }
        let done = change(&mut writer).and_then(|()| {
            self.write_back(&mut writer)?;
            self.host.flush()
        });
        if let Err(error) = done {
            writer.released.clear();
            self.restore_after_failure(&mut writer)?;
            return Err(error);
        }
        if marks {
            self.change_header(&writer, |s| s.header.incompatible.0 &= !Incompatible::DIRTY)?;
            self.host.flush()?;
        }
        Ok(())
    }

    fn quiet_writer(&self) -> Result<MutexGuard<'_, Writer>> {
        let mut writer = self.lock_writer()?;
        self.prepare(&mut writer)?;
        self.write_back(&mut writer)?;
        self.host.flush()?;
        Ok(writer)
    }

    fn restore_after_failure(&self, writer: &mut Writer) -> Result<()> {
        writer.l1_dirty.clear();
        let l1 = {
            let header = &self.read_shared().header;
            let bytes = u64::from(header.l1_size) * 8;
            read_table(self.host.file.as_ref(), "L1 table", header.l1_offset, bytes, u64::MAX)?
        };
        {
            let mut shared = self.write_shared();
            shared.l1 = l1;
            shared.l2.clear();
        }
        self.reload(writer)?;
        self.repair_image(writer, Repair::All, &Control::default()).map(|_| ())
    }

    /// Every host cluster that an L1 table's tree uses, with repetitions, tables included.
    fn references(&self, l1: &[u64], mut each: impl FnMut(Range<u64>) -> Result<()>) -> Result<()> {
        let bits = self.geometry.cluster_bits;
        let version = self.read_shared().header.version;
        for raw in l1 {
            let L1Entry::Table { at, .. } = L1Entry::decode(*raw, &self.geometry)? else {
                continue;
            };
            let bytes = crate::storage::read_vec(self.host.file.as_ref(), at, self.geometry.cluster_len())?;
            let table = words_from_be(&bytes);
            // After the reading: the caller may let go of the table's cluster.
            each(at >> bits..(at >> bits) + 1)?;
            let mut run: Range<u64> = 0..0;
            for index in 0..self.geometry.l2_entries() as usize {
                let entry = L2Entry::decode(&table, index, &self.geometry, version)?;
                let clusters = entry.clusters(&self.geometry);
                if clusters.is_empty() {
                    continue;
                }
                if clusters.start == run.end {
                    run.end = clusters.end;
                    continue;
                }
                each(std::mem::replace(&mut run, clusters))?;
            }
            each(run)?;
        }
        Ok(())
    }

    pub(super) fn count_up(&self, writer: &mut Writer, l1: &[u64]) -> Result<()> {
        self.references(l1, |clusters| writer.refcounts.increment(clusters))
    }

    pub(super) fn count_down(&self, writer: &mut Writer, l1: &[u64]) -> Result<()> {
        self.references(l1, |clusters| self.free_now(writer, &Release::once(clusters)))
    }

    /// Makes the copied flags of the active tables say what the refcounts say.
    pub fn refresh_flags(&self, writer: &mut Writer) -> Result<()> {
        let bits = self.geometry.cluster_bits;
        let count = self.read_shared().l1.len();
        for index in 0..count {
            let raw = self.read_shared().l1.get(index).copied().unwrap_or(0);
            let L1Entry::Table { at, copied } = L1Entry::decode(raw, &self.geometry)? else {
                continue;
            };
            let alone = writer.refcounts.get(at >> bits)? == 1;
            if alone != copied {
                self.write_shared()
                    .set_l1(writer, index, L1Entry::Table { at, copied: alone });
            }
            if !self.geometry.data_file {
                self.refresh_table_flags(writer, index)?;
            }
            self.write_back_if_full(writer)?;
        }
        Ok(())
    }

    fn refresh_table_flags(&self, writer: &mut Writer, index: usize) -> Result<()> {
        let guest = index as u64 * self.geometry.l2_span();
        for (n, entry) in (0..).zip(self.entries(guest, self.geometry.l2_entries())?) {
            let L2Entry::Standard {
                at: Some(at),
                copied,
                subs,
            } = entry
            else {
                continue;
            };
            let alone = writer.refcounts.get(at >> self.geometry.cluster_bits)? == 1;
            if alone != copied {
                let new = L2Entry::Standard {
                    at: Some(at),
                    copied: alone,
                    subs,
                };
                self.set_linked_entry(guest + n * self.geometry.cluster_size(), new)?;
            }
        }
        Ok(())
    }

    /// Sets a flag in a table that stays where it is, whoever shares it.
    fn set_linked_entry(&self, guest: u64, entry: L2Entry) -> Result<()> {
        let index = self.geometry.l1_index(guest);
        let mut shared = self.write_shared();
        let table = self.table(&shared, index)?.unwrap_or_default();
        let raw = shared.l1.get(index).copied().unwrap_or(0);
        let L1Entry::Table { at, .. } = L1Entry::decode(raw, &self.geometry)? else {
            return Ok(());
        };
        let (slot, step) = (self.geometry.l2_index(guest), self.geometry.entry_words());
        let words = shared
            .l2
            .change(index, at, true, || table)
            .touch(slot * step..(slot + 1) * step);
        entry.encode(words, slot, &self.geometry);
        Ok(())
    }

    pub(super) fn free_bytes(&self, writer: &mut Writer, at: u64, len: u64) -> Result<()> {
        let first = at >> self.geometry.cluster_bits;
        let clusters = first..first + self.geometry.clusters(len);
        self.free_now(writer, &Release::once(clusters))
    }
}
