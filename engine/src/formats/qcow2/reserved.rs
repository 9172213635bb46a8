//! Telling an image whose clusters were only set aside (preallocated metadata) from one that holds data.

use super::image::Qcow2;
use super::layout::RefTableEntry;
use super::layout::refcounts::RefcountWidth;
use crate::Result;
use crate::storage::read_vec;

impl Qcow2 {
    /// Whether more clusters are in use than the file occupies on the host, by a tenth and by two at least. QEMU's rule for looking at
    /// the holes of the file, as its `map` shows it.
    pub fn claims_more_than_it_occupies(&self) -> Result<bool> {
        let file = self.host.file.as_ref();
        let occupied = file.allocated()? >> self.geometry.cluster_bits;
        let threshold = (occupied.saturating_mul(10) / 9).max(occupied.saturating_add(2));
        let len = file.len()?;
        Ok(self.geometry.clusters(len) >= threshold && self.used_clusters(len, threshold)? >= threshold)
    }

    /// Clusters of the first `len` bytes of the file with a refcount; counts no further than `enough`.
    fn used_clusters(&self, len: u64, enough: u64) -> Result<u64> {
        let (table, order) = {
            let header = &self.read_shared().header;
            let table = super::open::read_reftable(self.host.file.as_ref(), header, &self.geometry, len)?;
            (table, header.refcount_order)
        };
        let end = self.geometry.clusters(len);
        let width = RefcountWidth::new(order);
        let per_block = width.count(self.geometry.cluster_size());
        let (mut first, mut used) = (0, 0);
        for raw in table {
            if first >= end || used >= enough {
                break;
            }
            if let Some(at) = RefTableEntry::decode(raw, &self.geometry)? {
                let slots = per_block.min(end - first) as usize;
                let block = read_vec(self.host.file.as_ref(), at, width.bytes_of(slots - 1).end)?;
                used += (0..slots).filter(|slot| width.get(&block, *slot) != 0).count() as u64;
            }
            first += per_block;
        }
        Ok(used)
    }
}
