//! Giving clusters out: the first free ones, several in a row.

use std::ops::Range;

use super::super::layout::header::MAX_HOST_OFFSET;
use super::{Block, Change, Refcounts};
use crate::{Error, Result};

impl Refcounts {
    /// The first free cluster from `from` on. Where there is no block, everything is free.
    pub(super) fn next_free(&mut self, from: u64) -> Result<u64> {
        let width = self.width;
        let per = self.per_block();
        let mut cluster = from;
        loop {
            let (index, slot) = self.split(cluster);
            let Some(block) = self.block(index)? else {
                return Ok(cluster);
            };
            let found = (slot..per as usize).find(|s| width.get(&block.bytes, *s) == 0);
            if let Some(found) = found {
                return Ok(cluster - slot as u64 + found as u64);
            }
            cluster = (cluster / per + 1) * per;
        }
    }

    /// Takes up to `most` free clusters in a row: the first one and how many.
    ///
    /// # Errors
    /// `Corrupt` when the refcounts call something free that is not.
    pub fn allocate(&mut self, most: u64) -> Result<Range<u64>> {
        let width = self.width;
        loop {
            let first = self.next_free(self.hint)?;
            self.hint = first;
            self.check_reach(first)?;
            let (index, slot) = self.split(first);
            if self.ensure_block(index, &(first..first))? {
                continue;
            }
            let Some(block) = self.block(index)? else { continue };
            let count = width.count(block_len(block));
            let run = (slot..count as usize)
                .take(usize::try_from(most).unwrap_or(usize::MAX))
                .take_while(|s| width.get(&block.bytes, *s) == 0)
                .count() as u64;
            let range = first..first + run.max(1);
            self.take(range.clone())?;
            self.hint = range.end;
            return Ok(range);
        }
    }

    /// Takes exactly `count` clusters in a row.
    pub fn allocate_row(&mut self, count: u64) -> Result<u64> {
        let mut first = self.next_free(self.hint)?;
        let lowest = first;
        let mut end = first;
        while end - first < count {
            let free = self.next_free(end)?;
            if free != end {
                first = free;
            }
            end = free + 1;
        }
        self.check_reach(end)?;
        let row = first..end;
        let (from, to) = (self.split(first).0, self.split(end - 1).0);
        for index in from..=to {
            self.ensure_block(index, &row)?;
        }
        self.take(row)?;
        if first == lowest {
            self.hint = end;
        }
        Ok(first)
    }

    fn check_reach(&self, cluster: u64) -> Result<()> {
        if cluster >= MAX_HOST_OFFSET >> self.geometry.cluster_bits {
            return Err(Error::limit("the image file would grow past 2^56 bytes"));
        }
        Ok(())
    }

    fn take(&mut self, range: Range<u64>) -> Result<()> {
        let bits = self.geometry.cluster_bits;
        self.read_metadata()
            .refuse_data(range.start << bits, (range.end - range.start) << bits)
            .map_err(|e| {
                self.host.note_damage();
                Error::corrupt("the refcounts call used clusters free; run a repair").because(e)
            })?;
        self.change(range, Change::Up).map(|_| ())
    }
}

fn block_len(block: &Block) -> u64 {
    block.bytes.len() as u64
}
