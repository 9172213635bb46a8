//! Two guest grains in one place, or a grain over a table: a write to one would change the other. Before the first write all tables are
//! looked through for that.

use std::sync::atomic::Ordering;

use super::entry::Grain;
use super::image::{Body, VmdkImage};
use super::sparse::{Packing, SparseExtent};
use crate::{Error, ErrorKind, Result};

/// Bytes of grain tables that are looked through (of 1 TiB of guest data); larger extents are left to `check`.
const MOST_BYTES: u64 = 64 << 20;

impl VmdkImage {
    /// Before a change of a range: looks once through the tables of each extent that it touches.
    ///
    /// # Errors
    /// `Corrupt` where a write to one grain would change something else.
    pub fn refuse_double_use(&self, offset: u64, len: u64) -> Result<()> {
        self.pieces(offset, len).try_for_each(|(part, ..)| match &part.body {
            Body::Sparse { extent, .. } => extent.refuse_double_use(),
            Body::Flat { .. } | Body::Zero => Ok(()),
        })
    }
}

impl SparseExtent {
    fn refuse_double_use(&self) -> Result<()> {
        if self.looked.load(Ordering::Acquire) || self.packing != Packing::Plain || self.read_only.is_some() {
            return Ok(());
        }
        let _growth = self.growth();
        if !self.looked.load(Ordering::Acquire) {
            self.look_for_double_use().map_err(|e| e.at(self.file.name()))?;
            self.looked.store(true, Ordering::Release);
        }
        Ok(())
    }

    fn look_for_double_use(&self) -> Result<()> {
        let there = self.tables().directory().iter().filter(|place| **place != 0).count() as u64;
        if there.saturating_mul(self.tables().geometry.table_bytes()) > MOST_BYTES {
            return Ok(());
        }
        let mut grains = self.places_of_grains()?;
        grains.sort_unstable();
        if let Some([first, second]) = grains
            .array_windows()
            .find(|[first, second]| second - first < self.grain)
        {
            return Err(Error::corrupt(format!(
                "the grains at {first:#x} and {second:#x} of two guest ranges lie over each other; check can repair it"
            )));
        }
        self.reserved.refuse_grains(&grains, self.grain)
    }

    /// Where the grains of the disk are. What lies past the end of the file cannot be written.
    fn places_of_grains(&self) -> Result<Vec<u64>> {
        let (count, entries) = (self.tables().count(), self.tables().geometry.entries);
        let (last, end) = (self.capacity().div_ceil(self.grain), self.file.len()?);
        let (mut grains, mut index) = (Vec::new(), 0);
        while index < count {
            match self.table(index) {
                Ok(Err(empty)) => index += empty,
                Ok(Ok(table)) => {
                    let here = usize::try_from(last.saturating_sub(index * entries)).unwrap_or(usize::MAX);
                    grains.extend(table.iter().take(here).filter_map(|entry| match entry.grain() {
                        Grain::At(at) if at < end => Some(at),
                        Grain::At(_) | Grain::Unallocated | Grain::Zero | Grain::Invalid => None,
                    }));
                    index += 1;
                }
                // A table that is not in the file is told by whoever needs it.
                Err(e) if e.kind() == ErrorKind::Corrupt => index += 1,
                Err(e) => return Err(e),
            }
        }
        Ok(grains)
    }
}
