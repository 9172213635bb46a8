//! Mending of sparse extents: what the primary table has lost is taken from the redundant one, other entries that make no sense become
//! unallocated, shared grains are copied apart, of a grain that the file cuts the rest is kept, redundant tables become copies of the
//! primary ones and get places of their own, and space at the end of the file is cut off.
//!
//! A primary entry of 0 gives way to a redundant one: no writer here, nor QEMU, takes an entry back while the disk has its size, so the
//! primary table was damaged, or a write was cut off between the two, whose data were stable by then.

use std::sync::atomic::Ordering;

use super::check::Findings;
use super::entry::{Entry, Grain};
use super::layout::SECTOR;
use super::sparse::SparseExtent;
use crate::storage::read_padded;
use crate::{Control, Error, Result};

impl SparseExtent {
    pub fn mend(&self, findings: &Findings, control: &Control) -> Result<()> {
        for index in &findings.lost_tables {
            self.tables_mut().unhouse(*index);
        }
        for grain in &findings.outside {
            let _growth = self.growth();
            if self.slot(*grain).0 < self.tables().count() && self.table(self.slot(*grain).0).is_ok() {
                self.set_run(*grain, 1, |_| Entry::UNALLOCATED)?;
            }
        }
        for (grain, entry) in &findings.spare {
            control.checkpoint(0)?;
            let _growth = self.growth();
            self.set_run(*grain, 1, |_| *entry)?;
        }
        for grain in &findings.cut {
            self.complete(*grain)?;
        }
        for grain in &findings.shared {
            control.checkpoint(self.grain)?;
            self.part_shared(*grain)?;
        }
        self.flush(true)?;
        self.house_twins(control)?;
        self.copy_to_twins(control)?;
        self.file.flush()
    }

    /// Makes redundant tables copies of the primary ones.
    fn copy_to_twins(&self, control: &Control) -> Result<()> {
        let tables = self.tables();
        let bytes = usize::try_from(tables.geometry.table_bytes()).unwrap_or(0);
        let (mut primary, mut other) = (vec![0; bytes], vec![0; bytes]);
        let len = self.file.len()?;
        for (at, twin) in tables.directory().iter().zip(tables.redundant()) {
            if *at == 0 || *twin == 0 || *at >= len || *twin >= len || at == twin {
                continue;
            }
            read_padded(self.file.as_ref(), *at, &mut primary)?;
            read_padded(self.file.as_ref(), *twin, &mut other)?;
            if primary != other {
                control.checkpoint(0)?;
                self.file.write_at(*twin, &primary)?;
            }
        }
        Ok(())
    }

    /// Gives places behind the end to redundant tables that have none of their own. They are whole before the directory names them.
    fn house_twins(&self, control: &Control) -> Result<()> {
        let _growth = self.growth();
        let mut tables = self.tables_mut();
        let lost = tables.lost_twins().to_vec();
        let Some(directory_at) = tables.redundant_at.filter(|_| !lost.is_empty()) else {
            return Ok(());
        };
        let bytes = tables.geometry.table_bytes();
        let mut raw = vec![0; usize::try_from(bytes).unwrap_or(0)];
        for (index, _) in &lost {
            control.checkpoint(0)?;
            let primary = tables.place(u64::from(*index));
            if primary == 0 {
                continue;
            }
            let place = self
                .end
                .load(Ordering::Acquire)
                .max(self.file.len()?)
                .next_multiple_of(SECTOR);
            u32::try_from(place / SECTOR).map_err(|_| Error::limit("a grain table past 2 TiB"))?;
            read_padded(self.file.as_ref(), primary, &mut raw)?;
            self.file.set_len(place + bytes.next_multiple_of(SECTOR))?;
            self.file.write_at(place, &raw)?;
            self.end
                .store(place + bytes.next_multiple_of(SECTOR), Ordering::Release);
            tables.house_twin(*index, place);
        }
        self.file.flush()?;
        for (index, _) in &lost {
            let slot = usize::try_from(*index).unwrap_or(usize::MAX);
            let place = tables.redundant().get(slot).copied().unwrap_or(0);
            let sector = u32::try_from(place / SECTOR).unwrap_or(0);
            self.file
                .write_at(directory_at + u64::from(*index) * 4, &sector.to_le_bytes())?;
        }
        self.file.flush()?;
        tables.lose_twins(Vec::new());
        Ok(())
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
        self.end.store(place + self.grain, Ordering::Release);
        self.set_run(grain, 1, |_| Entry::at(place))
    }

    /// Cuts what nothing refers to off the end of the file.
    pub fn cut(&self, end: u64) -> Result<()> {
        let _growth = self.growth();
        let end = end
            .max(self.first_grain_at())
            .checked_next_multiple_of(self.grain)
            .unwrap_or(u64::MAX);
        if end < self.file.len()? {
            self.file.set_len(end)?;
            self.end.store(end, Ordering::Release);
        }
        self.file.flush()
    }
}
