//! Making room for refcounts: new blocks, and a longer table where the present one is full.

use std::ops::Range;

use super::super::layout::header::MAX_REFTABLE_BYTES;
use super::super::layout::{Header, words_to_be};
use super::{Block, Change, Refcounts};
use crate::{Error, Result};

impl Refcounts {
    /// Makes sure that there is a refcount block, without using clusters in `avoid`; true when one was made.
    pub(super) fn ensure_block(&mut self, index: usize, avoid: &Range<u64>) -> Result<bool> {
        if index >= self.table.len() {
            self.grow_table(index as u64 + 1, avoid.end)?;
            return Ok(true);
        }
        if self.block_at(index)?.is_some() {
            return Ok(false);
        }
        loop {
            let mut place = self.next_free(self.hint)?;
            if avoid.contains(&place) {
                place = self.next_free(avoid.end)?;
            }
            let (home, _) = self.split(place);
            if home >= self.table.len() {
                self.grow_table(home as u64 + 1, avoid.end)?;
            } else if home == index || self.block_at(home)?.is_some() {
                self.new_block(index, place)?;
                return Ok(true);
            } else {
                // Its own range has no block yet: that block goes there and counts itself.
                self.new_block(home, place)?;
            }
        }
    }

    fn new_block(&mut self, index: usize, place: u64) -> Result<()> {
        self.make_room()?;
        let at = place << self.geometry.cluster_bits;
        self.read_metadata().refuse_data(at, 1)?;
        let len = self.geometry.cluster_len();
        self.blocks.insert(
            index,
            Block {
                bytes: vec![0; len],
                dirty: 0..len,
            },
        );
        self.table[index] = at;
        self.table_dirty.insert(index);
        self.change(place..place + 1, Change::Up).inspect_err(|_| {
            // Nobody counts its cluster: it must not be written, nor named.
            self.table[index] = 0;
            self.table_dirty.remove(&index);
            self.blocks.remove(&index);
        })?;
        self.write_metadata().add(at, 1);
        Ok(())
    }

    /// Moves the table to a longer place behind everything that the present one covers, with the blocks that count that place.
    ///
    /// Order: blocks, new table, flush, header, flush, then the old table is free.
    fn grow_table(&mut self, entries: u64, past: u64) -> Result<()> {
        let per = self.per_block();
        let old = self.table_place();
        let start = (self.table.len() as u64 * per).max(past);
        let first_block = start / per;
        let mut wanted = entries.max(self.table.len() as u64 * 3 / 2);
        let (table_clusters, end_block) = loop {
            let table_clusters = self.geometry.clusters(wanted * 8);
            let mut blocks = 1;
            while (start + table_clusters + blocks).div_ceil(per) - first_block > blocks {
                blocks += 1;
            }
            if first_block + blocks <= table_clusters * (self.geometry.cluster_size() / 8) {
                break (table_clusters, first_block + blocks);
            }
            wanted = (wanted + 1).max(first_block + blocks);
        };
        if table_clusters << self.geometry.cluster_bits > MAX_REFTABLE_BYTES {
            return Err(Error::limit(
                "the refcount table cannot grow further; use larger clusters",
            ));
        }
        let old_len = self.table.len();
        let len = (table_clusters << self.geometry.cluster_bits) / 8;
        self.table.resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
        self.move_table(start, first_block..end_block, table_clusters)
            .inspect_err(|_| self.undo_growth(old_len))?;
        let old_first = old.0 >> self.geometry.cluster_bits;
        self.write_metadata().remove(old.0, old.1 << self.geometry.cluster_bits);
        self.change(old_first..old_first + old.1, Change::Down(1))?;
        self.hint = self.hint.min(old_first);
        Ok(())
    }

    fn undo_growth(&mut self, old_len: usize) {
        let bits = self.geometry.cluster_bits;
        for at in self.table.split_off(old_len).into_iter().filter(|at| *at != 0) {
            self.write_metadata().remove(at, 1 << bits);
        }
        self.blocks.retain(|index, _| *index < old_len);
        self.table_dirty.split_off(&old_len);
    }

    fn move_table(&mut self, start: u64, blocks: Range<u64>, table_clusters: u64) -> Result<()> {
        for (place, index) in (start..).zip(blocks.clone()) {
            self.new_block(index as usize, place)?;
        }
        let first = start + (blocks.end - blocks.start);
        self.change(first..first + table_clusters, Change::Up)?;
        let at = first << self.geometry.cluster_bits;
        self.write_blocks()?;
        self.no_longer_fresh(at + self.table.len() as u64 * 8);
        self.host.file.write_at(at, &words_to_be(&self.table))?;
        self.host.flush()?;
        let (_, clusters) = self.table_place();
        let clusters = u32::try_from(clusters).map_err(|_| Error::limit("the refcount table is too large"))?;
        let mut field = at.to_be_bytes().to_vec();
        field.extend_from_slice(&clusters.to_be_bytes());
        self.host.file.write_at(Header::AT_REFTABLE, &field)?;
        self.host.flush()?;
        self.table_at = at;
        self.table_dirty.clear();
        self.write_metadata()
            .add(at, u64::from(clusters) << self.geometry.cluster_bits);
        Ok(())
    }
}
