//! One sparse extent: from a guest offset to its grain.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::entry::{Entry, Grain};
use super::inflate::{LastGrain, inflate};
use super::layout::Header;
use super::metadata::Overlap;
use super::reserved::Reserved;
use super::tables::{Table, Tables};
use crate::{Error, Result, StorageRef};

/// How grains are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    /// As they are.
    Plain,
    /// Deflated; with `markers` the guest sector and the length stand before the data.
    Deflated {
        /// Whether markers are there.
        markers: bool,
    },
}

/// A sparse extent of any kind.
#[derive(Debug)]
pub(super) struct SparseExtent {
    pub file: StorageRef,
    pub packing: Packing,
    /// Guest bytes; growing changes it.
    pub capacity: AtomicU64,
    /// Guest bytes of a grain.
    pub grain: u64,
    /// Whether entries can mean zeroes.
    pub zero_grains: bool,
    /// Why it cannot be written, if it cannot.
    pub read_only: Option<&'static str>,
    /// The header of a hosted extent, as the file has it.
    pub header: Option<Mutex<Header>>,
    /// Where the next new grain goes; changed with `growth` held.
    pub end: AtomicU64,
    pub tables: RwLock<Tables>,
    /// What was metadata when the image was opened.
    pub reserved: Reserved,
    /// Held while grains are added.
    pub growth: Mutex<()>,
    /// A flush failed: what is stable is no longer known, and later flushes must not say otherwise.
    pub broken: AtomicBool,
    /// Whether the tables were looked through for what must not be written to.
    pub looked: AtomicBool,
    /// Metadata over other metadata, redundant tables left out; filled where the image is opened for a check. The first hundred.
    pub tangled: Vec<Overlap>,
    pub last: LastGrain,
}

/// What a run of an extent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Run {
    Unallocated,
    Zero,
    /// Stored as is from this byte of the file on.
    Data(u64),
    /// Stored deflated: one grain, from this byte of the file on, or a run of such grains.
    Deflated(u64),
}

impl SparseExtent {
    pub fn tables(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }
    pub fn tables_mut(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }
    pub fn growth(&self) -> MutexGuard<'_, ()> {
        self.growth.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Acquire)
    }

    /// The table with this number, or how many tables from it on have no entry at all.
    pub fn table(&self, index: u64) -> Result<std::result::Result<Table, u64>> {
        loop {
            match self.tables().known(index) {
                Ok(Some(table)) => return Ok(Ok(table)),
                Err(empty) => return Ok(Err(empty)),
                Ok(None) => {}
            }
            let mut tables = self.tables_mut();
            if matches!(tables.known(index), Ok(None)) {
                tables.load(index, self.file.as_ref())?;
            }
        }
    }

    /// The same of the redundant tables, which `twins` are. Where there are none no table has an entry.
    pub fn twin_table(&self, twins: &mut Tables, index: u64) -> Result<std::result::Result<Table, u64>> {
        if twins.count() == 0 {
            return Ok(Err(self.tables().count().saturating_sub(index).max(1)));
        }
        if matches!(twins.known(index), Ok(None)) {
            twins.load(index, self.file.as_ref())?;
        }
        Ok(match twins.known(index) {
            Ok(Some(table)) => Ok(table),
            Ok(None) => Err(1),
            Err(empty) => Err(empty),
        })
    }

    /// Number of the table and of the entry in it for a guest grain.
    pub fn slot(&self, grain: u64) -> (u64, u64) {
        let entries = self.tables().geometry.entries;
        (grain / entries, grain % entries)
    }

    /// Where one grain is.
    pub fn grain(&self, grain: u64) -> Result<Grain> {
        let (index, slot) = self.slot(grain);
        Ok(match self.table(index)? {
            Ok(table) => entry_of(&table, slot).grain(),
            Err(_) => Grain::Unallocated,
        })
    }

    /// What the range begins with: the longest run of one kind.
    pub fn run(&self, offset: u64, len: u64) -> Result<(Run, u64)> {
        let entries = self.tables().geometry.entries;
        let (first, within) = (offset / self.grain, offset % self.grain);
        let last = (offset + len.max(1) - 1) / self.grain;
        let mut grain = first;
        let mut start = None;
        while grain <= last {
            let (index, slot) = (grain / entries, grain % entries);
            match self.table(index)? {
                Err(empty) => {
                    if start.is_some_and(|s| s != Grain::Unallocated) {
                        break;
                    }
                    start = Some(Grain::Unallocated);
                    grain = (index.saturating_add(empty)).saturating_mul(entries);
                }
                Ok(table) => {
                    let rest = table
                        .get(usize::try_from(slot).unwrap_or(usize::MAX)..)
                        .unwrap_or_default();
                    let first_here = rest.first().map_or(Grain::Invalid, |e| e.grain());
                    let begin = *start.get_or_insert(first_here);
                    let same = rest
                        .iter()
                        .take(usize::try_from(last - grain + 1).unwrap_or(usize::MAX))
                        .zip(grain - first..)
                        .take_while(|(e, n)| self.continues(begin, *n, e.grain()))
                        .count() as u64;
                    grain += same;
                    if same < (entries - slot).min(last - (grain - same) + 1) {
                        break;
                    }
                }
            }
        }
        let found = (grain.saturating_sub(first))
            .saturating_mul(self.grain)
            .saturating_sub(within)
            .min(len);
        let run = match (start.unwrap_or(Grain::Invalid), self.packing) {
            (Grain::Unallocated, _) => Run::Unallocated,
            (Grain::Zero, _) => Run::Zero,
            (Grain::At(at), Packing::Plain) => Run::Data(at + within),
            (Grain::At(at), Packing::Deflated { .. }) => Run::Deflated(at),
            (Grain::Invalid, _) => {
                let what = format!("the grain table entry of guest offset {offset:#x} points outside the grains");
                return Err(Error::corrupt(what).at(self.file.name()));
            }
        };
        Ok((run, found))
    }

    /// Whether a grain `n` grains behind the first of a run belongs to it.
    fn continues(&self, first: Grain, n: u64, next: Grain) -> bool {
        match (first, next, self.packing) {
            (Grain::At(a), Grain::At(b), Packing::Plain) => {
                n.checked_mul(self.grain).and_then(|d| a.checked_add(d)) == Some(b)
            }
            (Grain::At(_), Grain::At(_), Packing::Deflated { .. }) => true,
            (a, b, _) => a == b,
        }
    }

    /// Reads what the extent has; zeroes elsewhere.
    pub fn read(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<()> {
        while !buf.is_empty() {
            let (run, len) = self.run(offset, buf.len() as u64)?;
            let (head, rest) = buf.split_at_mut(usize::try_from(len).unwrap_or(usize::MAX).min(buf.len()));
            match run {
                Run::Unallocated | Run::Zero => head.fill(0),
                Run::Data(at) => self.file.read_at(at, head)?,
                Run::Deflated(_) => self.read_deflated(offset, head)?,
            }
            offset += len;
            buf = rest;
        }
        Ok(())
    }

    fn read_deflated(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<()> {
        while !buf.is_empty() {
            let (number, within) = (offset / self.grain, offset % self.grain);
            let len = usize::try_from(self.grain - within)
                .unwrap_or(usize::MAX)
                .min(buf.len());
            let (head, rest) = buf.split_at_mut(len);
            let Grain::At(at) = self.grain(number)? else {
                return Err(Error::corrupt(format!(
                    "the grain at guest offset {offset:#x} changed while it was read"
                )));
            };
            inflate(self, number, at, usize::try_from(within).unwrap_or(usize::MAX), head)
                .map_err(|e| e.at(format!("{}, grain at {at:#x}", self.file.name())))?;
            offset += len as u64;
            buf = rest;
        }
        Ok(())
    }
}

fn entry_of(table: &[Entry], slot: u64) -> Entry {
    usize::try_from(slot)
        .ok()
        .and_then(|s| table.get(s))
        .copied()
        .unwrap_or(Entry::UNALLOCATED)
}
