//! Mending: table entries that make no sense, refcounts, copied flags, in this order.
//!
//! Entries first, because what they referred to must not be counted. Then refcounts: raising them is always safe. Then flags, which must not
//! claim a cluster that others use. The marks for "dirty" and "corrupt" go last, after a flush.

use super::super::image::Qcow2;
use super::super::layout::{Incompatible, L2Entry, words_from_be, words_to_be};
use super::super::writer::Writer;
use super::walk::{BadEntry, Walk};
use crate::image::{CheckReport, Repair};
use crate::{Control, Error, Result};

impl Qcow2 {
    pub fn repair_image(&self, writer: &mut Writer, repair: Repair, control: &Control) -> Result<CheckReport> {
        let mut walk = self.walk(control)?;
        let mut fixed = 0;
        let mut messages = Vec::new();
        if repair == Repair::All && !walk.bad.is_empty() {
            fixed = self.mend_entries(&walk.bad)?;
            messages = std::mem::take(&mut walk.report.messages);
            self.reload(writer)?;
            walk = self.walk(control)?;
        }
        let safe = if repair == Repair::Leaks && walk.report.corruptions > 0 {
            // What looks like a leak may belong to what is broken.
            Repair::No
        } else {
            repair
        };
        if repair == Repair::All && (walk.bad_refcounts || !self.blocks_suffice(&walk)) {
            let found = walk.report.clone();
            self.compare_refcounts(&mut walk, Repair::No)?;
            let faults = walk.report.corruptions - found.corruptions + found.corruptions.min(1);
            self.rebuild_refcounts(writer, &walk.counts)?;
            self.reload(writer)?;
            messages.append(&mut walk.report.messages);
            let leaks = walk.report.leaks;
            walk = self.walk(control)?;
            self.compare_refcounts(&mut walk, Repair::No)?;
            walk.report.leaks_fixed += leaks;
            fixed += faults.max(1);
        } else {
            self.compare_refcounts(&mut walk, safe)?;
        }
        let mend_flags = repair == Repair::All || safe == Repair::Leaks && walk.report.corruptions == 0;
        self.check_flags(&mut walk, mend_flags.then_some(&mut *writer))?;
        if repair != Repair::No {
            self.host.flush()?;
            self.reload(writer)?;
        }
        walk.report.corruptions_fixed += fixed;
        messages.append(&mut walk.report.messages);
        walk.report.messages = messages;
        if repair == Repair::All && walk.report.corruptions == 0 {
            self.mark_good(writer)?;
        }
        Ok(walk.report)
    }

    /// Repairs an image that was not closed properly: its refcounts may be behind.
    ///
    /// # Errors
    /// `Corrupt` when that did not mend everything.
    pub fn repair_dirty(&self) -> Result<()> {
        if !self.read_shared().header.incompatible.has(Incompatible::DIRTY) {
            return Ok(());
        }
        let report = self.check_image(Repair::All, &Control::default())?;
        if report.corruptions + report.check_errors > 0 {
            return Err(Error::corrupt(
                "the image was not closed properly, and a repair did not mend everything",
            ));
        }
        Ok(())
    }

    fn walk(&self, control: &Control) -> Result<Walk<'_>> {
        let mut walk = Walk::new(self)?;
        walk.run(&self.read_shared(), control)?;
        Ok(walk)
    }

    /// Whether every cluster that is used has a refcount block.
    fn blocks_suffice(&self, walk: &Walk<'_>) -> bool {
        let width = super::RefcountWidth::new(self.read_shared().header.refcount_order);
        let per_block = width.count(self.geometry.cluster_size());
        let has_block = |(cluster, _): (u64, u64)| walk.blocks.contains_key(&((cluster / per_block) as usize));
        walk.counts.used().all(has_block)
    }

    /// Clears the marks of an image that was not closed properly or found corrupt.
    pub fn mark_good(&self, writer: &Writer) -> Result<()> {
        let marks = Incompatible::DIRTY | Incompatible::CORRUPT;
        if !self.read_shared().header.incompatible.has(marks) {
            return Ok(());
        }
        self.host.flush()?;
        self.change_header(writer, |s| s.header.incompatible.0 &= !marks)?;
        self.host.flush()
    }

    /// Takes out entries that make no sense; gives how many. What they should have said is lost: the guest reads zeroes (version 3), or
    /// what is below.
    fn mend_entries(&self, bad: &[BadEntry]) -> Result<u64> {
        let mut fixed = 0;
        for entry in bad {
            match *entry {
                BadEntry::L1(index) => {
                    let at = {
                        let mut shared = self.write_shared();
                        if let Some(slot) = shared.l1.get_mut(index) {
                            *slot = 0;
                        }
                        shared.header.l1_offset + index as u64 * 8
                    };
                    self.host.file.write_at(at, &[0; 8])?;
                }
                BadEntry::L2 { table, index } => self.mend_l2(table, index)?,
            }
            fixed += 1;
        }
        Ok(fixed)
    }

    fn mend_l2(&self, table: u64, index: usize) -> Result<()> {
        let step = self.geometry.entry_words();
        let at = table + (index * step) as u64 * 8;
        let mut words = words_from_be(&crate::storage::read_vec(self.host.file.as_ref(), at, step * 8)?);
        let new = if self.read_shared().header.version >= 3 {
            L2Entry::ZERO
        } else {
            L2Entry::UNALLOCATED
        };
        new.encode(&mut words, 0, &self.geometry);
        self.host.file.write_at(at, &words_to_be(&words))
    }
}
