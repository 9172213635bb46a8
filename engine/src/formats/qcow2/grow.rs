//! Growing the L1 table and reserving space.

use std::collections::BTreeSet;
use std::ops::Range;

use super::image::Qcow2;
use super::layout::header::MAX_L1_BYTES;
use super::layout::{Geometry, Header, L2Entry, Subclusters, words_to_be};
use super::releases::Release;
use super::writer::Writer;
use crate::formats::common::check_table;
use crate::image::Preallocation;
use crate::storage::write_zero_bytes;
use crate::{Error, Limits, Result};

/// # Errors
/// `LimitExceeded` for a virtual size whose L1 table would be longer than is allowed.
pub(super) fn refuse_too_large(geometry: &Geometry, virtual_size: u64, limits: &Limits) -> Result<()> {
    let entries = geometry.l1_entries(virtual_size);
    if entries > MAX_L1_BYTES / 8 {
        return Err(Error::limit(
            "the image size is too large for file format 'qcow2' (try using a larger cluster size)",
        ));
    }
    check_table("the L1 table", entries * 8, limits)
}

/// What a preallocation did so far.
#[derive(Default)]
struct Reserved {
    rows: Vec<Row>,
    /// L1 indices of the tables that it made.
    tables: BTreeSet<usize>,
}

/// Clusters in a row, all of one L2 table.
struct Row {
    guest: u64,
    at: u64,
    count: u64,
}

impl Qcow2 {
    /// Makes the L1 table cover `virtual_size`.
    ///
    /// Order: everything pending; new table and its refcounts, flush; header (size and offset in one write), flush; the old table is free.
    pub fn grow_l1(&self, writer: &mut Writer, virtual_size: u64) -> Result<()> {
        let entries = self.geometry.l1_entries(virtual_size);
        let (old_at, old_len) = {
            let shared = self.read_shared();
            (shared.header.l1_offset, shared.l1.len() as u64)
        };
        if entries <= old_len {
            return Ok(());
        }
        refuse_too_large(&self.geometry, virtual_size, &self.limits)?;
        self.write_back(writer)?;
        let mut table = self.read_shared().l1.clone();
        table.resize(entries as usize, 0);
        let clusters = self.geometry.clusters(entries * 8);
        let first = writer.refcounts.allocate_row(clusters)?;
        let at = first << self.geometry.cluster_bits;
        writer
            .refcounts
            .no_longer_fresh(at + clusters * self.geometry.cluster_size());
        let written = self.host.file.write_at(at, &words_to_be(&table));
        let done = written.and_then(|()| self.stabilise_refcounts(writer));
        done.inspect_err(|_| {
            // Nothing refers to it: the worst that can happen is a leak.
            let _ = writer.refcounts.decrement(first..first + clusters);
        })?;
        let mut field = (entries as u32).to_be_bytes().to_vec();
        field.extend_from_slice(&at.to_be_bytes());
        self.host.file.write_at(Header::AT_L1, &field)?;
        self.host.flush()?;
        let mut shared = self.write_shared();
        shared.header.l1_size = entries as u32;
        shared.header.l1_offset = at;
        shared.l1 = table;
        drop(shared);
        let mut metadata = self.write_metadata();
        metadata.add(at, entries * 8);
        if old_len > 0 {
            metadata.remove(old_at, old_len * 8);
            drop(metadata);
            let old = old_at >> self.geometry.cluster_bits;
            let clusters = old..old + self.geometry.clusters(old_len * 8);
            self.free_now(writer, &Release::once(clusters))?;
        }
        Ok(())
    }

    /// Writes refcount blocks, then the table entries that name new ones, and returns when both are stable.
    pub fn stabilise_refcounts(&self, writer: &mut Writer) -> Result<()> {
        writer.refcounts.write_blocks()?;
        self.host.flush()?;
        if writer.refcounts.table_changed() {
            writer.refcounts.write_table()?;
            self.host.flush()?;
        }
        Ok(())
    }

    /// Reserves host clusters for every unallocated guest cluster of a range, or for none of them.
    pub fn preallocate(&self, writer: &mut Writer, from: u64, to: u64, how: Preallocation) -> Result<()> {
        if how == Preallocation::Off {
            return Ok(());
        }
        let mut reserved = Reserved::default();
        let promised = self.host.promised();
        let done = self.reserve_rows(writer, from..to, how, &mut reserved);
        done.and_then(|()| self.write_back(writer)).inspect_err(|_| {
            // It may be the length that was refused: nothing could be written back before it is wanted no more.
            self.host.promise(promised);
            // The first error is the one to tell; what cannot be taken back is a leak.
            let _ = self.take_back(writer, &reserved);
        })
    }

    fn reserve_rows(
        &self,
        writer: &mut Writer,
        range: Range<u64>,
        how: Preallocation,
        reserved: &mut Reserved,
    ) -> Result<()> {
        let size = self.geometry.cluster_size();
        let version = self.read_shared().header.version;
        let subs = match &self.encryption {
            _ if self.geometry.extended_l2 => Subclusters::NONE,
            // What the file has there would decrypt to noise.
            Some(_) if version >= 3 => Subclusters::ZERO,
            _ => Subclusters::DATA,
        };
        let mut guest = self.geometry.cluster_start(range.start);
        while guest < range.end {
            let entries = self.entries(guest, (range.end - guest).div_ceil(size))?;
            let taken = |e: &L2Entry| !e.is_unallocated();
            let skip = entries.iter().take_while(|e| taken(e)).count() as u64;
            let free = entries.iter().skip(skip as usize).take_while(|e| !taken(e)).count() as u64;
            guest += skip * size;
            if free == 0 {
                continue;
            }
            let index = self.geometry.l1_index(guest);
            let is_new = self.l2_table_place(index)?.is_none();
            self.ensure_table(writer, index)?;
            reserved.tables.extend(is_new.then_some(index));
            let (at, count) = self.allocate_data(writer, guest, free)?;
            let row = Row { guest, at, count };
            let done = self
                .reserve(writer, at..(at + count * size), range.end, how)
                .and_then(|()| match self.encryption.is_some() && subs == Subclusters::DATA {
                    true => self.write_zero_clusters(guest, at, count),
                    false => Ok(()),
                });
            done.inspect_err(|_| {
                self.undo_allocation(writer, at, count);
                self.give_space_back(&row);
            })?;
            let entry = |n| L2Entry::Standard {
                at: Some(at + n * size),
                copied: true,
                subs,
            };
            let new: Vec<_> = (0..count).map(entry).collect();
            self.replace(writer, guest, &new, false)?;
            reserved.rows.push(row);
            self.write_back_if_full(writer)?;
            guest += count * size;
        }
        Ok(())
    }

    /// Takes a preallocation back. Guests see none of it yet, so that the space goes first: what is written then needs some on a full disk.
    fn take_back(&self, writer: &mut Writer, reserved: &Reserved) -> Result<()> {
        reserved.rows.iter().for_each(|row| self.give_space_back(row));
        for row in &reserved.rows {
            let index = self.geometry.l1_index(row.guest);
            if reserved.tables.contains(&index) && writer.l1_dirty.contains(&index) {
                // The file has no word of them: they need not be counted there first.
                self.undo_allocation(writer, row.at, row.count);
            } else {
                let none = vec![L2Entry::UNALLOCATED; row.count as usize];
                self.replace(writer, row.guest, &none, false)?;
            }
        }
        for index in &reserved.tables {
            if let Some(at) = self.l2_table_place(*index)? {
                // As zeroes, which it may be in the file from here on, it has no entries either.
                let _ = self.host.file.write_zeroes(at, self.geometry.cluster_size(), true);
                self.forget_table(writer, *index, at, false);
            }
        }
        self.write_back(writer)?;
        self.cut_file(writer)
    }

    /// What cannot be given back is given back with the clusters, or stays as space that is free in the file.
    fn give_space_back(&self, row: &Row) {
        if !self.geometry.data_file {
            let _ = self.host.file.discard(row.at, row.count * self.geometry.cluster_size());
        }
    }

    /// Writes encrypted zeroes.
    fn write_zero_clusters(&self, guest: u64, at: u64, count: u64) -> Result<()> {
        let size = self.geometry.cluster_size();
        let zeroes = vec![0; self.geometry.cluster_len()];
        (0..count).try_for_each(|n| self.write_data(guest + n * size, at + n * size, &zeroes))
    }

    /// Reserves host bytes; those of a data file, which are where the guest has them, to the end of the disk to be.
    fn reserve(&self, writer: &mut Writer, bytes: Range<u64>, disk_end: u64, how: Preallocation) -> Result<()> {
        let data = self.host.data();
        let (at, len) = (bytes.start, bytes.end - bytes.start);
        if self.geometry.data_file {
            let len = len.min(disk_end.saturating_sub(at));
            return match how {
                Preallocation::Off | Preallocation::Metadata => Ok(()),
                Preallocation::Falloc => data.allocate(at, len),
                Preallocation::Full => write_zero_bytes(data.as_ref(), at, len),
            };
        }
        let old = writer.refcounts.old_part(at, len);
        writer.refcounts.no_longer_fresh(at + len);
        self.host.reach(at + len);
        if how == Preallocation::Full {
            return write_zero_bytes(data.as_ref(), at, len);
        }
        if old > 0 {
            data.write_zeroes(at, old, how != Preallocation::Falloc)?;
        }
        match how {
            Preallocation::Falloc if old < len => data.allocate(at + old, len - old),
            _ => Ok(()),
        }
    }
}
