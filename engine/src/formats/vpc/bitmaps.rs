//! The sector bitmaps of a differencing disk, kept in memory and written at flush.

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::image::lock;
use super::layout::SECTOR;
use crate::storage::read_vec;
use crate::{Error, Result, Storage};

/// The bitmap of one block: a bit a sector, most significant first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bits(Vec<u8>);

/// Sectors of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Bytes.
    pub len: u64,
    /// Whether they are in this layer.
    pub present: bool,
}

impl Bits {
    /// Whether a sector is in this layer.
    pub fn has(&self, sector: u64) -> bool {
        let byte = usize::try_from(sector / 8).ok().and_then(|at| self.0.get(at));
        byte.is_some_and(|b| b & (0x80 >> (sector % 8)) != 0)
    }
    /// The run of one kind from byte `from` of the block, at most `len` bytes.
    pub fn run(&self, from: u64, len: u64) -> Run {
        let first = from / SECTOR;
        let last = (from + len).div_ceil(SECTOR);
        let present = self.has(first);
        let whole = if present { 0xff } else { 0 };
        let mut sector = first + 1;
        while sector < last {
            if sector.is_multiple_of(8)
                && usize::try_from(sector / 8).ok().and_then(|at| self.0.get(at)) == Some(&whole)
            {
                sector += 8;
            } else if self.has(sector) == present {
                sector += 1;
            } else {
                break;
            }
        }
        Run {
            len: (sector.min(last) * SECTOR - from).min(len),
            present,
        }
    }
    fn set(&mut self, sectors: Range<u64>) {
        for sector in sectors {
            if let Some(byte) = usize::try_from(sector / 8).ok().and_then(|at| self.0.get_mut(at)) {
                *byte |= 0x80 >> (sector % 8);
            }
        }
    }
}

#[derive(Debug)]
struct Entry {
    bits: Arc<Bits>,
    /// Where it is in the file.
    place: u64,
    dirty: bool,
}

/// All bitmaps in memory.
#[derive(Debug)]
pub struct Bitmaps {
    size: u64,
    most: usize,
    entries: Mutex<HashMap<usize, Entry>>,
    dirty: AtomicUsize,
}

impl Bitmaps {
    /// For bitmaps of `size` bytes, `cache` bytes of them at most.
    pub fn new(size: u64, cache: u64) -> Self {
        Self {
            size,
            most: usize::try_from(cache / size).unwrap_or(usize::MAX).max(4),
            entries: Mutex::default(),
            dirty: AtomicUsize::new(0),
        }
    }
    /// The bitmap of a block that is stored at `place`.
    pub fn get(&self, storage: &dyn Storage, block: usize, place: u64) -> Result<Arc<Bits>> {
        Ok(self.load(&mut lock(&self.entries), storage, block, place)?.bits.clone())
    }
    fn load<'a>(
        &self,
        entries: &'a mut HashMap<usize, Entry>,
        storage: &dyn Storage,
        block: usize,
        place: u64,
    ) -> Result<&'a mut Entry> {
        if entries.len() >= self.most && !entries.contains_key(&block) {
            entries.retain(|_, e| e.dirty);
        }
        match entries.entry(block) {
            MapEntry::Occupied(entry) => Ok(entry.into_mut()),
            MapEntry::Vacant(vacant) => {
                let len = usize::try_from(self.size).map_err(|_| Error::limit("a bitmap exceeds the address space"))?;
                Ok(vacant.insert(Entry {
                    bits: Arc::new(Bits(read_vec(storage, place, len)?)),
                    place,
                    dirty: false,
                }))
            }
        }
    }
    /// A new block without any sector; the file has zeroes at `place`.
    pub fn start(&self, block: usize, place: u64) {
        let len = usize::try_from(self.size).unwrap_or(0);
        let entry = Entry {
            bits: Arc::new(Bits(vec![0; len])),
            place,
            dirty: false,
        };
        lock(&self.entries).insert(block, entry);
    }
    /// Marks sectors as present.
    pub fn set(&self, storage: &dyn Storage, block: usize, place: u64, sectors: Range<u64>) -> Result<()> {
        let mut entries = lock(&self.entries);
        let entry = self.load(&mut entries, storage, block, place)?;
        Arc::make_mut(&mut entry.bits).set(sectors);
        if !entry.dirty {
            entry.dirty = true;
            self.dirty.fetch_add(1, Ordering::AcqRel);
        }
        Ok(())
    }
    /// How many wait to be written.
    pub fn waiting(&self) -> usize {
        self.dirty.load(Ordering::Acquire)
    }
    /// Whether so many wait that it is time to flush.
    pub fn is_full(&self) -> bool {
        self.waiting() >= self.most
    }
    /// Writes those that changed.
    pub fn write_dirty(&self, storage: &dyn Storage) -> Result<()> {
        let mut entries = lock(&self.entries);
        for entry in entries.values_mut().filter(|e| e.dirty) {
            storage.write_at(entry.place, &entry.bits.0)?;
            entry.dirty = false;
            self.dirty.fetch_sub(1, Ordering::AcqRel);
        }
        Ok(())
    }
    /// Forgets all.
    pub fn clear(&self) {
        lock(&self.entries).clear();
        self.dirty.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_counted_from_the_most_significant() {
        let bits = Bits(vec![0b1100_0001, 0xff, 0]);
        assert_eq!(
            bits.run(0, 24 * 512),
            Run {
                len: 1024,
                present: true
            }
        );
        assert_eq!(
            bits.run(1024, 24 * 512 - 1024),
            Run {
                len: 5 * 512,
                present: false
            }
        );
        assert_eq!(
            bits.run(7 * 512 + 100, 9000),
            Run {
                len: 9 * 512 - 100,
                present: true
            }
        );
        assert_eq!(
            bits.run(16 * 512, 8 * 512),
            Run {
                len: 8 * 512,
                present: false
            }
        );
        assert_eq!(bits.run(100, 10), Run { len: 10, present: true });
    }
}
