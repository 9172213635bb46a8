//! L1 tables: the active one and those of snapshots.

use std::fmt;

use super::super::super::image::Shared;
use super::super::super::layout::L1Entry;
use super::super::super::snapshots::Snapshot;
use super::{BadEntry, Users, Walk};
use crate::{Control, Error, Result};

impl Walk<'_> {
    /// Counts the L1 tables themselves, of the active image and of the snapshots; gives the snapshots whose one can be read.
    pub(super) fn l1_tables<'s>(&mut self, shared: &'s Shared) -> Result<Vec<&'s Snapshot>> {
        self.add(shared.header.l1_offset, shared.l1.len() as u64 * 8, 1);
        let mut sound = Vec::new();
        let (mut len, mut bytes) = (0, 0u64);
        for (index, snapshot) in shared.snapshots.iter().enumerate() {
            len += snapshot.stored_len();
            if self.version >= 3 && snapshot.is_incomplete() {
                self.incomplete.push(index);
            }
            match snapshot.check(&self.geometry) {
                Ok(()) if self.add(snapshot.l1_offset, snapshot.l1_bytes(), 1) => {
                    bytes = bytes.saturating_add(snapshot.l1_bytes());
                    sound.push(snapshot);
                }
                Ok(()) => self.bad.push(BadEntry::Snapshot),
                Err(error) => self.bad_snapshot(error),
            }
        }
        // Tables that do not overlap fit in the file. Reading the same bytes for thousands of snapshots takes for ever.
        let most = self.file_len.saturating_add(self.image.limits.table_bytes);
        if bytes > most {
            return Err(Error::limit(format!(
                "the L1 tables of {} snapshots have {bytes} bytes in a file of {}",
                sound.len(),
                self.file_len
            )));
        }
        self.add(shared.header.snapshots_offset, len, 1);
        if let Some(damage) = &shared.snapshot_damage {
            self.bad_snapshot(damage.text());
        }
        Ok(sound)
    }

    fn bad_snapshot(&mut self, why: impl fmt::Display) {
        self.corruption(|| format!("ERROR {why}"));
        self.bad.push(BadEntry::Snapshot);
    }

    /// Collects the L2 tables of the snapshots, with one L1 table in memory at a time.
    pub(super) fn snapshots(&mut self, snapshots: &[&Snapshot], control: &Control) -> Result<()> {
        for snapshot in snapshots {
            control.checkpoint(snapshot.l1_bytes())?;
            match self.image.snapshot_l1(snapshot) {
                Ok(l1) => self.l1_entries(&l1, false),
                Err(error) => self.bad_snapshot(error),
            }
        }
        Ok(())
    }

    /// Collects the L2 tables of an L1 table.
    pub(super) fn l1_entries(&mut self, l1: &[u64], active: bool) {
        let what = if active { "L1 table" } else { "snapshot's L1 table" };
        for (index, raw) in l1.iter().enumerate().filter(|(_, raw)| **raw != 0) {
            let why = match L1Entry::decode(*raw, &self.geometry) {
                // Reads as nothing, but is what is left of an entry that had a table: its clusters are no leaks.
                Ok(L1Entry::Unallocated) => "it has a copied flag, but no place".to_owned(),
                Ok(L1Entry::Table { at, copied }) => {
                    let end = at.saturating_add(self.geometry.cluster_size());
                    let others = self.counts.get(at >> self.geometry.cluster_bits);
                    if end <= self.file_len && others == 0 {
                        let users = self.tables.entry(at).or_insert(Users {
                            index,
                            ..Users::default()
                        });
                        users.times += 1;
                        users.active |= active;
                        self.flags_matter |= active && !copied || users.times > 1;
                        if !self.geometry.data_file || users.index == index {
                            continue;
                        }
                        format!(
                            "its table is that of entry {}, whose places in the data file are others",
                            users.index
                        )
                    } else if others > 0 {
                        "it overlaps other metadata".to_owned()
                    } else {
                        "it lies past the end of the file".to_owned()
                    }
                }
                Err(error) => error.to_string(),
            };
            self.corruption(|| format!("ERROR {what} entry {index} ({raw:#x}): {why}"));
            self.bad.push(if active { BadEntry::L1 } else { BadEntry::Snapshot });
        }
    }
}
