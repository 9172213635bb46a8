//! Growing the L1 table and reserving space.

use super::image::Qcow2;
use super::layout::header::MAX_L1_BYTES;
use super::layout::{Geometry, Header, L2Entry, Subclusters, words_to_be};
use super::writer::{Release, Writer};
use crate::image::Preallocation;
use crate::storage::write_zero_bytes;
use crate::{Error, Result};

/// # Errors
/// `LimitExceeded` for a virtual size whose L1 table would be longer than is allowed.
pub(super) fn refuse_too_large(geometry: &Geometry, virtual_size: u64) -> Result<()> {
    match geometry.l1_entries(virtual_size) > MAX_L1_BYTES / 8 {
        true => Err(Error::limit(
            "the image size is too large for file format 'qcow2' (try using a larger cluster size)",
        )),
        false => Ok(()),
    }
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
        refuse_too_large(&self.geometry, virtual_size)?;
        self.write_back(writer)?;
        let mut table = self.read_shared().l1.clone();
        table.resize(entries as usize, 0);
        let clusters = self.geometry.clusters(entries * 8);
        let first = writer.refcounts.allocate_row(clusters)?;
        let at = first << self.geometry.cluster_bits;
        writer
            .refcounts
            .no_longer_fresh(at + clusters * self.geometry.cluster_size());
        self.host.file.write_at(at, &words_to_be(&table))?;
        self.stabilise_refcounts(writer)?;
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
            self.free_now(
                writer,
                &Release {
                    clusters,
                    discard: true,
                },
            )?;
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

    /// Reserves host clusters for every unallocated guest cluster of a range.
    pub fn preallocate(&self, writer: &mut Writer, from: u64, to: u64, how: Preallocation) -> Result<()> {
        if how == Preallocation::Off {
            return Ok(());
        }
        let size = self.geometry.cluster_size();
        let version = self.read_shared().header.version;
        let subs = match &self.encryption {
            _ if self.geometry.extended_l2 => Subclusters::NONE,
            // What the file has there would decrypt to noise.
            Some(_) if version >= 3 => Subclusters::ZERO,
            _ => Subclusters::DATA,
        };
        let mut guest = self.geometry.cluster_start(from);
        while guest < to {
            let entries = self.entries(guest, (to - guest).div_ceil(size))?;
            let taken = |e: &L2Entry| !e.is_unallocated();
            let skip = entries.iter().take_while(|e| taken(e)).count() as u64;
            let free = entries.iter().skip(skip as usize).take_while(|e| !taken(e)).count() as u64;
            guest += skip * size;
            if free == 0 {
                continue;
            }
            self.ensure_table(writer, self.geometry.l1_index(guest))?;
            let (at, count) = self.allocate_data(writer, guest, free)?;
            self.reserve(writer, at, count * size, how)?;
            if self.encryption.is_some() && subs == Subclusters::DATA {
                self.write_zero_clusters(guest, at, count)?;
            }
            let entry = |n| L2Entry::Standard {
                at: Some(at + n * size),
                copied: true,
                subs,
            };
            let new: Vec<_> = (0..count).map(entry).collect();
            self.replace(writer, guest, &new, false)?;
            self.write_back_if_full(writer)?;
            guest += count * size;
        }
        Ok(())
    }

    /// Writes encrypted zeroes.
    fn write_zero_clusters(&self, guest: u64, at: u64, count: u64) -> Result<()> {
        let size = self.geometry.cluster_size();
        let zeroes = vec![0; self.geometry.cluster_len()];
        (0..count).try_for_each(|n| self.write_data(guest + n * size, at + n * size, &zeroes))
    }

    fn reserve(&self, writer: &mut Writer, at: u64, len: u64, how: Preallocation) -> Result<()> {
        let data = self.host.data();
        if self.geometry.data_file {
            let size = self.read_shared().header.virtual_size;
            let len = len.min(size.saturating_sub(at));
            return match how {
                Preallocation::Off | Preallocation::Metadata => Ok(()),
                Preallocation::Falloc => data.allocate(at, len),
                Preallocation::Full => write_zero_bytes(data.as_ref(), at, len),
            };
        }
        let fresh = writer.refcounts.is_fresh(at);
        writer.refcounts.no_longer_fresh(at + len);
        self.host.reach(at + len);
        match how {
            Preallocation::Full => write_zero_bytes(data.as_ref(), at, len),
            _ if !fresh => data.write_zeroes(at, len, false),
            Preallocation::Falloc => data.allocate(at, len),
            Preallocation::Off | Preallocation::Metadata => Ok(()),
        }
    }
}
