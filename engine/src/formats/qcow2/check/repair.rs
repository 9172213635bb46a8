//! Mending: table entries that name a place they do not need, refcounts, copied flags, in this order.
//!
//! Entries first, because what they referred to must not be counted. Then refcounts: raising them is always safe. Then flags, which must not
//! claim a cluster that others use. The marks for "dirty" and "corrupt" go last, after a flush.

use super::super::image::Qcow2;
use super::super::layout::{Incompatible, L2Entry, words_from_be, words_to_be};
use super::super::writer::Writer;
use super::Counts;
use super::walk::{BadEntry, Walk};
use crate::image::{CheckReport, Repair};
use crate::{Control, Error, Result};

impl Qcow2 {
    pub fn repair_image(&self, writer: &mut Writer, repair: Repair, control: &Control) -> Result<CheckReport> {
        let mut walk = self.walk(control)?;
        let mut fixed = 0;
        let mut messages = Vec::new();
        if repair == Repair::All {
            fixed = self.mend_entries(&walk.bad)?;
        }
        if fixed > 0 {
            messages = std::mem::take(&mut walk.report.messages);
            self.reload(writer)?;
            walk = self.walk(control)?;
        }
        // What looks like a leak may be the data that a broken entry should point to: nothing is taken from it.
        let damaged = walk.report.corruptions > 0 || self.read_metadata().refuse_conflicts().is_err();
        let unclear = !walk.bad.is_empty() || repair == Repair::Leaks && damaged;
        let safe = if unclear { Repair::No } else { repair };
        let before = walk.report.clone();
        self.compare_refcounts(&mut walk, Repair::No)?;
        messages.append(&mut walk.report.messages);
        if safe == Repair::All && walk.bad_refcounts {
            let faults = walk.report.corruptions - before.corruptions + before.corruptions.min(1);
            let leaks = walk.report.leaks;
            messages.push("Rebuilding refcount structure".to_owned());
            let given_back = self.rebuild_refcounts(writer, &walk.counts)?;
            self.reload(writer)?;
            walk = self.walk(control)?;
            for cluster in given_back {
                walk.say(|| format!("Repairing cluster {cluster} refcount=1 reference=0"));
            }
            self.compare_refcounts(&mut walk, Repair::No)?;
            walk.report.leaks_fixed += leaks;
            fixed += faults.max(1);
        } else if safe != Repair::No && walk.differs && !walk.bad_refcounts {
            walk.report = CheckReport {
                messages: Vec::new(),
                ..before
            };
            walk.stored = Counts::default();
            walk.told = true;
            self.compare_refcounts(&mut walk, safe)?;
        }
        let mend_flags = safe == Repair::All || safe == Repair::Leaks && walk.report.corruptions == 0;
        self.check_flags(&mut walk, mend_flags.then_some(&mut *writer))?;
        if repair != Repair::No {
            self.drop_stale_features(writer)?;
            self.host.flush()?;
            self.reload(writer)?;
        }
        self.check_conflicts(&mut walk);
        let complete = repair == Repair::All && walk.report.corruptions == 0 && !walk.incomplete.is_empty();
        if complete {
            self.rewrite_snapshot_table(writer)?;
        }
        walk.note_incomplete(complete);
        walk.report.corruptions_fixed += fixed;
        messages.append(&mut walk.report.messages);
        walk.report.messages = messages;
        if repair == Repair::All && walk.report.corruptions == 0 {
            self.mark_good(writer)?;
        }
        Ok(walk.report)
    }

    /// Repairs an image that was not closed properly: its refcounts may be behind. Gives what was found and done.
    ///
    /// # Errors
    /// `Corrupt` when that did not mend everything.
    pub fn repair_dirty(&self) -> Result<Vec<String>> {
        if !self.read_shared().header.incompatible.has(Incompatible::DIRTY) {
            return Ok(Vec::new());
        }
        let report = self.check_image(Repair::All, &Control::default())?;
        if report.corruptions + report.check_errors > 0 {
            return Err(Error::corrupt(
                "the image was not closed properly, and a repair did not mend everything",
            ));
        }
        Ok(report.messages)
    }

    fn walk(&self, control: &Control) -> Result<Walk<'_>> {
        let mut walk = Walk::new(self)?;
        walk.run(&self.read_shared(), control)?;
        Ok(walk)
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

    /// Mends entries that name a place they do not need, and gives how many. An entry that should say where data is stays as it is: reading it
    /// fails, which is better than zeroes in the place of data that somebody may still find.
    fn mend_entries(&self, bad: &[BadEntry]) -> Result<u64> {
        let mut fixed = 0;
        for entry in bad {
            if let BadEntry::L2 { table, index } = *entry {
                fixed += u64::from(self.mend_l2(table, index)?);
            }
        }
        Ok(fixed)
    }

    fn mend_l2(&self, table: u64, index: usize) -> Result<bool> {
        let step = self.geometry.entry_words();
        let at = table + (index * step) as u64 * 8;
        let mut words = words_from_be(&crate::storage::read_vec(self.host.file.as_ref(), at, step * 8)?);
        let version = self.read_shared().header.version;
        let mended = L2Entry::drop_needless(&mut words, &self.geometry, version);
        if mended {
            self.host.file.write_at(at, &words_to_be(&words))?;
        }
        Ok(mended)
    }
}
