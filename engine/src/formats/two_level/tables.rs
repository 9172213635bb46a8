//! Tables: cached pages of L2 entries, runs of equal kind, ordered writing out.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::Ordering;

use super::{Codec, Slot, Space, TwoLevel};
use crate::formats::common::{exclusive, lock, shared};
use crate::{Error, Result};

/// Entries of one cached page at most: 64 KiB of a table.
const PAGE_ENTRIES: u64 = 8192;
/// Pages that one search for a run reads at most.
const PAGES_PER_RUN: usize = 16;
/// Dirty pages that plain writes leave in memory at most.
const MAX_DIRTY_PAGES: usize = 256;

/// The tables in memory.
pub(super) struct State {
    l1: Vec<u64>,
    l1_dirty: BTreeSet<usize>,
    pages: HashMap<u64, Page>,
    /// Changes whenever pages in the file become others than they were.
    written: u64,
}

struct Page {
    entries: Vec<u64>,
    dirty: bool,
}

/// What is known about a cluster without reading.
enum Known {
    Entry(u64),
    /// No L2 table: this many clusters are unallocated.
    NoTable(u64),
    NotLoaded,
}

impl State {
    pub(super) fn new(l1: Vec<u64>) -> Self {
        Self {
            l1,
            l1_dirty: BTreeSet::new(),
            pages: HashMap::new(),
            written: 0,
        }
    }
}

/// Table bytes as numbers.
pub(super) fn decode_entries(raw: &[u8], little_endian: bool) -> Vec<u64> {
    let number = |b: &[u8]| {
        let big = crate::formats::common::be64(b);
        if little_endian { big.swap_bytes() } else { big }
    };
    raw.chunks_exact(8).map(number).collect()
}

/// Numbers as table bytes.
fn encode_entries(entries: &[u64], little_endian: bool) -> Vec<u8> {
    let bytes = |e: &u64| {
        if little_endian {
            e.to_le_bytes()
        } else {
            e.to_be_bytes()
        }
    };
    entries.iter().flat_map(bytes).collect()
}

impl<C: Codec> TwoLevel<C> {
    fn page_entries(&self) -> u64 {
        self.shape.l2_entries.min(PAGE_ENTRIES)
    }

    /// Index into L1 for a cluster.
    fn l1_index(&self, cluster: u64) -> Result<usize> {
        usize::try_from(cluster / self.shape.l2_entries).map_err(|_| Error::invalid("cluster past the L1 table"))
    }

    /// An L1 entry that may be followed: 0, or aligned and inside the file.
    fn l2_offset(&self, state: &State, cluster: u64) -> Result<u64> {
        let index = self.l1_index(cluster)?;
        let at = state.l1.get(index).copied().unwrap_or(0);
        if at == 0 {
            return Ok(0);
        }
        self.check_l2_offset(at)
            .map_err(|e| e.at(format!("{}: L1 entry {index}", self.file.name())))
    }

    /// Whether an L2 table can be at `at`.
    pub(in crate::formats) fn check_l2_offset(&self, at: u64) -> Result<u64> {
        let bytes = self.shape.l2_entries * 8;
        self.check_place(at, bytes, "L2 table")
    }

    /// Whether something of `bytes` bytes can be at `at`: aligned, behind the header and L1, inside the file.
    pub(in crate::formats) fn check_place(&self, at: u64, bytes: u64, what: &str) -> Result<u64> {
        let end = self.end.load(Ordering::Acquire);
        if !at.is_multiple_of(self.shape.accepted_alignment) {
            return Err(Error::corrupt(format!(
                "{what} at {at:#x} is not aligned to {} bytes",
                self.shape.accepted_alignment
            )));
        }
        if at < self.shape.first_free || at.checked_add(bytes).is_none_or(|e| e > end) {
            return Err(Error::corrupt(format!(
                "{what} of {bytes} bytes at {at:#x} lies outside of {:#x}..{end:#x}",
                self.shape.first_free
            )));
        }
        let l1 = self.shape.l1_offset..self.shape.l1_offset.saturating_add(self.shape.l1_entries * 8);
        if at < l1.end && at + bytes > l1.start {
            let (start, end) = (l1.start, l1.end);
            return Err(Error::corrupt(format!(
                "{what} of {bytes} bytes at {at:#x} lies over the L1 table at {start:#x}..{end:#x}"
            )));
        }
        Ok(at)
    }

    fn known(&self, state: &State, cluster: u64) -> Result<Known> {
        let page = cluster / self.page_entries();
        if let Some(page) = state.pages.get(&page) {
            let index = usize::try_from(cluster % self.page_entries()).unwrap_or(usize::MAX);
            return Ok(Known::Entry(page.entries.get(index).copied().unwrap_or(0)));
        }
        match self.l2_offset(state, cluster)? {
            0 => Ok(Known::NoTable(self.shape.l2_entries - cluster % self.shape.l2_entries)),
            _ => Ok(Known::NotLoaded),
        }
    }

    /// Brings the page of a cluster into memory, if it has a table.
    fn load(&self, cluster: u64) -> Result<()> {
        while !self.try_load(cluster)? {}
        Ok(())
    }

    /// False where pages were written while this one was read: what was read may be older than what was written and dropped since.
    fn try_load(&self, cluster: u64) -> Result<bool> {
        let number = cluster / self.page_entries();
        let state = shared(&self.state);
        if state.pages.contains_key(&number) {
            return Ok(true);
        }
        let table = self.l2_offset(&state, cluster)?;
        let written = state.written;
        drop(state);
        if table == 0 {
            return Ok(true);
        }
        let per_page = self.page_entries();
        let inside = cluster % self.shape.l2_entries / per_page * per_page * 8;
        let mut raw = vec![0; usize::try_from(per_page * 8).unwrap_or(0)];
        self.file.read_at(table + inside, &mut raw)?;
        let entries = decode_entries(&raw, self.shape.little_endian);
        let mut state = exclusive(&self.state);
        if state.written != written {
            return Ok(false);
        }
        let keep = usize::try_from(self.shape.cache_bytes / (per_page * 8)).unwrap_or(usize::MAX);
        if state.pages.len() > keep.max(2) {
            state.pages.retain(|_, page| page.dirty);
        }
        state.pages.entry(number).or_insert(Page { entries, dirty: false });
        Ok(true)
    }

    /// The slot of `cluster`, checked, and how many clusters up to `max` continue it (contiguously for data).
    pub(in crate::formats) fn run(&self, cluster: u64, max: u64) -> Result<(Slot, u64)> {
        let mut first = None;
        let mut count = 0;
        let mut loads = 0;
        let mut state = shared(&self.state);
        while count < max {
            let (slot, n) = match self.known(&state, cluster + count) {
                Ok(Known::NoTable(n)) => (Slot::Unallocated, n),
                Ok(Known::Entry(entry)) => match self.slot(entry) {
                    Ok(slot) => (slot, 1),
                    Err(_) if first.is_some() => break,
                    Err(e) => return Err(e.at(format!("{}: cluster {}", self.file.name(), cluster + count))),
                },
                Ok(Known::NotLoaded) if first.is_some() && loads >= PAGES_PER_RUN => break,
                Ok(Known::NotLoaded) => {
                    loads += 1;
                    drop(state);
                    self.load(cluster + count)?;
                    state = shared(&self.state);
                    continue;
                }
                Err(_) if first.is_some() => break,
                Err(e) => return Err(e),
            };
            match first {
                None => first = Some(slot),
                Some(Slot::Data(at)) if slot == Slot::Data(at.saturating_add(count * self.shape.cluster)) => {}
                Some(Slot::Compressed { .. }) if matches!(slot, Slot::Compressed { .. }) => {}
                Some(start) if start == slot && !matches!(slot, Slot::Data(_)) => {}
                Some(_) => break,
            }
            count += n;
        }
        Ok((first.unwrap_or(Slot::Unallocated), count.min(max)))
    }

    /// Decodes an entry and checks the place it names.
    pub(in crate::formats) fn slot(&self, entry: u64) -> Result<Slot> {
        let slot = self.codec.decode(entry)?;
        match slot {
            Slot::Data(at) => self.check_place(at, self.shape.cluster, "cluster").map(|_| slot),
            Slot::Compressed { at, len } => {
                let end = self.end.load(Ordering::Acquire);
                if at < self.shape.first_free || at.checked_add(len).is_none_or(|e| e > end) {
                    return Err(Error::corrupt(format!(
                        "compressed cluster of {len} bytes at {at:#x} lies outside of {:#x}..{end:#x}",
                        self.shape.first_free
                    )));
                }
                Ok(slot)
            }
            Slot::Unallocated | Slot::Zero => Ok(slot),
        }
    }

    /// Sets the entries of `count` clusters from `cluster` on; data clusters follow each other. The caller holds the space lock.
    pub(super) fn set_run(&self, space: &mut Space, cluster: u64, count: u64, slot: Slot) -> Result<()> {
        for n in 0..count {
            let slot = match slot {
                Slot::Data(at) => Slot::Data(at + n * self.shape.cluster),
                other => other,
            };
            let entry = self
                .codec
                .encode(slot)
                .ok_or_else(|| Error::unsupported("the file is too large for the entries of its tables"))?;
            self.set(space, cluster + n, entry)?;
        }
        Ok(())
    }

    fn set(&self, space: &mut Space, cluster: u64, entry: u64) -> Result<()> {
        self.ensure_table(space, cluster)?;
        loop {
            self.load(cluster)?;
            let mut state = exclusive(&self.state);
            let index = usize::try_from(cluster % self.page_entries()).unwrap_or(usize::MAX);
            let page = state.pages.get_mut(&(cluster / self.page_entries()));
            // Another reader may have dropped the clean page in between: load it again.
            let Some(page) = page else { continue };
            if let Some(place) = page.entries.get_mut(index) {
                *place = entry;
            }
            if !std::mem::replace(&mut page.dirty, true) {
                self.dirty_pages.fetch_add(1, Ordering::Relaxed);
            }
            return Ok(());
        }
    }

    /// Makes sure that a cluster has an L2 table. A new one is zeroed in the file before anything can refer to it.
    fn ensure_table(&self, space: &mut Space, cluster: u64) -> Result<()> {
        if self.l2_offset(&shared(&self.state), cluster)? != 0 {
            return Ok(());
        }
        let bytes = self.shape.l2_entries * 8;
        let at = self.take(space, bytes, self.shape.alignment)?;
        self.file.write_zeroes(at, bytes, true)?;
        let index = self.l1_index(cluster)?;
        let mut state = exclusive(&self.state);
        if let Some(entry) = state.l1.get_mut(index) {
            *entry = at;
            state.l1_dirty.insert(index);
        }
        Ok(())
    }

    /// Takes space at the end of the file.
    pub(super) fn take(&self, space: &mut Space, bytes: u64, alignment: u64) -> Result<u64> {
        let at = space.end.checked_next_multiple_of(alignment);
        let end = at.and_then(|at| at.checked_add(bytes)).filter(|e| *e <= 1 << 62);
        let (Some(at), Some(end)) = (at, end) else {
            return Err(Error::limit("the file would become too large"));
        };
        space.end = end;
        self.end.store(end, Ordering::Release);
        Ok(at)
    }

    /// Plain writes leave a bounded number of changed pages behind.
    pub(super) fn relieve(&self) -> Result<()> {
        if self.dirty_pages.load(Ordering::Relaxed) > MAX_DIRTY_PAGES {
            self.flush()?;
        }
        Ok(())
    }

    /// Writes out what changed, in order, and returns when it is stable.
    pub(in crate::formats) fn flush(&self) -> Result<()> {
        let mut space = lock(&self.space);
        if space.broken {
            return Err(Error::io(
                "an earlier flush failed: what is stable is not known",
                std::io::Error::from(std::io::ErrorKind::Other),
            )
            .at(self.file.name()));
        }
        let result = self.write_out(space.end);
        space.broken = result.is_err();
        result
    }

    fn write_out(&self, end: u64) -> Result<()> {
        // 1. Guest data, and new tables as zeroes.
        if self.file.can_resize() && self.file.len()? < end {
            self.file.set_len(end)?;
        }
        self.file.flush()?;
        // 2. Entries; new tables are not referred to yet. Nobody changes tables while the space lock is held.
        let numbers: Vec<u64> = dirty_numbers(&shared(&self.state));
        for number in &numbers {
            self.write_page(*number)?;
        }
        let l1: Vec<(usize, u64)> = {
            let state = shared(&self.state);
            let entry = |i: &usize| Some((*i, *state.l1.get(*i)?));
            state.l1_dirty.iter().filter_map(entry).collect()
        };
        if !numbers.is_empty() || !l1.is_empty() {
            self.file.flush()?;
        }
        // 3. L1 refers to tables that are stable.
        for (index, entry) in &l1 {
            let raw = encode_entries(&[*entry], self.shape.little_endian);
            self.file.write_at(self.shape.l1_offset + *index as u64 * 8, &raw)?;
        }
        if !l1.is_empty() {
            self.file.flush()?;
        }
        let mut state = exclusive(&self.state);
        state.l1_dirty.clear();
        state.written += 1;
        for number in numbers {
            if let Some(page) = state.pages.get_mut(&number) {
                page.dirty = false;
            }
        }
        self.dirty_pages.store(0, Ordering::Relaxed);
        Ok(())
    }

    fn write_page(&self, number: u64) -> Result<()> {
        let cluster = number * self.page_entries();
        let (table, raw) = {
            let state = shared(&self.state);
            let Some(page) = state.pages.get(&number) else {
                return Ok(());
            };
            (
                self.l2_offset(&state, cluster)?,
                encode_entries(&page.entries, self.shape.little_endian),
            )
        };
        let inside = cluster % self.shape.l2_entries * 8;
        self.file.write_at(table + inside, &raw)
    }

    /// All L1 entries, as they are in memory.
    pub(in crate::formats) fn l1(&self) -> Vec<u64> {
        shared(&self.state).l1.clone()
    }

    /// Reads the tables anew after a repair changed them in the file.
    pub(in crate::formats) fn reload(&self) -> Result<()> {
        let mut state = exclusive(&self.state);
        let mut raw = vec![0; state.l1.len() * 8];
        self.file.read_at(self.shape.l1_offset, &mut raw)?;
        let written = state.written + 1;
        *state = State::new(decode_entries(&raw, self.shape.little_endian));
        state.written = written;
        self.dirty_pages.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// Forgets every mapping: all L1 entries become 0 in the file, stable before the caller cuts the file.
    pub(in crate::formats) fn clear(&self) -> Result<()> {
        let mut space = lock(&self.space);
        let bytes = self.shape.l1_entries * 8;
        self.file.write_zeroes(self.shape.l1_offset, bytes, false)?;
        self.file.flush()?;
        let mut state = exclusive(&self.state);
        state.l1.fill(0);
        state.l1_dirty.clear();
        state.written += 1;
        state.pages.clear();
        self.dirty_pages.store(0, Ordering::Relaxed);
        space.end = self.shape.first_free;
        self.end.store(space.end, Ordering::Release);
        self.file.set_len(space.end)
    }

    /// Uses more entries of an L1 table that has room for them on disk (they are loaded, not assumed empty).
    pub(in crate::formats) fn grow(&self, size: u64) -> Result<()> {
        let _space = lock(&self.space);
        let per_table = self.shape.l2_entries * self.shape.cluster;
        let wanted =
            usize::try_from(size.div_ceil(per_table)).map_err(|_| Error::limit("the L1 table is too large"))?;
        let mut state = exclusive(&self.state);
        let have = state.l1.len();
        if wanted > have {
            let mut raw = vec![0; (wanted - have) * 8];
            self.file.read_at(self.shape.l1_offset + have as u64 * 8, &mut raw)?;
            state.l1.extend(decode_entries(&raw, self.shape.little_endian));
        }
        self.size.store(size, Ordering::Release);
        Ok(())
    }
}

fn dirty_numbers(state: &State) -> Vec<u64> {
    let mut numbers: Vec<_> = state.pages.iter().filter(|(_, p)| p.dirty).map(|(n, _)| *n).collect();
    numbers.sort_unstable();
    numbers
}
