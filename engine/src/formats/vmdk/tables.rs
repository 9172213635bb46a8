//! The grain tables of a sparse extent: decoded on demand, a bounded number kept, changes held until they are written.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use super::entry::{Entry, Geometry};
use crate::storage::{read_padded, read_vec};
use crate::{Error, Result, Storage};

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

pub(super) type Table = Arc<Vec<Entry>>;
/// Places in the file and what belongs there.
type Pieces = Vec<(u64, Vec<u8>)>;

#[derive(Debug)]
struct Cached {
    table: Table,
    /// Entries that the file does not have yet; empty for none.
    changed: Vec<bool>,
}

impl Cached {
    fn clean(table: Table) -> Self {
        Self {
            table,
            changed: Vec::new(),
        }
    }
    fn is_dirty(&self) -> bool {
        !self.changed.is_empty()
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
    /// Tables that got a place which no directory in the file may name yet.
    unnamed: BTreeSet<u64>,
    /// Redundant tables that have no place of their own, with the place that the directory names.
    lost_twins: Vec<(u32, u64)>,
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
            unnamed: BTreeSet::new(),
            lost_twins: Vec::new(),
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
    /// Redundant tables that are not used, by their numbers, with their places.
    pub fn lost_twins(&self) -> &[(u32, u64)] {
        &self.lost_twins
    }
    /// Uses these redundant tables no more.
    pub fn lose_twins(&mut self, mut lost: Vec<(u32, u64)>) {
        lost.sort_unstable();
        lost.dedup();
        for (index, _) in &lost {
            if let Some(place) = usize::try_from(*index).ok().and_then(|i| self.redundant.get_mut(i)) {
                *place = 0;
            }
        }
        self.lost_twins = lost;
    }
    /// Gives a table another redundant one.
    pub fn house_twin(&mut self, index: u32, place: u64) {
        if let Some(at) = usize::try_from(index).ok().and_then(|i| self.redundant.get_mut(i)) {
            *at = place;
        }
    }
    /// A table that the file does not have is to get a new place.
    pub fn unhouse(&mut self, index: u64) {
        if let Some(place) = usize::try_from(index).ok().and_then(|i| self.directory.get_mut(i)) {
            *place = 0;
        }
    }
    /// The redundant tables as if they were the only ones.
    pub fn of_twins(&self) -> Self {
        Self::new(self.geometry, self.redundant.clone(), Vec::new())
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
        self.insert(index, Cached::clean(Arc::new(table)));
    }
    fn insert(&mut self, index: u64, cached: Cached) {
        let mut looked = self.order.len();
        while self.cached.len() >= self.geometry.kept + self.dirty && looked > 0 {
            looked -= 1;
            let Some(oldest) = self.order.pop_front() else { break };
            match self.cached.get(&oldest) {
                Some(c) if c.is_dirty() => self.order.push_back(oldest),
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
            self.insert(index, Cached::clean(table));
        }
        let Some(cached) = self.cached.get_mut(&index) else {
            return;
        };
        if let Some(e) = usize::try_from(slot)
            .ok()
            .and_then(|s| Arc::make_mut(&mut cached.table).get_mut(s))
        {
            *e = entry;
            self.dirty += usize::from(!cached.is_dirty());
            cached.changed.resize(cached.table.len(), false);
            if let Some(changed) = usize::try_from(slot).ok().and_then(|s| cached.changed.get_mut(s)) {
                *changed = true;
            }
        }
    }
    /// Whether the file lacks an entry of a table or of the directory.
    pub fn is_dirty(&self) -> bool {
        self.dirty > 0 || !self.unnamed.is_empty()
    }
    /// Changed tables that have no place in the file yet.
    pub fn homeless(&self) -> Vec<u64> {
        let mut all: Vec<u64> = self
            .cached
            .iter()
            .filter(|(i, c)| c.is_dirty() && self.place(**i) == 0)
            .map(|(i, _)| *i)
            .collect();
        all.sort_unstable();
        all
    }
    /// Gives a table its place and, where it gets one, that of its redundant twin. No directory names them yet.
    pub fn house(&mut self, index: u64, place: u64, redundant: Option<u64>) {
        let Ok(at) = usize::try_from(index) else { return };
        if let Some(p) = self.directory.get_mut(at) {
            *p = place;
        }
        if let (Some(p), Some(r)) = (self.redundant.get_mut(at), redundant) {
            *p = r;
            if let Some(cached) = self.cached.get_mut(&index) {
                cached.changed.fill(true); // Nothing is there yet that could stay.
            }
        }
        self.unnamed.insert(index);
    }
    /// Housed tables that the directories of the file may not name yet.
    pub fn unnamed(&self) -> Vec<u64> {
        self.unnamed.iter().copied().collect()
    }
    /// Changed tables with their places, as large pieces in file order.
    pub fn dirty_pieces(&self) -> Result<Pieces> {
        self.pieces(&self.directory, |_, cached| Ok(self.geometry.encode(&cached.table)))
    }
    /// The same for their redundant twins. Of a twin that differs the entries stay that nobody changed: they may be all that is left of a
    /// damaged table.
    pub fn twin_pieces(&self, file: &dyn Storage) -> Result<Pieces> {
        self.pieces(&self.redundant, |place, cached| {
            let new = self.geometry.encode(&cached.table);
            if cached.changed.iter().all(|changed| *changed) {
                return Ok(new);
            }
            let mut bytes = vec![0; new.len()];
            read_padded(file, place, &mut bytes)?;
            let width = usize::try_from(self.geometry.kind.bytes()).unwrap_or(8);
            let entries = bytes.chunks_exact_mut(width).zip(new.chunks_exact(width));
            for ((old, new), _) in entries.zip(&cached.changed).filter(|(_, changed)| **changed) {
                old.copy_from_slice(new);
            }
            Ok(bytes)
        })
    }
    fn pieces(&self, places: &[u64], stored: impl Fn(u64, &Cached) -> Result<Vec<u8>>) -> Result<Pieces> {
        let mut all: Vec<(u64, &Cached)> = self
            .cached
            .iter()
            .filter(|(_, c)| c.is_dirty())
            .filter_map(|(i, c)| Some((*places.get(usize::try_from(*i).ok()?)?, c)))
            .filter(|(place, _)| *place != 0)
            .collect();
        all.sort_unstable_by_key(|(place, _)| *place);
        let mut pieces = Pieces::new();
        for (place, cached) in all {
            let bytes = stored(place, cached)?;
            match pieces.last_mut() {
                Some((start, piece)) if *start + piece.len() as u64 == place => piece.extend_from_slice(&bytes),
                _ => pieces.push((place, bytes)),
            }
        }
        Ok(pieces)
    }
    /// A table's stored form.
    pub fn stored(&self, index: u64) -> Vec<u8> {
        let none = || vec![0; usize::try_from(self.geometry.table_bytes()).unwrap_or(0)];
        self.cached
            .get(&index)
            .map_or_else(none, |c| self.geometry.encode(&c.table))
    }
    /// The file has everything.
    pub fn mark_clean(&mut self) {
        self.cached.values_mut().for_each(|c| c.changed = Vec::new());
        self.dirty = 0;
        self.unnamed.clear();
    }
}
