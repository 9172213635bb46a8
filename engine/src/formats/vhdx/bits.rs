//! The sector bitmaps of a differencing disk, in pages of 4 KiB: kept in memory, written at flush. A bit a sector, least significant first.

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::journal::Page;
use super::layout::PAGE;
use crate::formats::common::lock;
use crate::{Result, Storage};

/// Bits of a page.
const BITS: u64 = PAGE * 8;

#[derive(Debug)]
struct Entry {
    bytes: Arc<[u8; PAGE as usize]>,
    dirty: bool,
}

/// All pages in memory, by their place in the file.
#[derive(Debug)]
pub struct Bits {
    most: usize,
    pages: Mutex<HashMap<u64, Entry>>,
    dirty: AtomicUsize,
}

impl Bits {
    /// Keeps about `cache` bytes.
    pub fn new(cache: u64) -> Self {
        Self {
            most: usize::try_from(cache / PAGE).unwrap_or(usize::MAX).max(16),
            pages: Mutex::default(),
            dirty: AtomicUsize::new(0),
        }
    }

    fn load<'a>(&self, pages: &'a mut HashMap<u64, Entry>, storage: &dyn Storage, place: u64) -> Result<&'a mut Entry> {
        if pages.len() >= self.most && !pages.contains_key(&place) {
            pages.retain(|_, e| e.dirty);
        }
        match pages.entry(place) {
            MapEntry::Occupied(entry) => Ok(entry.into_mut()),
            MapEntry::Vacant(vacant) => {
                let mut bytes = [0; PAGE as usize];
                storage.read_at(place, &mut bytes)?;
                Ok(vacant.insert(Entry {
                    bytes: Arc::new(bytes),
                    dirty: false,
                }))
            }
        }
    }

    /// Whether bit `first` of the bitmap at `place` is set, and the end of the run of such bits, at most `last`.
    pub fn run(&self, storage: &dyn Storage, place: u64, first: u64, last: u64) -> Result<(bool, u64)> {
        let mut present = None;
        let mut at = first;
        while at < last {
            let page = place + at / BITS * PAGE;
            let bytes = self.load(&mut lock(&self.pages), storage, page)?.bytes.clone();
            let stop = last.min((at / BITS + 1) * BITS);
            let kind = *present.get_or_insert_with(|| has(&bytes, at % BITS));
            while at < stop {
                if at.is_multiple_of(8) && stop - at >= 8 && byte(&bytes, at % BITS) == if kind { 0xff } else { 0 } {
                    at += 8;
                } else if has(&bytes, at % BITS) == kind {
                    at += 1;
                } else {
                    return Ok((kind, at));
                }
            }
        }
        Ok((present.unwrap_or(false), last))
    }

    /// Sets or clears bits of the bitmap at `place`.
    pub fn set(&self, storage: &dyn Storage, place: u64, bits: Range<u64>, value: bool) -> Result<()> {
        let mut pages = lock(&self.pages);
        let mut at = bits.start;
        while at < bits.end {
            let stop = bits.end.min((at / BITS + 1) * BITS);
            let entry = self.load(&mut pages, storage, place + at / BITS * PAGE)?;
            let bytes = Arc::make_mut(&mut entry.bytes);
            for bit in at..stop {
                let (index, mask) = ((bit % BITS / 8) as usize, 1u8 << (bit % 8));
                if let Some(byte) = bytes.get_mut(index) {
                    *byte = if value { *byte | mask } else { *byte & !mask };
                }
            }
            if !entry.dirty {
                entry.dirty = true;
                self.dirty.fetch_add(1, Ordering::AcqRel);
            }
            at = stop;
        }
        Ok(())
    }

    /// How many pages wait to be written.
    pub fn waiting(&self) -> usize {
        self.dirty.load(Ordering::Acquire)
    }
    /// Whether so many wait that it is time to flush.
    pub fn is_full(&self) -> bool {
        self.waiting() >= self.most
    }
    /// Copies of the pages that changed, in the order of their places.
    pub fn changed(&self) -> Vec<Page> {
        let pages = lock(&self.pages);
        let changed = pages.iter().filter(|(_, e)| e.dirty);
        let mut changed: Vec<Page> = changed.map(|(place, e)| (*place, Box::new(*e.bytes))).collect();
        changed.sort_unstable_by_key(|(place, _)| *place);
        changed
    }
    /// All pages are as in the file now.
    pub fn written(&self) {
        lock(&self.pages).values_mut().for_each(|e| e.dirty = false);
        self.dirty.store(0, Ordering::Release);
    }
    /// Forgets all.
    pub fn clear(&self) {
        lock(&self.pages).clear();
        self.dirty.store(0, Ordering::Release);
    }
}

fn byte(bytes: &[u8; PAGE as usize], bit: u64) -> u8 {
    bytes.get((bit / 8) as usize).copied().unwrap_or(0)
}
fn has(bytes: &[u8; PAGE as usize], bit: u64) -> bool {
    byte(bytes, bit) & (1 << (bit % 8)) != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;

    #[test]
    fn runs_go_over_pages_and_begin_at_the_least_significant_bit() {
        let mut bytes = vec![0; 3 * 4096];
        bytes[4095] = 0x80;
        bytes[4096..4100].fill(0xff);
        bytes[4100] = 1;
        let storage = MemoryStorage::new("m", bytes);
        let bits = Bits::new(0);
        let end = 3 * BITS;
        assert_eq!(bits.run(&storage, 0, 0, end).unwrap(), (false, BITS - 1));
        assert_eq!(bits.run(&storage, 0, BITS - 1, end).unwrap(), (true, BITS + 33));
        assert_eq!(bits.run(&storage, 0, BITS + 33, end).unwrap(), (false, end));
        bits.set(&storage, 0, BITS + 33..2 * BITS + 5, true).unwrap();
        assert_eq!(bits.run(&storage, 0, BITS - 1, end).unwrap(), (true, 2 * BITS + 5));
        assert_eq!(bits.changed().len(), 2);
    }
}
