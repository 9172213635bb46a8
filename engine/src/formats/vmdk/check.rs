//! Checking and mending of sparse extents; flat ones have nothing to check but their length.
//!
//! Corruptions: entries that point outside the grains of the file, two guest grains in one place, grains over tables or directories,
//! grains cut by the end of the file, compressed grains whose marker is another's. Leaks: space behind the metadata that nothing refers to.
//! Mending: shared grains are copied apart, what is not in the file becomes unallocated, of a grain that the file cuts the rest is kept, space at the end of the file is cut off, and
//! redundant tables become copies of the primary ones, which decide.

use super::descriptor::NO_PARENT;
use super::image::{Body, VmdkImage};
use super::inflate::marked;
use super::layout::SECTOR;
use super::sparse::{Packing, SparseExtent};
use super::tables::{Entry, Grain};
use crate::image::{CheckReport, Repair};
use crate::storage::read_padded;
use crate::{Control, Error, Result};

/// Findings told one by one; the rest is only counted.
const MESSAGES: usize = 100;

/// What a look at one extent gave. Grains are guest grains.
#[derive(Debug, Default)]
struct Findings {
    /// Entries that point nowhere sensible.
    outside: Vec<u64>,
    /// Grains that the end of the file cuts.
    cut: Vec<u64>,
    /// Grains whose place an earlier grain has.
    shared: Vec<u64>,
    /// Compressed grains whose marker is wrong.
    unmarked: Vec<u64>,
    /// Redundant tables that differ.
    differing: u64,
    /// Whole grains of space that nothing refers to.
    leaks: u64,
    /// End of the last thing in the file.
    end: u64,
}

impl Findings {
    fn corruptions(&self) -> u64 {
        (self.outside.len() + self.cut.len() + self.shared.len() + self.unmarked.len()) as u64
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
        let before = self.look(control)?;
        before.tell(report, self.file.name());
        let (mut corruptions, mut leaks) = (before.corruptions(), before.leaks);
        if repair != Repair::No && self.packing == Packing::Plain && self.refuse_read_only().is_ok() {
            if repair == Repair::All {
                self.mend(&before, control)?;
            }
            let after = self.look(control)?;
            if after.corruptions() == 0 {
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

    fn look(&self, control: &Control) -> Result<Findings> {
        let mut findings = Findings::default();
        let mut places = self.metadata_places();
        let len = self.file.len()?;
        let (count, entries) = (self.tables().count(), self.tables().geometry.entries);
        let mut index = 0;
        while index < count {
            control.checkpoint(0)?;
            match self.table(index) {
                Ok(Err(empty)) => index += empty,
                Ok(Ok(table)) => {
                    for (grain, entry) in (index * entries..).zip(table.iter()) {
                        self.look_at(grain, *entry, len, &mut findings, &mut places)?;
                    }
                    index += 1;
                }
                // A table that is not in the file: all its grains are lost.
                Err(e) if e.kind() == crate::ErrorKind::Corrupt => {
                    findings.outside.push(index * entries);
                    index += 1;
                }
                Err(e) => return Err(e),
            }
        }
        self.find_shared(&mut places, &mut findings);
        if self.packing == Packing::Plain {
            findings.leaks = self.gaps(&places, len);
        }
        findings.differing = self.differing_tables(None)?;
        Ok(findings)
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
        let (Some(end), Ok(sector)) = (at.checked_add(needed), u32::try_from(at / SECTOR)) else {
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
            let sectors = u32::try_from(self.grain / SECTOR).map_err(|_| Error::limit("a grain past 2 TiB"))?;
            let grain = u32::try_from(grain).unwrap_or(u32::MAX);
            places.push(Place {
                at: sector.into(),
                sectors,
                grain: Some(grain),
            });
        }
        Ok(())
    }

    /// Directories and tables.
    fn metadata_places(&self) -> Vec<Place> {
        let tables = self.tables();
        if self.packing != Packing::Plain {
            return Vec::new();
        }
        let place = |at: u64, bytes: u64| Place {
            at: at / SECTOR,
            sectors: u32::try_from(bytes.div_ceil(SECTOR)).unwrap_or(u32::MAX),
            grain: None,
        };
        let directory = tables.count() * 4;
        let directories = [Some(tables.directory_at).filter(|at| *at != 0), tables.redundant_at];
        let bytes = tables.geometry.table_bytes();
        let both = tables.directory().iter().chain(tables.redundant()).filter(|p| **p != 0);
        directories
            .iter()
            .flatten()
            .map(|at| place(*at, directory))
            .chain(both.map(|at| place(*at, bytes)))
            .collect()
    }

    fn find_shared(&self, places: &mut [Place], findings: &mut Findings) {
        places.sort_unstable_by_key(|p| (p.at, p.grain.is_some(), p.grain));
        let (mut end, mut owner) = (0, None);
        for place in places.iter() {
            if place.at < end {
                // Of a grain and a table the grain gives way, whichever begins first.
                findings
                    .shared
                    .extend(place.grain.or_else(|| owner.take()).map(u64::from));
            }
            if place.at + u64::from(place.sectors) > end {
                end = place.at + u64::from(place.sectors);
                owner = place.grain;
            }
        }
        findings.shared.sort_unstable();
        findings.shared.dedup();
        findings.end = findings.end.max(end * SECTOR);
    }

    /// Whole grains between the sorted places of all that is in use, up to the end of the file. Less than one is what lies beside a table.
    fn gaps(&self, places: &[Place], len: u64) -> u64 {
        let (mut end, mut gaps) = (self.first_grain_at(), 0);
        for place in places {
            let at = place.at.saturating_mul(SECTOR);
            gaps += at.saturating_sub(end) / self.grain;
            end = end.max(at.saturating_add(place.len()));
        }
        gaps + len.saturating_sub(end) / self.grain
    }

    /// Where grains may begin in a file as it was created.
    fn first_grain_at(&self) -> u64 {
        let header = self
            .header
            .as_ref()
            .map(|h| h.lock().unwrap_or_else(std::sync::PoisonError::into_inner).overhead);
        header.unwrap_or(u64::MAX)
    }

    /// Counts redundant tables that differ; with `control` makes them copies of the primary ones.
    fn differing_tables(&self, control: Option<&Control>) -> Result<u64> {
        let tables = self.tables();
        let bytes = usize::try_from(tables.geometry.table_bytes()).unwrap_or(0);
        let (mut primary, mut other, mut count) = (vec![0; bytes], vec![0; bytes], 0);
        let len = self.file.len()?;
        for (at, twin) in tables.directory().iter().zip(tables.redundant()) {
            if *at == 0 || *twin == 0 || *at >= len || *twin >= len || at == twin {
                continue;
            }
            read_padded(self.file.as_ref(), *at, &mut primary)?;
            read_padded(self.file.as_ref(), *twin, &mut other)?;
            if primary != other {
                count += 1;
                if let Some(control) = control {
                    control.checkpoint(0)?;
                    self.file.write_at(*twin, &primary)?;
                }
            }
        }
        Ok(count)
    }

    fn mend(&self, findings: &Findings, control: &Control) -> Result<()> {
        for grain in &findings.outside {
            let _growth = self.growth();
            if self.slot(*grain).0 < self.tables().count() && self.table(self.slot(*grain).0).is_ok() {
                self.set_run(*grain, 1, |_| Entry::UNALLOCATED)?;
            }
        }
        for grain in &findings.cut {
            self.complete(*grain)?;
        }
        for grain in &findings.shared {
            control.checkpoint(self.grain)?;
            self.part_shared(*grain)?;
        }
        self.flush(true)?;
        self.differing_tables(Some(control))?;
        self.file.flush()
    }

    /// What is there of a grain that the file cuts stays, with zeroes behind.
    fn complete(&self, grain: u64) -> Result<()> {
        let _growth = self.growth();
        if let Grain::At(at) = self.grain(grain)?
            && self.file.can_resize()
        {
            let end = at.saturating_add(self.grain);
            self.file.set_len(end.max(self.file.len()?))?;
        }
        Ok(())
    }

    /// Copies a grain to a place of its own.
    fn part_shared(&self, grain: u64) -> Result<()> {
        let _growth = self.growth();
        let Grain::At(from) = self.grain(grain)? else {
            return Ok(());
        };
        let mut bytes =
            vec![0; usize::try_from(self.grain).map_err(|_| Error::limit("a grain past the address space"))?];
        read_padded(self.file.as_ref(), from, &mut bytes)?;
        let place = self.new_place(1)?;
        self.file.write_at(place, &bytes)?;
        self.set_run(grain, 1, |_| Entry::at(place))?;
        self.end.store(place + self.grain, std::sync::atomic::Ordering::Release);
        Ok(())
    }

    /// Cuts what nothing refers to off the end of the file.
    fn cut(&self, end: u64) -> Result<()> {
        let _growth = self.growth();
        let end = end
            .max(self.first_grain_at())
            .checked_next_multiple_of(self.grain)
            .unwrap_or(u64::MAX);
        if end < self.file.len()? {
            self.file.set_len(end)?;
            self.end.store(end, std::sync::atomic::Ordering::Release);
        }
        self.file.flush()
    }
}

/// A run of sectors of the file with its owner: a guest grain, or metadata.
#[derive(Debug, Clone, Copy)]
struct Place {
    at: u64,
    sectors: u32,
    grain: Option<u32>,
}

impl Place {
    fn len(&self) -> u64 {
        u64::from(self.sectors) * SECTOR
    }
}
