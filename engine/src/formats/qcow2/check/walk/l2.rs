//! L2 tables and what they point to.

use std::fmt;

use super::super::super::layout::L2Entry;
use super::{BadEntry, Users, Walk};
use crate::{Control, Result};

/// Bytes of neighbouring L2 tables that are read at once.
const READ_AHEAD: usize = 1 << 20;

impl Walk<'_> {
    /// Reads every L2 table once, in the order of the file.
    pub(super) fn l2_tables(&mut self, control: &Control) -> Result<()> {
        let size = self.geometry.cluster_len();
        let tables: Vec<(u64, Users)> = std::mem::take(&mut self.tables).into_iter().collect();
        control.set_total(tables.len() as u64 * size as u64);
        let mut rest = tables.as_slice();
        let mut bytes = Vec::new();
        while let Some((first, _)) = rest.first() {
            let row = rest
                .iter()
                .zip(0u64..)
                .take((READ_AHEAD / size).max(1))
                .take_while(|((at, _), n)| Some(*at) == first.checked_add(n * size as u64))
                .count();
            let (now, later) = rest.split_at(row);
            control.checkpoint((row * size) as u64)?;
            bytes.resize(row * size, 0);
            self.image.host.file.read_at(*first, &mut bytes)?;
            for ((at, users), bytes) in now.iter().zip(bytes.chunks_exact(size)) {
                self.l2(*at, *users, bytes);
            }
            control.advance((row * size) as u64);
            rest = later;
        }
        Ok(())
    }

    fn l2(&mut self, table: u64, users: Users, bytes: &[u8]) {
        self.add(table, 1, users.times);
        let step = self.geometry.entry_words();
        let mut next = 0;
        let mut allocated = 0;
        for index in non_zero_entries(bytes, step * 8) {
            let mut words = [0; 2];
            let raw = bytes.as_chunks().0.iter().skip(index * step).take(step);
            words
                .iter_mut()
                .zip(raw)
                .for_each(|(word, raw)| *word = u64::from_be_bytes(*raw));
            let entry = match L2Entry::decode(&words, 0, &self.geometry, self.version) {
                Ok(entry) => entry,
                Err(error) => {
                    self.bad_entry(table, index, error);
                    continue;
                }
            };
            match entry {
                L2Entry::Standard { at: None, .. } => {}
                L2Entry::Standard {
                    at: Some(at),
                    copied,
                    subs,
                } => {
                    allocated += 1;
                    self.flags_matter |= users.active && !copied;
                    if users.active && next != 0 && at != next {
                        bump(&mut self.report.fragmented_clusters);
                    }
                    next = at.saturating_add(self.geometry.cluster_size());
                    let guest =
                        users.index as u64 * self.geometry.l2_span() + index as u64 * self.geometry.cluster_size();
                    if !self.geometry.data_file {
                        self.data(table, index, (at, 1), users);
                    } else if let Err(error) = entry.refuse_elsewhere(guest, &self.geometry) {
                        self.bad_entry(table, index, error);
                    } else if subs.data != 0 && at >= self.data_len {
                        let end = self.data_len;
                        self.corruption(|| {
                            format!(
                                "ERROR L2 table at {table:#x}, entry {index}: guest data at {at:#x} lies past the end of the data \
                                 file at {end:#x}"
                            )
                        });
                    }
                }
                L2Entry::Compressed { at, len } => {
                    allocated += 1;
                    if L2Entry::has_needless_flag(&words) {
                        self.bad_entry(table, index, "a compressed cluster with the copied flag");
                    }
                    if users.active {
                        bump(&mut self.report.compressed_clusters);
                        bump(&mut self.report.fragmented_clusters);
                    }
                    self.data(table, index, (at, len), users);
                }
            }
        }
        if users.active {
            self.report.allocated_clusters = self.report.allocated_clusters.map(|n| n + allocated);
        }
    }

    fn bad_entry(&mut self, table: u64, index: usize, why: impl fmt::Display) {
        self.corruption(|| format!("ERROR L2 table at {table:#x}, entry {index}: {why}"));
        self.bad.push(BadEntry::L2 { table, index });
    }

    fn data(&mut self, table: u64, index: usize, (at, len): (u64, u64), users: Users) {
        if let Err(error) = self.image.read_metadata().refuse_data(at, len) {
            self.bad_entry(table, index, error);
            return;
        }
        if at >= self.file_len {
            self.past_end(at, if len > 1 { len } else { self.geometry.cluster_size() });
            self.bad.push(BadEntry::L2 { table, index });
            return;
        }
        let bits = self.geometry.cluster_bits;
        let packed = len > 1;
        for cluster in at >> bits..((at + len - 1) >> bits) + 1 {
            let known = self.counts.get(cluster) > 0;
            // Compressed clusters share host clusters by nature; others have one for themselves, or shared flags.
            let known_packed = packed && !self.packed.insert(cluster);
            self.flags_matter |= users.times > 1 || known && !known_packed;
        }
        // One byte stands for a whole cluster, whose end may lie past the end of the file.
        self.add(at, if packed { len } else { self.geometry.cluster_size() }, users.times);
    }
}

/// The entries of `step` bytes that are not zero: most tables of a large disk are nearly empty.
fn non_zero_entries(table: &[u8], step: usize) -> impl Iterator<Item = usize> {
    const BLOCK: usize = 512;
    let blocks = table.chunks(BLOCK).enumerate();
    let used = blocks.filter(|(_, block)| block.iter().fold(0, |any, b| any | b) != 0);
    used.flat_map(move |(n, block)| {
        let entries = block.chunks_exact(step).enumerate();
        entries.filter_map(move |(i, raw)| raw.iter().any(|b| *b != 0).then_some(n * BLOCK / step + i))
    })
}

fn bump(count: &mut Option<u64>) {
    *count = count.map(|n| n + 1);
}
