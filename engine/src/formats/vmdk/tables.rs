//! The grain tables of a sparse extent: decoded on demand, a bounded number kept, changes held until they are written.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use super::esx::{SeGrain, sesparse_grain};
use super::layout::SECTOR;
use crate::storage::read_vec;
use crate::{Error, Result, Storage};

/// How the entries of grain tables are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EntryKind {
    /// 32-bit sector numbers; with `zero_grains` 1 means zeroes.
    Sectors { zero_grains: bool },
    /// 64-bit SESparse entries over grains of this many bytes that start there.
    SeSparse { grains_at: u64, grain: u64 },
}

impl EntryKind {
    fn bytes(self) -> u64 {
        match self {
            Self::Sectors { .. } => 4,
            Self::SeSparse { .. } => 8,
        }
    }
}

/// Where a grain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grain {
    /// Not in this extent.
    Unallocated,
    /// Zeroes.
    Zero,
    /// At this byte of the file.
    At(u64),
    /// The entry makes no sense.
    Invalid,
}

/// A decoded entry: small, since tables of huge disks are many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry(u64);

impl Entry {
    pub const UNALLOCATED: Self = Self(0);
    pub const ZERO: Self = Self(1);
    const INVALID: Self = Self(u64::MAX);

    /// A grain at a byte of the file.
    pub fn at(offset: u64) -> Self {
        Self(offset)
    }
    pub fn grain(self) -> Grain {
        match self {
            Self::UNALLOCATED => Grain::Unallocated,
            Self::ZERO => Grain::Zero,
            Self::INVALID => Grain::Invalid,
            Self(offset) => Grain::At(offset),
        }
    }
}

/// Reads a structure that must lie inside the file.
pub(super) fn read_inside(file: &dyn Storage, at: u64, len: usize, what: &str) -> Result<Vec<u8>> {
    let end = file.len()?;
    if at.checked_add(len as u64).is_none_or(|e| e > end) {
        return Err(Error::corrupt(format!(
            "the {what} of {len} bytes at {at:#x} ends past the end of the file at {end:#x}"
        )));
    }
    read_vec(file, at, len)
}

type Table = Arc<Vec<Entry>>;

#[derive(Debug)]
struct Cached {
    table: Table,
    dirty: bool,
}

/// How tables of an extent are found and read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Geometry {
    pub kind: EntryKind,
    /// Entries of a table.
    pub entries: u64,
    /// No grain starts before this byte.
    pub floor: u64,
    /// Tables kept at most, changed ones not counted.
    pub kept: usize,
}

impl Geometry {
    /// Bytes of a table in the file.
    pub fn table_bytes(&self) -> u64 {
        self.entries * self.kind.bytes()
    }
    fn decode(&self, raw: &[u8]) -> Entry {
        let low = |b: &[u8]| b.iter().rev().fold(0u64, |v, b| v << 8 | u64::from(*b));
        let placed = |offset: u64| {
            if offset < self.floor {
                Entry::INVALID
            } else {
                Entry(offset)
            }
        };
        match (self.kind, low(raw)) {
            (_, 0) => Entry::UNALLOCATED,
            (EntryKind::Sectors { zero_grains: true }, 1) => Entry::ZERO,
            (EntryKind::Sectors { .. }, sector) => placed(sector * SECTOR),
            (EntryKind::SeSparse { grains_at, grain }, entry) => match sesparse_grain(entry) {
                SeGrain::Unallocated => Entry::UNALLOCATED,
                SeGrain::Zero => Entry::ZERO,
                SeGrain::Invalid => Entry::INVALID,
                SeGrain::Data(n) => n
                    .checked_mul(grain)
                    .and_then(|o| o.checked_add(grains_at))
                    .map_or(Entry::INVALID, placed),
            },
        }
    }
    /// The stored form of 32-bit entries.
    fn encode(&self, table: &[Entry]) -> Vec<u8> {
        let sector = |e: &Entry| match e.grain() {
            Grain::Unallocated => 0,
            Grain::Zero => 1,
            Grain::At(offset) => u32::try_from(offset / SECTOR).unwrap_or(u32::MAX), // Checked when it was allocated.
            Grain::Invalid => u32::MAX,
        };
        table.iter().flat_map(|e| sector(e).to_le_bytes()).collect()
    }
}

/// Directory and tables of one sparse extent.
#[derive(Debug)]
pub(super) struct Tables {
    pub geometry: Geometry,
    /// Where the directory is in the file.
    pub directory_at: u64,
    /// Where the redundant directory is.
    pub redundant_at: Option<u64>,
    /// Where each table is; 0 for none.
    directory: Vec<u64>,
    /// The same for the redundant tables; empty without.
    redundant: Vec<u64>,
    cached: HashMap<u64, Cached>,
    order: VecDeque<u64>,
    /// Runs of tables (first -> one past the last) known to be without any entry.
    empty: BTreeMap<u64, u64>,
    dirty: usize,
}

impl Tables {
    pub fn new(geometry: Geometry, directory: Vec<u64>, redundant: Vec<u64>) -> Self {
        Self {
            geometry,
            directory_at: 0,
            redundant_at: None,
            directory,
            redundant,
            cached: HashMap::new(),
            order: VecDeque::new(),
            empty: BTreeMap::new(),
            dirty: 0,
        }
    }
    pub fn count(&self) -> u64 {
        self.directory.len() as u64
    }
    pub fn directory(&self) -> &[u64] {
        &self.directory
    }
    pub fn redundant(&self) -> &[u64] {
        &self.redundant
    }
    /// Bytes of changed tables held in memory.
    pub fn dirty_bytes(&self) -> u64 {
        self.dirty as u64 * self.geometry.entries * 8
    }
    /// Adds places of tables that are zeroes in the file.
    pub fn grow(&mut self, directory: Vec<u64>, redundant: Vec<u64>) {
        let from = self.count();
        self.directory = directory;
        self.redundant = redundant;
        self.add_empty(from, self.count());
    }
    /// Where a table is in the file, 0 for nowhere.
    pub fn place(&self, index: u64) -> u64 {
        usize::try_from(index)
            .ok()
            .and_then(|i| self.directory.get(i))
            .copied()
            .unwrap_or(0)
    }

    /// What is known without reading: `Ok(Some)` a table, `Ok(None)` that this many tables from here on have no entry, `Err(())` nothing.
    pub fn known(&self, index: u64) -> std::result::Result<Option<Table>, u64> {
        if let Some(cached) = self.cached.get(&index) {
            return Ok(Some(cached.table.clone()));
        }
        if let Some((_, end)) = self.empty.range(..=index).next_back()
            && *end > index
        {
            return Err(end - index);
        }
        let start = usize::try_from(index).unwrap_or(usize::MAX);
        match self
            .directory
            .get(start..)
            .unwrap_or_default()
            .iter()
            .take_while(|p| **p == 0)
            .count()
        {
            0 => Ok(None),
            n => Err(n as u64),
        }
    }

    /// Reads the table and those that follow it in the file.
    pub fn load(&mut self, index: u64, file: &dyn Storage) -> Result<()> {
        let bytes = self.geometry.table_bytes();
        let at = self.place(index);
        let start = usize::try_from(index).unwrap_or(usize::MAX);
        let rest = self.directory.get(start..).unwrap_or_default();
        let neighbours = (0u64..)
            .zip(rest)
            .take_while(|(n, p)| at.checked_add(n * bytes) == Some(**p))
            .count() as u64;
        let len = file.len()?;
        if at >= len {
            return Err(Error::corrupt(format!(
                "grain table {index} at {at:#x} lies past the end of the file at {len:#x}"
            )));
        }
        let first = file.extent(at, neighbours.max(1) * bytes)?;
        if !first.data && first.len >= bytes {
            self.add_empty(index, index + first.len / bytes);
            return Ok(());
        }
        let wanted = if first.data { first.len.div_ceil(bytes) } else { 1 };
        let batch = (128 << 10) / bytes;
        let count = wanted.min(neighbours).min(batch.max(1)).min((len - at) / bytes).max(1);
        let len = usize::try_from(count * bytes).map_err(|_| Error::limit("grain tables past the address space"))?;
        let raw = read_inside(file, at, len, &format!("grain table {index}"))?;
        for (i, raw) in (index..).zip(raw.chunks_exact(usize::try_from(bytes).unwrap_or(usize::MAX))) {
            if !self.cached.contains_key(&i) {
                self.keep(i, raw);
            }
        }
        Ok(())
    }

    fn keep(&mut self, index: u64, raw: &[u8]) {
        if raw.iter().all(|b| *b == 0) {
            return self.add_empty(index, index + 1);
        }
        let width = usize::try_from(self.geometry.kind.bytes()).unwrap_or(8);
        let table = raw.chunks_exact(width).map(|e| self.geometry.decode(e)).collect();
        self.insert(
            index,
            Cached {
                table: Arc::new(table),
                dirty: false,
            },
        );
    }
    fn insert(&mut self, index: u64, cached: Cached) {
        let mut looked = self.order.len();
        while self.cached.len() >= self.geometry.kept + self.dirty && looked > 0 {
            looked -= 1;
            let Some(oldest) = self.order.pop_front() else { break };
            match self.cached.get(&oldest) {
                Some(c) if c.dirty => self.order.push_back(oldest),
                _ => {
                    self.cached.remove(&oldest);
                }
            }
        }
        self.cached.insert(index, cached);
        self.order.push_back(index);
    }
    fn add_empty(&mut self, from: u64, to: u64) {
        let (mut from, mut to) = (from, to.min(self.count()));
        if let Some((start, end)) = self.empty.range(..=from).next_back()
            && *end >= from
        {
            (from, to) = (*start, to.max(*end));
        }
        while let Some((start, end)) = self.empty.range(from..=to).next().map(|(s, e)| (*s, *e)) {
            self.empty.remove(&start);
            to = to.max(end);
        }
        if from < to {
            self.empty.insert(from, to);
        }
    }
    fn take_out_of_empty(&mut self, index: u64) {
        if let Some((start, end)) = self.empty.range(..=index).next_back().map(|(s, e)| (*s, *e))
            && end > index
        {
            self.empty.remove(&start);
            if start < index {
                self.empty.insert(start, index);
            }
            if index + 1 < end {
                self.empty.insert(index + 1, end);
            }
        }
    }

    /// Changes an entry in memory. The table is known by then.
    pub fn set(&mut self, index: u64, slot: u64, entry: Entry) {
        if !self.cached.contains_key(&index) {
            self.take_out_of_empty(index);
            let entries = usize::try_from(self.geometry.entries).unwrap_or(0);
            let table = Arc::new(vec![Entry::UNALLOCATED; entries]);
            self.insert(index, Cached { table, dirty: false });
        }
        let Some(cached) = self.cached.get_mut(&index) else {
            return;
        };
        if let Some(e) = usize::try_from(slot)
            .ok()
            .and_then(|s| Arc::make_mut(&mut cached.table).get_mut(s))
        {
            *e = entry;
            self.dirty += usize::from(!cached.dirty);
            cached.dirty = true;
        }
    }
    pub fn is_dirty(&self) -> bool {
        self.dirty > 0
    }
    /// Changed tables that have no place in the file yet.
    pub fn homeless(&self) -> Vec<u64> {
        let mut all: Vec<u64> = self
            .cached
            .iter()
            .filter(|(i, c)| c.dirty && self.place(**i) == 0)
            .map(|(i, _)| *i)
            .collect();
        all.sort_unstable();
        all
    }
    /// Gives a table its places.
    pub fn house(&mut self, index: u64, place: u64, redundant: Option<u64>) {
        let Ok(at) = usize::try_from(index) else { return };
        if let Some(p) = self.directory.get_mut(at) {
            *p = place;
        }
        if let (Some(p), Some(r)) = (self.redundant.get_mut(at), redundant) {
            *p = r;
        }
    }
    /// Changed tables with their places, redundant places first, as large pieces in file order.
    pub fn dirty_pieces(&self, redundant: bool) -> Vec<(u64, Vec<u8>)> {
        let places = if redundant { &self.redundant } else { &self.directory };
        let mut all: Vec<(u64, &Cached)> = self
            .cached
            .iter()
            .filter(|(_, c)| c.dirty)
            .filter_map(|(i, c)| Some((*places.get(usize::try_from(*i).ok()?)?, c)))
            .filter(|(place, _)| *place != 0)
            .collect();
        all.sort_unstable_by_key(|(place, _)| *place);
        let mut pieces: Vec<(u64, Vec<u8>)> = Vec::new();
        for (place, cached) in all {
            let bytes = self.geometry.encode(&cached.table);
            match pieces.last_mut() {
                Some((start, piece)) if *start + piece.len() as u64 == place => piece.extend_from_slice(&bytes),
                _ => pieces.push((place, bytes)),
            }
        }
        pieces
    }
    /// A table's stored form.
    pub fn stored(&self, index: u64) -> Vec<u8> {
        let none = || vec![0; usize::try_from(self.geometry.table_bytes()).unwrap_or(0)];
        self.cached
            .get(&index)
            .map_or_else(none, |c| self.geometry.encode(&c.table))
    }
    pub fn mark_clean(&mut self) {
        self.cached.values_mut().for_each(|c| c.dirty = false);
        self.dirty = 0;
    }
}
