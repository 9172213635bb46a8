//! Rebuilding refcount table and blocks from what was counted, behind everything that is used.
//!
//! Order: blocks and table, flush, header (place and length of the table in one write), flush. What the old ones took is free then,
//! because nobody counted it.

use std::collections::BTreeMap;

use super::super::image::Qcow2;
use super::super::layout::header::MAX_REFTABLE_BYTES;
use super::super::layout::refcounts::RefcountWidth;
use super::super::layout::{RefTableEntry, words_to_be};
use super::super::writer::Writer;
use super::Counts;
use crate::{Error, Result};

/// Where the new structures go.
struct Layout {
    /// First cluster of the blocks; the table follows them.
    start: u64,
    blocks: BTreeMap<u64, u64>,
    table_clusters: u64,
}

impl Qcow2 {
    /// Writes new refcount structures with the width that the header has; gives the clusters of the old ones.
    pub fn rebuild_refcounts(&self, writer: &mut Writer, counts: &Counts) -> Result<Vec<u64>> {
        let order = self.read_shared().header.refcount_order;
        let old = self.old_structures(writer, self.reftable_bytes());
        self.write_refcounts(writer, counts, RefcountWidth::new(order))?;
        let alone = |(cluster, times): &(u64, u64)| counts.get(*cluster) <= *times;
        Ok(old.used().filter(alone).map(|(cluster, _)| cluster).collect())
    }

    /// Where the refcount table is, and its length.
    fn reftable_bytes(&self) -> (u64, u64) {
        let header = &self.read_shared().header;
        let len = u64::from(header.reftable_clusters) << self.geometry.cluster_bits;
        (header.reftable_offset, len)
    }

    /// Writes new refcount structures of any width. The header's width changes with the place of the table.
    pub fn write_refcounts(&self, writer: &mut Writer, counts: &Counts, width: RefcountWidth) -> Result<()> {
        let size = self.geometry.cluster_size();
        let per_block = width.count(size);
        let layout = self.lay_out(counts, per_block)?;
        let structures = layout.start..layout.start + layout.blocks.len() as u64 + layout.table_clusters;
        let old = self.old_structures(writer, self.reftable_bytes());
        let count_of = |cluster: u64| {
            let found = counts.get(cluster).saturating_sub(old.get(cluster));
            found + u64::from(structures.contains(&cluster))
        };
        writer
            .refcounts
            .no_longer_fresh(structures.end << self.geometry.cluster_bits);
        let mut table = vec![0u64; ((layout.table_clusters * size) / 8) as usize];
        for (index, place) in &layout.blocks {
            let mut block = vec![0; size as usize];
            let first = index * per_block;
            for slot in 0..per_block {
                let count = count_of(first + slot);
                if count > width.max() {
                    return Err(Error::unsupported(format!(
                        "cluster {} has {count} users, more than refcounts of {} bits can hold",
                        first + slot,
                        1u64 << width.order()
                    )));
                }
                if count > 0 {
                    width.set(&mut block, slot as usize, count);
                }
            }
            self.host.file.write_at(place << self.geometry.cluster_bits, &block)?;
            if let Some(entry) = table.get_mut(*index as usize) {
                *entry = place << self.geometry.cluster_bits;
            }
        }
        let at = (layout.start + layout.blocks.len() as u64) << self.geometry.cluster_bits;
        self.host.file.write_at(at, &words_to_be(&table))?;
        self.host.flush()?;
        writer.refcounts.adopt(width, at, table);
        self.change_header(writer, |shared| shared.header.refcount_order = width.order())?;
        self.host.flush()
    }

    /// The references of the present refcount structures: they were counted, but go away.
    fn old_structures(&self, writer: &Writer, (at, len): (u64, u64)) -> Counts {
        let bits = self.geometry.cluster_bits;
        let mut old = Counts::default();
        (at >> bits..(at + len) >> bits).for_each(|cluster| old.add(cluster, 1));
        for raw in writer.refcounts.table() {
            if let Ok(Some(at)) = RefTableEntry::decode(*raw, &self.geometry) {
                old.add(at >> bits, 1);
            }
        }
        old
    }

    fn lay_out(&self, counts: &Counts, per_block: u64) -> Result<Layout> {
        let size = self.geometry.cluster_size();
        let mut indices: Vec<u64> = counts.used().map(|(cluster, _)| cluster / per_block).collect();
        indices.dedup();
        let end = counts.used().last().map_or(0, |(cluster, _)| cluster + 1);
        let start = end.max(self.geometry.clusters(self.host.file.len()?));
        let mut table_clusters = 1;
        loop {
            let mut all: std::collections::BTreeSet<u64> = indices.iter().copied().collect();
            // The structures count themselves: each new block may need another one.
            loop {
                let last = start + all.len() as u64 + table_clusters - 1;
                let before = all.len();
                all.extend(start / per_block..=last / per_block);
                if all.len() == before {
                    break;
                }
            }
            let entries = all.last().map_or(1, |i| i + 1);
            let needed = self.geometry.clusters(entries * 8);
            if needed <= table_clusters {
                return Ok(Layout {
                    start,
                    blocks: all.into_iter().zip(start..).collect(),
                    table_clusters,
                });
            }
            if needed * size > MAX_REFTABLE_BYTES {
                return Err(Error::limit("the refcount table would be longer than 8 MiB"));
            }
            table_clusters = needed;
        }
    }
}
