//! Metadata kept in memory: clean tables up to a bound, changed ones until they are written.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An L2 table in host words.
pub(super) type Table = Arc<Vec<u64>>;

/// Clean tables, in two generations: one that was not used while a whole generation filled is dropped.
#[derive(Debug, Default)]
struct Clean {
    young: HashMap<usize, Table>,
    old: HashMap<usize, Table>,
}

/// An L2 table that differs from the file.
#[derive(Debug)]
pub(super) struct Changed {
    /// Its words.
    pub table: Table,
    /// Its host offset.
    pub at: u64,
    /// The words that differ.
    pub dirty: Range<usize>,
    /// Whether the file's L1 table points to it: then data and refcounts must be stable before it is written.
    pub linked: bool,
}

/// The L2 tables of one L1 table, by L1 index.
#[derive(Debug)]
pub(super) struct L2Cache {
    clean: Mutex<Clean>,
    changed: BTreeMap<usize, Changed>,
    generation: usize,
}

impl L2Cache {
    /// Keeps about `bytes` of tables of `table_bytes` each.
    pub fn new(bytes: u64, table_bytes: u64) -> Self {
        let tables = bytes / (table_bytes + 64);
        Self {
            clean: Mutex::default(),
            changed: BTreeMap::new(),
            generation: usize::try_from(tables / 2).unwrap_or(usize::MAX).max(2),
        }
    }

    fn clean(&self) -> MutexGuard<'_, Clean> {
        self.clean.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A table, if it is in memory.
    pub fn get(&self, index: usize) -> Option<Table> {
        if let Some(changed) = self.changed.get(&index) {
            return Some(changed.table.clone());
        }
        let mut clean = self.clean();
        if let Some(table) = clean.young.get(&index) {
            return Some(table.clone());
        }
        let table = clean.old.remove(&index)?;
        self.put(&mut clean, index, table.clone());
        Some(table)
    }

    /// Remembers a table as it is in the file.
    pub fn insert(&self, index: usize, table: Table) {
        self.put(&mut self.clean(), index, table);
    }

    fn put(&self, clean: &mut Clean, index: usize, table: Table) {
        if clean.young.len() >= self.generation {
            clean.old = std::mem::take(&mut clean.young);
        }
        clean.young.insert(index, table);
    }

    /// Forgets a table as it is in the file.
    pub fn forget(&mut self, index: usize) {
        self.changed.remove(&index);
        let clean = self.clean.get_mut().unwrap_or_else(PoisonError::into_inner);
        clean.young.remove(&index);
        clean.old.remove(&index);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.changed.clear();
        *self.clean.get_mut().unwrap_or_else(PoisonError::into_inner) = Clean::default();
    }

    /// The table at `index` to be changed; `at` and `table` are used where it is not among the changed ones yet.
    pub fn change(&mut self, index: usize, at: u64, linked: bool, table: impl FnOnce() -> Table) -> &mut Changed {
        self.changed.entry(index).or_insert_with(|| Changed {
            table: table(),
            at,
            dirty: 0..0,
            linked,
        })
    }

    /// All changed tables.
    pub fn changed(&self) -> impl Iterator<Item = (usize, &Changed)> {
        self.changed.iter().map(|(i, c)| (*i, c))
    }
    /// One changed table.
    pub fn changed_at(&self, index: usize) -> Option<&Changed> {
        self.changed.get(&index)
    }
    /// Whether so many tables changed that they should be written soon.
    pub fn is_full(&self) -> bool {
        self.changed.len() >= self.generation
    }
    /// Notes that the file's L1 table may point to the changed tables of `indices`.
    pub fn linked(&mut self, indices: &[usize]) {
        for index in indices {
            if let Some(changed) = self.changed.get_mut(index) {
                changed.linked = true;
            }
        }
    }
    /// Marks as written those of `indices` that did not change since.
    pub fn written(&mut self, indices: &[usize]) {
        for index in indices {
            if let Some(changed) = self.changed.remove(index) {
                self.insert(*index, changed.table);
            }
        }
    }
}

impl Changed {
    /// Widens the changed words.
    pub fn touch(&mut self, words: Range<usize>) -> &mut Vec<u64> {
        self.dirty = if self.dirty.is_empty() {
            words
        } else {
            self.dirty.start.min(words.start)..self.dirty.end.max(words.end)
        };
        Arc::make_mut(&mut self.table)
    }
}
