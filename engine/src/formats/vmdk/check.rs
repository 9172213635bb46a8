//! Checking and mending of sparse extents; flat ones have nothing to check but their length.
//!
//! Corruptions: entries that point outside the grains of the file, two guest grains in one place, grains over tables or directories,
//! grains cut by the end of the file, compressed grains whose marker is another's, metadata over other metadata. Leaks: space behind the
//! metadata that no table refers to, redundant ones included. `mend` has what is done about them.

use super::descriptor::NO_PARENT;
use super::entry::{Entry, Grain};
use super::image::{Body, VmdkImage};
use super::inflate::marked;
use super::layout::SECTOR;
use super::metadata::Metadata;
use super::places::{Owner, Place, end, gaps, shared, spare};
use super::sparse::{Packing, SparseExtent};
use super::tables::Table;
use crate::image::{CheckReport, Repair};
use crate::{Control, Error, Result};

/// Findings told one by one; the rest is only counted.
const MESSAGES: usize = 100;

/// What a look at one extent gave. Grains are guest grains.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Entries that point nowhere sensible.
    pub outside: Vec<u64>,
    /// Grains that the end of the file cuts.
    pub cut: Vec<u64>,
    /// Grains whose place an earlier grain has.
    pub shared: Vec<u64>,
    /// Compressed grains whose marker is wrong.
    unmarked: Vec<u64>,
    /// Redundant tables that differ.
    pub differing: u64,
    /// Entries that redundant tables have and primary ones should have, of grains in places that are nobody's.
    pub spare: Vec<(u64, Entry)>,
    /// Tables that the file does not have, whose redundant twins it has.
    pub lost_tables: Vec<u64>,
    /// Structures of metadata that have no place of their own.
    unsound: u64,
    /// Whole grains of space that nothing refers to.
    leaks: u64,
    /// End of the last thing in the file.
    end: u64,
    /// End of the file.
    file_end: u64,
}

impl Findings {
    fn corruptions(&self) -> u64 {
        (self.outside.len() + self.cut.len() + self.shared.len() + self.unmarked.len()) as u64 + self.unsound
    }
    fn tell(&self, report: &mut CheckReport, name: &str) {
        let lists = [
            (&self.outside, "points outside the grains of the file"),
            (&self.cut, "is of a grain that the end of the file cuts"),
            (&self.shared, "shares its place with another grain or with metadata"),
            (&self.unmarked, "has a wrong marker"),
        ];
        for (grains, what) in lists {
            let room = MESSAGES.saturating_sub(report.messages.len());
            report.messages.extend(
                grains
                    .iter()
                    .take(room)
                    .map(|g| format!("ERROR: {name}: the entry of grain {g} {what}")),
            );
        }
        if self.differing > 0 {
            report.messages.push(format!(
                "{name}: {} redundant grain tables differ from the primary ones",
                self.differing
            ));
        }
        if !self.spare.is_empty() {
            report.messages.push(format!(
                "{name}: {} grains are known to redundant grain tables alone; repairing all takes them over",
                self.spare.len()
            ));
        }
        if self.leaks > 0 {
            report
                .messages
                .push(format!("{name}: {} grains of space that nothing refers to", self.leaks));
        }
    }
}

impl VmdkImage {
    pub fn check_all(&self, repair: Repair, control: &Control) -> Result<CheckReport> {
        let mut report = CheckReport::default();
        self.check_descriptor(&mut report);
        for part in &self.parts {
            match &part.body {
                Body::Zero => {}
                Body::Flat { storage, offset, .. } => {
                    if storage.len()? < offset.saturating_add(part.len()) {
                        report.corruptions += 1;
                        report.messages.push(format!(
                            "ERROR: {}: the file is shorter than its extent",
                            storage.name()
                        ));
                    }
                }
                Body::Sparse { extent, .. } => extent.check(repair, control, &mut report)?,
            }
        }
        Ok(report)
    }

    fn check_descriptor(&self, report: &mut CheckReport) {
        if let Some((descriptor, _)) = self.descriptor().as_ref()
            && descriptor.parent_hint.is_some() != (descriptor.parent_cid != NO_PARENT)
        {
            report.corruptions += 1;
            report
                .messages
                .push("ERROR: parentCID and parentFileNameHint contradict each other".into());
        }
    }
}

impl SparseExtent {
    fn check(&self, repair: Repair, control: &Control, report: &mut CheckReport) -> Result<()> {
        self.tell_unsound(report);
        let before = self.look(control)?;
        before.tell(report, self.file.name());
        let (mut corruptions, mut leaks) = (before.corruptions(), before.leaks);
        if repair != Repair::No && self.packing == Packing::Plain && self.refuse_read_only().is_ok() {
            if repair == Repair::All {
                self.mend(&before, control)?;
            }
            let after = self.look(control)?;
            // What tables of either kind name beyond the other's may be all that is left of the guest's data.
            if after.corruptions() == 0 && after.differing == 0 {
                self.cut(after.end)?;
            }
            let after = self.look(control)?;
            report.corruptions_fixed += corruptions.saturating_sub(after.corruptions());
            report.leaks_fixed += leaks.saturating_sub(after.leaks);
            (corruptions, leaks) = (after.corruptions(), after.leaks);
        }
        report.corruptions += corruptions;
        report.leaks += leaks;
        Ok(())
    }

    /// Tells of metadata that has no place of its own.
    fn tell_unsound(&self, report: &mut CheckReport) {
        let name = self.file.name();
        let tables = self.tables();
        let lost = tables.lost_twins().iter().map(|(index, at)| {
            format!("redundant grain table {index} at {at:#x} lies over other metadata or past the end of the file")
        });
        let all = self.tangled.iter().map(ToString::to_string).chain(lost);
        let room = MESSAGES.saturating_sub(report.messages.len());
        report
            .messages
            .extend(all.take(room).map(|what| format!("ERROR: {name}: {what}")));
    }

    fn look(&self, control: &Control) -> Result<Findings> {
        let mut findings = Findings::default();
        let mut places = self.metadata_places();
        let len = self.file.len()?;
        findings.file_end = len;
        let (count, entries, mut twins) = {
            let tables = self.tables();
            findings.unsound = (self.tangled.len() + tables.lost_twins().len()) as u64;
            (tables.count(), tables.geometry.entries, tables.of_twins())
        };
        let mut index = 0;
        while index < count {
            control.checkpoint(0)?;
            let twin = self.twin_table(&mut twins, index)?;
            let table = match self.table(index) {
                // A table that is not in the file: all its grains are lost.
                Err(e) if e.kind() == crate::ErrorKind::Corrupt => {
                    findings.outside.push(index * entries);
                    findings.lost_tables.extend((twins.place(index) != 0).then_some(index));
                    Err(1)
                }
                other => other?,
            };
            for (grain, entry) in (index * entries..).zip(table.iter().flat_map(|t| t.iter())) {
                self.look_at(grain, *entry, len, &mut findings, &mut places)?;
            }
            self.compare(index, &table, &twin, twins.place(index), &mut findings, &mut places)?;
            let empty = [&table, &twin].map(|t| t.as_ref().err().copied().unwrap_or(1));
            index += empty.into_iter().min().unwrap_or(1);
        }
        places.sort_unstable_by_key(|p| (p.at, p.owner));
        findings.shared = shared(&places);
        findings.spare.extend(spare(&places));
        findings.end = findings.end.max(end(&places));
        if self.packing == Packing::Plain {
            findings.leaks = gaps(&places, self.first_grain_at(), len, self.grain);
        }
        Ok(findings)
    }

    /// Looks at what the redundant table at `twin_at` has and the primary one does not.
    fn compare(
        &self,
        index: u64,
        table: &std::result::Result<Table, u64>,
        twin: &std::result::Result<Table, u64>,
        twin_at: u64,
        findings: &mut Findings,
        places: &mut Vec<Place>,
    ) -> Result<()> {
        let (at, entries) = (self.tables().place(index), self.tables().geometry.entries);
        if twin_at == 0 || twin_at == at || table.is_err() && twin.is_err() {
            return Ok(());
        }
        let none = vec![Entry::UNALLOCATED; usize::try_from(entries).unwrap_or(0)];
        let [primary, other] = [table, twin].map(|t| t.as_ref().map_or(&none, |t| t.as_ref()));
        let mut differs = false;
        for (grain, (entry, other)) in (index * entries..).zip(primary.iter().zip(other)) {
            if entry != other {
                differs = true;
                self.look_at_twin(grain, *entry, *other, findings, places)?;
            }
        }
        findings.differing += u64::from(differs);
        Ok(())
    }

    /// An entry of a redundant table that differs from the primary one. Grains past the end of the disk are nobody's.
    fn look_at_twin(
        &self,
        grain: u64,
        entry: Entry,
        other: Entry,
        findings: &mut Findings,
        places: &mut Vec<Place>,
    ) -> Result<()> {
        let guest = grain.saturating_mul(self.grain);
        if self.packing != Packing::Plain || guest >= self.capacity() {
            return Ok(());
        }
        let len = findings.file_end;
        let needed = self.grain.min(self.capacity() - guest);
        let lost = match entry.grain() {
            Grain::Unallocated | Grain::Invalid => true,
            Grain::Zero => false,
            Grain::At(at) => at >= len,
        };
        match other.grain() {
            Grain::Zero if lost => findings.spare.push((grain, other)),
            Grain::At(at) if at.checked_add(needed).is_some_and(|end| end <= len) => {
                let grain = u32::try_from(grain).unwrap_or(u32::MAX);
                let owner = if lost { Owner::Spare(grain) } else { Owner::Other };
                places.push(self.place_of_grain(at, owner)?);
            }
            _ => {}
        }
        Ok(())
    }

    fn place_of_grain(&self, at: u64, owner: Owner) -> Result<Place> {
        let sectors = u32::try_from(self.grain / SECTOR).map_err(|_| Error::limit("a grain past 2 TiB"))?;
        Ok(Place {
            at: at / SECTOR,
            sectors,
            owner,
        })
    }

    fn look_at(
        &self,
        grain: u64,
        entry: Entry,
        len: u64,
        findings: &mut Findings,
        places: &mut Vec<Place>,
    ) -> Result<()> {
        let guest = grain.saturating_mul(self.grain);
        let at = match entry.grain() {
            Grain::Unallocated | Grain::Zero => return Ok(()),
            Grain::Invalid => {
                findings.outside.push(grain);
                return Ok(());
            }
            Grain::At(at) => at,
        };
        if self.packing == (Packing::Deflated { markers: true }) {
            if marked(self, grain, at, self.grain * 2).is_err() {
                findings.unmarked.push(grain);
            }
            return Ok(());
        }
        let needed = self.grain.min(self.capacity().saturating_sub(guest));
        let (Some(end), Ok(_)) = (at.checked_add(needed), u32::try_from(at / SECTOR)) else {
            findings.outside.push(grain);
            return Ok(());
        };
        if at >= len && self.packing == Packing::Plain {
            findings.outside.push(grain);
        } else {
            if end > len && self.packing == Packing::Plain {
                findings.cut.push(grain);
            }
            findings.end = findings.end.max(end);
            let owner = Owner::Grain(u32::try_from(grain).unwrap_or(u32::MAX));
            places.push(self.place_of_grain(at, owner)?);
        }
        Ok(())
    }

    /// Header, descriptor, directories and tables.
    fn metadata_places(&self) -> Vec<Place> {
        if self.packing != Packing::Plain {
            return Vec::new();
        }
        let header = self
            .header
            .as_ref()
            .map(|h| h.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        let metadata = Metadata::new(header.as_deref(), &self.tables());
        let place = |(at, end): (u64, u64)| Place {
            at: at / SECTOR,
            sectors: u32::try_from((end - at).div_ceil(SECTOR)).unwrap_or(u32::MAX),
            owner: Owner::Metadata,
        };
        metadata.ranges().map(place).collect()
    }

    /// Where grains may begin in a file as it was created.
    pub fn first_grain_at(&self) -> u64 {
        let header = self
            .header
            .as_ref()
            .map(|h| h.lock().unwrap_or_else(std::sync::PoisonError::into_inner).overhead);
        header.unwrap_or(u64::MAX)
    }
}
