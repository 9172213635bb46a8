//! Where directories and tables are: nothing is written there that is taken for guest data.

use super::tables::Tables;
use crate::{Error, Result};

/// Ranges of the file that do not overlap, in its order: first byte and end.
#[derive(Debug, Default)]
pub(super) struct Reserved(Vec<(u64, u64)>);

impl Reserved {
    pub fn new(tables: &Tables) -> Self {
        let directory = tables.count() * 4;
        let directories = [Some(tables.directory_at), tables.redundant_at].into_iter().flatten();
        let bytes = tables.geometry.table_bytes();
        let each = tables.directory().iter().chain(tables.redundant());
        let mut all: Vec<(u64, u64)> = directories
            .map(|at| (at, at.saturating_add(directory)))
            .chain(each.map(|at| (*at, at.saturating_add(bytes))))
            .filter(|(at, _)| *at != 0)
            .collect();
        all.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (from, to) in all {
            match merged.last_mut() {
                Some(last) if from <= last.1 => last.1 = last.1.max(to),
                _ => merged.push((from, to)),
            }
        }
        Self(merged)
    }

    /// Refuses a range for guest data that lies over one of these.
    ///
    /// # Errors
    /// `Corrupt` with both places.
    pub fn refuse(&self, at: u64, len: u64) -> Result<()> {
        let behind = self.0.partition_point(|(_, end)| *end <= at);
        match self.0.get(behind) {
            Some((from, _)) if *from < at.saturating_add(len) => Err(Error::corrupt(format!(
                "guest data at {at:#x} would lie over grain tables at {from:#x}; check can repair it"
            ))),
            _ => Ok(()),
        }
    }
}
