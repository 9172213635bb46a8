//! Growing, dropping all data, changing the backing reference.

use super::bitmap_table;
use super::create::refuse_short;
use super::grow::refuse_too_large;
use super::image::Qcow2;
use super::layout::extensions::ExtensionKind;
use super::layout::refcounts::RefcountWidth;
use super::layout::{Autoclear, Extension, L2Entry};
use super::locate::Kind;
use super::writer::Writer;
use crate::env::BackingReference;
use crate::image::{NothingBelow, Preallocation, Resize};
use crate::{Error, Result};

impl Qcow2 {
    /// Grows or shrinks.
    pub fn change_size(&self, to: &Resize) -> Result<()> {
        let mut writer = self.lock_writer()?;
        let (old, new) = (self.read_shared().header.virtual_size, to.virtual_size);
        self.refuse_size(old, new)?;
        self.prepare(&mut writer)?;
        if new == 0 && !self.bitmap_directory()?.is_empty() {
            return Err(Error::unsupported(
                "an image with bitmaps cannot shrink to nothing: the format has no bitmap of no bytes; remove them first",
            ));
        }
        self.hold_all_bitmaps(&mut writer, new)?;
        if new < old {
            return self.shrink(&mut writer, old, to);
        }
        let data_len = self.host.data().len()?;
        let grown = self
            .grow(&mut writer, old, to)
            .and_then(|()| self.write_back(&mut writer));
        grown.inspect_err(|_| self.cut_data_file(data_len))?;
        self.host.flush()?;
        self.change_header(&writer, |s| s.header.virtual_size = new)?;
        self.host.flush()?;
        self.save_resized_bitmaps(&mut writer)
    }

    /// Bytes for an L1 table, an L2 table, the bitmaps and what counts them, all beside the old ones.
    pub fn room_to_resize(&self, new: u64) -> Result<u64> {
        let (size, directory) = (self.geometry.cluster_size(), self.bitmap_directory()?);
        let shared = self.read_shared();
        let longest = new.max(shared.header.virtual_size);
        let l1_entries = self.geometry.l1_entries(longest).max(shared.l1.len() as u64);
        let mut tables = 1 + self.geometry.clusters(l1_entries.saturating_mul(8));
        for bitmap in &directory {
            let bits = self
                .geometry
                .clusters(longest.div_ceil(bitmap.granularity()).div_ceil(8));
            tables += bits + self.geometry.clusters(bits.saturating_mul(8));
        }
        if !directory.is_empty() {
            tables += self.geometry.clusters(bitmap_table::encode(&directory).len() as u64);
        }
        let header = &shared.header;
        let per_block = RefcountWidth::new(header.refcount_order).count(size);
        let mut blocks = tables.div_ceil(per_block) + 1;
        let end = self.geometry.clusters(self.host.file.len()?) + tables + blocks;
        let counted = u64::from(header.reftable_clusters) * (size / 8) * per_block;
        if end > counted {
            // The refcount table moves to a longer place.
            blocks += u64::from(header.reftable_clusters) * 2 + 2;
        }
        Ok((tables + blocks).saturating_mul(size))
    }

    /// What is refused before anything is changed.
    fn refuse_size(&self, old: u64, new: u64) -> Result<()> {
        if self.geometry.data_file {
            refuse_short(self.host.data(), new)?;
        }
        if !new.is_multiple_of(512) {
            return Err(Error::invalid(format!(
                "the virtual size must be a multiple of 512, not {new}"
            )));
        }
        if new > self.limits.virtual_size {
            return Err(Error::limit(format!("a virtual size of {new} bytes is too large")));
        }
        if new > old {
            refuse_too_large(&self.geometry, new, &self.limits)?;
        }
        let shared = self.read_shared();
        if !shared.snapshots.is_empty() && shared.header.version < 3 {
            return Err(Error::unsupported("can't resize a v2 image which has snapshots"));
        }
        Ok(())
    }

    /// Saves the bitmaps after the size changed; when that fails, it is told that it did.
    pub fn save_resized_bitmaps(&self, writer: &mut Writer) -> Result<()> {
        self.save_bitmaps(writer).map_err(|error| {
            let what = "the image has its new size, but its dirty bitmaps could not be saved and must be removed";
            Error::new(error.kind(), what).because(error)
        })
    }

    fn grow(&self, writer: &mut Writer, old: u64, to: &Resize) -> Result<()> {
        let new = to.virtual_size;
        self.grow_l1(writer, new)?;
        let mirrors = self.read_shared().header.autoclear & Autoclear::RAW_DATA_FILE != 0;
        if self.geometry.data_file {
            self.grow_data_file(old, new, mirrors)?;
        }
        // What an earlier, larger disk left behind the end in the last cluster must not come back.
        let end = old.next_multiple_of(self.geometry.cluster_size()).min(new);
        self.zero_data(writer, old, end)?;
        self.forget_past(writer, end, new)?;
        let how = match to.preallocation {
            Preallocation::Off if mirrors => Preallocation::Metadata,
            how => how,
        };
        // A reserved cluster hides the layer below it, which still shows in the first part of the cluster that the old size ends in.
        let hides = self.has_base() && !self.geometry.extended_l2;
        let from = if hides { end } else { old };
        self.preallocate(writer, from, new, how)
    }

    /// Where the data file is what the guest sees, what it has past the old end (a shrink may have been cut off) must not come back.
    fn grow_data_file(&self, old: u64, new: u64, mirrors: bool) -> Result<()> {
        let data = self.host.data();
        let len = data.len()?;
        if mirrors && len > old {
            data.write_zeroes(old, len.min(new) - old, true)?;
        }
        if len < new && data.can_resize() {
            data.set_len(new)?;
        }
        Ok(())
    }

    /// The data file after a growth that failed; one that stays too long shows no more to the guest.
    fn cut_data_file(&self, len: u64) {
        if self.geometry.data_file && self.host.data().can_resize() {
            let _ = self.host.data().set_len(len);
            self.host.forget_len();
        }
    }

    /// Writes zeroes over stored data of a range.
    fn zero_data(&self, writer: &mut Writer, from: u64, to: u64) -> Result<()> {
        let mut at = from;
        while at < to {
            let run = self.locate(&self.read_shared(), at, to - at)?;
            if matches!(run.kind, Kind::Data { .. } | Kind::Packed { .. }) {
                self.write_range(writer, at, &vec![0; run.len as usize], &NothingBelow)?;
            }
            at += run.len;
        }
        Ok(())
    }

    /// Takes the L2 tables from an L1 index on out of the active image, with everything that they point to.
    fn drop_tables(&self, writer: &mut Writer, first: usize) -> Result<()> {
        self.write_back(writer)?;
        let bits = self.geometry.cluster_bits;
        let count = self.read_shared().l1.len();
        for index in first..count {
            let Some(at) = self.l2_table_place(index)? else {
                continue;
            };
            let guest = index as u64 * self.geometry.l2_span();
            let shared_table = writer.refcounts.get(at >> bits)? > 1;
            for entry in self.entries(guest, self.geometry.l2_entries())? {
                self.release_entry(writer, entry, L2Entry::UNALLOCATED, true);
            }
            self.forget_table(writer, index, at, !shared_table);
            self.write_back_if_full(writer)?;
        }
        Ok(())
    }

    /// Cuts the file behind the last cluster that is used.
    pub fn cut_file(&self, writer: &mut Writer) -> Result<()> {
        if !self.host.file.can_resize() {
            return Ok(());
        }
        let end = (writer.refcounts.last_used()? + 1) << self.geometry.cluster_bits;
        if end < self.host.file.len()? {
            self.host.cut(end)?;
        }
        Ok(())
    }

    /// Drops all guest data of this layer. Bitmaps stay as they are: this follows a commit, after which the layer below shows the same.
    pub fn forget_all(&self) -> Result<()> {
        let mut writer = self.lock_writer()?;
        self.prepare(&mut writer)?;
        let size = self.read_shared().header.virtual_size;
        self.drop_tables(&mut writer, 0)?;
        self.write_back(&mut writer)?;
        if self.geometry.data_file {
            self.host
                .data()
                .write_zeroes(0, size.min(self.host.data().len()?), true)?;
        }
        self.cut_file(&mut writer)?;
        self.host.flush()
    }

    /// Changes what the header says about the layer below. Everything written before is stable first: data that a rebase copied up must be
    /// there when the old layer below is not.
    pub fn change_backing(&self, backing: Option<&BackingReference>) -> Result<()> {
        let mut writer = self.lock_writer()?;
        let raw_data = self.read_shared().header.autoclear & Autoclear::RAW_DATA_FILE != 0;
        if raw_data && backing.is_some() {
            return Err(Error::invalid(
                "backing file and data-file-raw cannot be used at the same time",
            ));
        }
        self.prepare(&mut writer)?;
        self.write_back(&mut writer)?;
        self.host.flush()?;
        self.change_header(&writer, |shared| {
            let format = backing.and_then(|b| b.format.clone()).map(Extension::BackingFormat);
            shared.extensions.replace(ExtensionKind::BACKING_FORMAT, format);
            shared.backing = backing.cloned();
        })?;
        self.host.flush()
    }
}
