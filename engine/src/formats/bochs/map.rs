//! Catalog and bitmaps: which sectors are there, taking extents, ordered writing out.
//!
//! Changes stay in memory until a flush: guest data and empty new extents, flush, bitmaps, flush, catalog, flush. A new extent is
//! all zero in the file before the catalog can name it, so its bitmap says that nothing is there.

use std::collections::{BTreeSet, HashMap};

use super::layout::{Header, NO_EXTENT};
use crate::{Error, Result, StorageRef};

/// Clean bitmaps kept, by their bytes.
const DIRTY_BITMAPS: usize = 4096;

struct Bitmap {
    bits: Vec<u8>,
    dirty: bool,
}

/// Catalog and bitmaps of an open image. Its owner guards it.
pub(super) struct Map {
    file: StorageRef,
    header: Header,
    catalog: Vec<u32>,
    catalog_dirty: BTreeSet<usize>,
    bitmaps: HashMap<usize, Bitmap>,
    cache_bytes: u64,
    /// Number of the next new extent.
    next: u64,
    broken: bool,
}

/// A run of sectors that are all there or all not there.
pub(super) struct Run {
    /// Place of the first byte, if it is there.
    pub place: Option<u64>,
    /// Bytes.
    pub len: u64,
}

impl Map {
    pub(super) fn new(file: StorageRef, header: Header, catalog: Vec<u32>, cache_bytes: u64) -> Result<Self> {
        let used = file.len()?.saturating_sub(header.data_at()).div_ceil(header.stride());
        Ok(Self {
            file,
            header,
            catalog,
            catalog_dirty: BTreeSet::new(),
            bitmaps: HashMap::new(),
            cache_bytes,
            next: used,
            broken: false,
        })
    }

    /// Where an extent starts, if the guest range has one.
    fn extent_at(&self, index: usize) -> Result<Option<u64>> {
        let number = self.catalog.get(index).copied().unwrap_or(NO_EXTENT);
        if number == NO_EXTENT {
            return Ok(None);
        }
        if u64::from(number) >= self.next {
            return Err(Error::corrupt(format!(
                "catalog entry {index} names extent {number}, but the file has {}",
                self.next
            ))
            .at(self.file.name()));
        }
        Ok(Some(self.header.data_at() + u64::from(number) * self.header.stride()))
    }

    fn index(&self, offset: u64) -> usize {
        usize::try_from(offset / self.header.extent).unwrap_or(usize::MAX)
    }

    fn load(&mut self, index: usize, at: u64) -> Result<&mut Bitmap> {
        let keep = usize::try_from(self.cache_bytes / self.header.bitmap.max(1)).unwrap_or(usize::MAX);
        if self.bitmaps.len() > keep && !self.bitmaps.contains_key(&index) {
            self.bitmaps.retain(|_, b| b.dirty);
        }
        match self.bitmaps.entry(index) {
            std::collections::hash_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let mut bits = vec![0; usize::try_from(self.header.bitmap).unwrap_or(0)];
                self.file.read_at(at, &mut bits)?;
                Ok(entry.insert(Bitmap { bits, dirty: false }))
            }
        }
    }

    /// What the range from `offset` (a sector's start) begins with, at most `len` bytes.
    pub(super) fn run(&mut self, offset: u64, len: u64) -> Result<Run> {
        let mut run = self.run_in_extent(offset, len)?;
        while run.place.is_none() && run.len < len && (offset + run.len).is_multiple_of(self.header.extent) {
            match self.run_in_extent(offset + run.len, len - run.len) {
                Ok(next) if next.place.is_none() => run.len += next.len,
                _ => break,
            }
        }
        Ok(run)
    }

    fn run_in_extent(&mut self, offset: u64, len: u64) -> Result<Run> {
        let index = self.index(offset);
        let inside = offset % self.header.extent;
        let len = len.min(self.header.extent - inside);
        let Some(at) = self.extent_at(index)? else {
            return Ok(Run { place: None, len });
        };
        let data = at + self.header.bitmap_space() + inside;
        let bits = &self.load(index, at)?.bits;
        let first = inside / 512;
        let there = bit(bits, first);
        let end = first + len.div_ceil(512);
        let mut next = first + 1;
        while next < end && bit(bits, next) == there {
            next += 1;
        }
        Ok(Run {
            place: there.then_some(data),
            len: ((next - first) * 512).min(len),
        })
    }

    /// Place of `offset`, with an extent made for it if there is none, and how many bytes follow in that extent.
    pub(super) fn make(&mut self, offset: u64) -> Result<(u64, u64)> {
        let index = self.index(offset);
        let inside = offset % self.header.extent;
        let at = match self.extent_at(index)? {
            Some(at) => at,
            None => self.take(index)?,
        };
        Ok((at + self.header.bitmap_space() + inside, self.header.extent - inside))
    }

    fn take(&mut self, index: usize) -> Result<u64> {
        let number = u32::try_from(self.next).ok().filter(|n| *n != NO_EXTENT);
        let (Some(number), Some(entry)) = (number, self.catalog.get_mut(index)) else {
            return Err(Error::limit("the image has no room for another extent"));
        };
        let at = self.header.data_at() + self.next * self.header.stride();
        self.file.write_zeroes(at, self.header.stride(), true)?;
        *entry = number;
        self.next += 1;
        self.catalog_dirty.insert(index);
        Ok(at)
    }

    /// Says that sectors are there now: their data was written.
    pub(super) fn mark(&mut self, offset: u64, len: u64) -> Result<()> {
        let index = self.index(offset);
        let Some(at) = self.extent_at(index)? else {
            return Err(Error::corrupt("an extent went missing"));
        };
        let first = offset % self.header.extent / 512;
        let bitmap = self.load(index, at)?;
        for sector in first..first + len.div_ceil(512) {
            let byte = usize::try_from(sector / 8).unwrap_or(usize::MAX);
            if let Some(byte) = bitmap.bits.get_mut(byte) {
                *byte |= 1 << (sector % 8);
            }
        }
        bitmap.dirty = true;
        Ok(())
    }

    /// Gives the beginning of a run, up to the end of its extent, its place before it is written. Returns place and bytes.
    pub(super) fn place(&mut self, offset: u64, len: u64) -> Result<(u64, u64)> {
        let (at, room) = self.make(offset)?;
        let len = len.min(room);
        self.mark(offset, len)?;
        Ok((at, len))
    }

    /// Whether so much changed that it should be written out.
    pub(super) fn is_crowded(&self) -> bool {
        self.bitmaps.len() > DIRTY_BITMAPS && self.bitmaps.values().filter(|b| b.dirty).count() > DIRTY_BITMAPS
    }

    /// Writes out what changed, in order, and returns when it is stable.
    pub(super) fn flush(&mut self) -> Result<()> {
        if self.broken {
            return Err(Error::io(
                "an earlier flush failed: what is stable is not known",
                std::io::Error::from(std::io::ErrorKind::Other),
            )
            .at(self.file.name()));
        }
        let result = self.write_out();
        self.broken = result.is_err();
        result
    }

    fn write_out(&mut self) -> Result<()> {
        self.file.flush()?;
        let mut dirty: Vec<usize> = self.bitmaps.iter().filter(|(_, b)| b.dirty).map(|(n, _)| *n).collect();
        dirty.sort_unstable();
        for index in &dirty {
            if let (Some(at), Some(bitmap)) = (self.extent_at(*index)?, self.bitmaps.get(index)) {
                self.file.write_at(at, &bitmap.bits)?;
            }
        }
        if !dirty.is_empty() {
            self.file.flush()?;
        }
        for index in &self.catalog_dirty {
            let number = self.catalog.get(*index).copied().unwrap_or(NO_EXTENT);
            self.file
                .write_at(self.header.catalog_at + *index as u64 * 4, &number.to_le_bytes())?;
        }
        if !self.catalog_dirty.is_empty() {
            self.file.flush()?;
        }
        self.catalog_dirty.clear();
        self.bitmaps.values_mut().for_each(|b| b.dirty = false);
        Ok(())
    }
}

fn bit(bits: &[u8], number: u64) -> bool {
    let byte = usize::try_from(number / 8).ok().and_then(|n| bits.get(n));
    byte.is_some_and(|b| b >> (number % 8) & 1 == 1)
}
