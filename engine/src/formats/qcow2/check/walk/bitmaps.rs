//! Dirty bitmaps: their directory, tables and bits.

use super::super::super::bitmap_table::{self, BitmapCluster};
use super::super::super::image::Shared;
use super::super::super::layout::Autoclear;
use super::Walk;
use crate::Result;

impl Walk<'_> {
    pub(super) fn bitmaps(&mut self, shared: &Shared) -> Result<()> {
        let Some(extension) = shared.extensions.bitmaps() else {
            return Ok(());
        };
        if shared.header.autoclear & Autoclear::BITMAPS == 0 {
            return Ok(());
        }
        let storage = self.image.host.file.as_ref();
        let list = match bitmap_table::read(storage, &extension, &self.geometry) {
            Ok(list) => list,
            Err(error) => {
                self.corruption(|| format!("ERROR bitmaps: {error}"));
                return Ok(());
            }
        };
        self.add(extension.directory_offset, extension.directory_size, 1);
        for bitmap in list {
            let owner = || format!("bitmap \"{}\"", bitmap.name.escape_debug());
            self.add_alone(bitmap.table_offset, u64::from(bitmap.table_size) * 8, &owner);
            match bitmap.table(storage) {
                Ok(table) => self.bitmap_data(&table, &owner),
                Err(error) => self.corruption(|| format!("ERROR {}: {error}", owner())),
            }
        }
        Ok(())
    }

    fn bitmap_data(&mut self, table: &[u64], owner: &dyn Fn() -> String) {
        for raw in table {
            match BitmapCluster::decode(*raw, &self.geometry) {
                Ok(BitmapCluster::At(at)) => self.add_alone(at, self.geometry.cluster_size(), owner),
                Ok(_) => {}
                Err(error) => self.corruption(|| format!("ERROR {error}")),
            }
        }
    }

    /// Counts a range that nothing else may use: nobody shares bits with a snapshot.
    fn add_alone(&mut self, at: u64, len: u64, owner: &dyn Fn() -> String) {
        if !self.add(at, len, 1) {
            return;
        }
        let first = at >> self.geometry.cluster_bits;
        let mut clusters = first..first + self.geometry.clusters(len);
        if let Some(shared) = clusters.find(|cluster| self.counts.get(*cluster) > 1) {
            let place = shared << self.geometry.cluster_bits;
            self.corruption(|| format!("ERROR {}: the cluster at {place:#x} is used elsewhere too", owner()));
        }
    }
}
