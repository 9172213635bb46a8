//! Taking out of the active image what should not be in it any more: what a copy that failed has left.
//!
//! The order is that of [`Qcow2::write_back`]: the file refers to no cluster that is given back. Tables that hold nothing any more go before
//! they are written, since the disk may be full.

use std::ops::Range;

use super::image::Qcow2;
use super::layout::L2Entry;
use super::writer::Writer;
use crate::Result;

impl Qcow2 {
    /// The whole clusters of these ranges, in ascending order, are not allocated afterwards, and the file ends with what is used.
    pub fn forget_ranges(&self, ranges: &[Range<u64>]) -> Result<()> {
        let mut writer = self.lock_writer()?;
        if !writer.prepared {
            return Ok(()); // Nothing was changed.
        }
        let (span, size) = (self.geometry.l2_span(), self.geometry.cluster_size());
        let virtual_size = self.read_shared().header.virtual_size;
        let mut last = None;
        for range in ranges {
            let mut at = range.start.next_multiple_of(size);
            let end = if range.end >= virtual_size {
                virtual_size.next_multiple_of(size)
            } else {
                self.geometry.cluster_start(range.end)
            };
            while at < end {
                let table = self.geometry.l1_index(at);
                if let Some(before) = last.replace(table).filter(|before| *before != table) {
                    self.drop_if_empty(&mut writer, before)?;
                }
                let to = end.min((at / span + 1).saturating_mul(span));
                self.forget_clusters(&mut writer, at, (to - at) / size)?;
                at = to;
            }
        }
        if let Some(last) = last {
            self.drop_if_empty(&mut writer, last)?;
        }
        self.write_back(&mut writer)?;
        self.cut_file(&mut writer)?;
        self.host.flush()
    }

    /// Takes what stands from `from` to `to`, past the end of the disk, out of the active image: the memory of a machine, which going back
    /// to its snapshot brings along, must not become a part of the disk.
    pub fn forget_past(&self, writer: &mut Writer, from: u64, to: u64) -> Result<()> {
        let (span, size) = (self.geometry.l2_span(), self.geometry.cluster_size());
        let mut at = from;
        while at < to {
            let index = self.geometry.l1_index(at);
            let end = (at / span + 1).saturating_mul(span).min(to.next_multiple_of(size));
            // What an entry that leads nowhere stands for cannot be read, and so shows nothing of a machine's memory.
            let has_table = matches!(self.l2_table_place(index), Ok(Some(_)));
            if has_table && self.forget_clusters(writer, at, (end - at) / size)? {
                self.drop_if_empty(writer, index)?;
                self.write_back_if_full(writer)?;
            }
            at = end;
        }
        Ok(())
    }

    /// Clusters of one table; whether any was there.
    fn forget_clusters(&self, writer: &mut Writer, guest: u64, count: u64) -> Result<bool> {
        let old = self.entries(guest, count)?;
        if old.iter().all(|entry| *entry == L2Entry::UNALLOCATED) {
            return Ok(false);
        }
        self.ensure_table(writer, self.geometry.l1_index(guest))?;
        self.replace(writer, guest, &vec![L2Entry::UNALLOCATED; old.len()], true)?;
        Ok(true)
    }

    fn drop_if_empty(&self, writer: &mut Writer, index: usize) -> Result<()> {
        let Some(at) = self.l2_table_place(index)? else {
            return Ok(());
        };
        let guest = index as u64 * self.geometry.l2_span();
        let entries = self.entries(guest, self.geometry.l2_entries())?;
        if entries.iter().all(|entry| *entry == L2Entry::UNALLOCATED) {
            let alone = writer.refcounts.get(at >> self.geometry.cluster_bits)? == 1;
            self.forget_table(writer, index, at, alone);
        }
        Ok(())
    }
}
