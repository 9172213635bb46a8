//! Walking everything that an image refers to.

mod bitmaps;
mod l1;
mod l2;

use std::collections::BTreeMap;

use super::super::clusters::ClusterSet;
use super::super::image::{Qcow2, Shared};
use super::super::layout::{Extension, Geometry, RefTableEntry};
use super::super::open::read_table;
use super::counts::Counts;
use crate::image::CheckReport;
use crate::{Control, Result};

/// Findings that are put into words; more are only counted.
const MOST_MESSAGES: usize = 200;

/// What can be done about a table entry that makes no sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadEntry {
    /// An entry of the active L1 table.
    L1,
    /// An entry of the L2 table at a host offset.
    L2 { table: u64, index: usize },
    /// A snapshot whose L1 table or entry cannot be read.
    Snapshot,
}

/// An L2 table with its users.
#[derive(Debug, Clone, Copy, Default)]
struct Users {
    /// How many L1 entries point to it.
    times: u64,
    /// Whether one of them is of the active L1 table.
    active: bool,
    /// The index of the first of them.
    index: usize,
}

/// The walk over one image.
pub(super) struct Walk<'a> {
    image: &'a Qcow2,
    geometry: Geometry,
    version: u32,
    file_len: u64,
    /// Where guest data end: in the file itself, or in the data file.
    data_len: u64,
    pub counts: Counts,
    /// Refcounts that differ from what was counted, and one more; 0 for those that do not.
    pub stored: Counts,
    /// Whether there were any.
    pub differs: bool,
    pub report: CheckReport,
    pub bad: Vec<BadEntry>,
    /// Refcount table entries that make no sense, or clusters in use that count as free: the whole structure is to be rebuilt.
    pub bad_refcounts: bool,
    /// Refcount blocks that can be used, by table index.
    pub blocks: BTreeMap<usize, u64>,
    tables: BTreeMap<u64, Users>,
    /// Clusters that hold compressed data.
    packed: ClusterSet,
    /// Entries of the snapshot table, by number, without what version 3 wants.
    pub incomplete: Vec<usize>,
    /// Whether some copied flag may be wrong: else nobody need look at them again.
    pub flags_matter: bool,
    /// Clusters with more users than a refcount can say.
    pub too_many_users: u64,
    /// Whether refcounts that differ were told before: only what was done about them is new.
    pub told: bool,
}

impl<'a> Walk<'a> {
    pub fn new(image: &'a Qcow2) -> Result<Self> {
        Ok(Self {
            image,
            geometry: image.geometry,
            version: image.read_shared().header.version,
            file_len: image.host.file.len()?,
            data_len: image.host.data().len()?,
            counts: Counts::default(),
            stored: Counts::default(),
            differs: false,
            report: CheckReport::default(),
            bad: Vec::new(),
            bad_refcounts: false,
            blocks: BTreeMap::new(),
            tables: BTreeMap::new(),
            packed: ClusterSet::default(),
            incomplete: Vec::new(),
            flags_matter: false,
            too_many_users: 0,
            told: false,
        })
    }

    /// Counts everything.
    pub fn run(&mut self, shared: &Shared, control: &Control) -> Result<()> {
        self.image.read_metadata().refuse_excess()?;
        self.report.total_clusters = Some(self.geometry.clusters(shared.header.virtual_size));
        self.report.allocated_clusters = Some(0);
        self.report.fragmented_clusters = Some(0);
        self.report.compressed_clusters = Some(0);
        self.add(0, 1, 1);
        self.refcount_structures(shared)?;
        let alone = self.blocks_alone();
        let snapshots = self.l1_tables(shared)?;
        self.l1_entries(&shared.l1, true);
        self.snapshots(&snapshots, control)?;
        self.l2_tables(control)?;
        for extension in &shared.extensions.0 {
            if let Extension::Crypto { offset, len } = extension {
                self.add(*offset, *len, 1);
            }
        }
        self.covered_refcounts(shared, &alone);
        // After that: bits of a bitmap that a block lies over are not what they were, wherever new blocks are made.
        self.bitmaps(shared)
    }

    pub fn say(&mut self, message: impl FnOnce() -> String) {
        if self.report.messages.len() < MOST_MESSAGES {
            self.report.messages.push(message());
        }
    }
    pub fn corruption(&mut self, message: impl FnOnce() -> String) {
        self.report.corruptions += 1;
        self.say(message);
    }

    /// The refcount of a cluster as it stands: what was counted, unless it was found to differ.
    pub fn refcount(&self, cluster: u64) -> u64 {
        let counted = || self.counts.get(cluster);
        self.stored.get(cluster).checked_sub(1).unwrap_or_else(counted)
    }

    /// A refcount that is not what was counted.
    pub fn note_refcount(&mut self, cluster: u64, (stored, found): (u64, u64), mended: bool) {
        let leak = stored > found;
        let verb = if mended {
            "Repairing"
        } else if leak {
            "Leaked"
        } else {
            "ERROR"
        };
        if mended || !self.told {
            self.say(|| format!("{verb} cluster {cluster} refcount={stored} reference={found}"));
        }
        self.differs = true;
        if !mended {
            self.stored.add(cluster, stored.saturating_add(1));
            self.flags_matter = true;
            self.bad_refcounts |= stored == 0;
        }
        let report = &mut self.report;
        let count = match (leak, mended) {
            (true, true) => &mut report.leaks_fixed,
            (true, false) => &mut report.leaks,
            (false, true) => &mut report.corruptions_fixed,
            (false, false) => &mut report.corruptions,
        };
        *count += 1;
    }
    /// A copied flag that is not what the refcount says.
    pub fn note_flag(&mut self, place: impl FnOnce() -> String, mended: bool) {
        if mended {
            self.report.corruptions_fixed += 1;
        } else {
            self.report.corruptions += 1;
        }
        let verb = if mended { "Repairing" } else { "ERROR" };
        self.say(|| format!("{verb} OFLAG_COPIED {}", place()));
    }

    /// Counts the incomplete snapshot entries, which say enough to be read, and take nothing from anybody.
    pub fn note_incomplete(&mut self, mended: bool) {
        for index in std::mem::take(&mut self.incomplete) {
            let verb = if mended {
                self.report.corruptions_fixed += 1;
                "Repairing"
            } else {
                self.report.corruptions += 1;
                "ERROR"
            };
            self.say(|| format!("{verb} snapshot table entry {index} is incomplete"));
        }
    }

    fn past_end(&mut self, at: u64, len: u64) {
        self.corruption(|| {
            format!(
                "ERROR: counting reference for region exceeding the end of the file by one cluster or more: offset {at:#x} size {len:#x}"
            )
        });
    }

    /// Clusters of the file.
    pub fn file_clusters(&self) -> u64 {
        self.geometry.clusters(self.file_len)
    }

    /// Counts references to a host range; false when it lies past the end of the file.
    fn add(&mut self, at: u64, len: u64, times: u64) -> bool {
        let size = self.geometry.cluster_size();
        let end = at.saturating_add(len);
        if len == 0 {
            return true;
        }
        if end >= self.file_len.saturating_add(size) {
            self.past_end(at, len);
            return false;
        }
        let bits = self.geometry.cluster_bits;
        for cluster in at >> bits..((end - 1) >> bits) + 1 {
            self.counts.add(cluster, times);
        }
        true
    }

    /// Refcount blocks, with their table indices, in clusters that nothing else was found in yet.
    fn blocks_alone(&self) -> Vec<(usize, u64)> {
        let bits = self.geometry.cluster_bits;
        let blocks = self.blocks.iter().map(|(index, at)| (*index, *at));
        blocks.filter(|(_, at)| self.counts.get(at >> bits) == 1).collect()
    }

    /// Finds refcount structures in whose clusters something else was found since: what they say is not to be believed, and changing it would
    /// destroy the other.
    fn covered_refcounts(&mut self, shared: &Shared, alone: &[(usize, u64)]) {
        let bits = self.geometry.cluster_bits;
        let covered: Vec<_> = alone.iter().filter(|(_, at)| self.counts.get(at >> bits) > 1).collect();
        for (index, at) in covered {
            self.bad_refcounts = true;
            self.blocks.remove(index);
            self.corruption(|| format!("ERROR refcount block {index} at {at:#x} overlaps other metadata"));
        }
        let first = shared.header.reftable_offset >> bits;
        let mut table = first..first.saturating_add(u64::from(shared.header.reftable_clusters));
        if !self.bad_refcounts && table.any(|cluster| self.counts.get(cluster) > 1) {
            self.bad_refcounts = true;
            let at = shared.header.reftable_offset;
            self.corruption(|| format!("ERROR the refcount table at {at:#x} overlaps other metadata"));
        }
    }

    fn refcount_structures(&mut self, shared: &Shared) -> Result<()> {
        let header = &shared.header;
        let bytes = u64::from(header.reftable_clusters) << self.geometry.cluster_bits;
        if !self.add(header.reftable_offset, bytes, 1) {
            self.bad_refcounts = true;
        }
        let len = bytes.min(self.file_len.saturating_sub(header.reftable_offset)) & !7;
        let table = read_table(
            self.image.host.file.as_ref(),
            "refcount table",
            header.reftable_offset,
            len,
            u64::MAX,
        )?;
        for (index, raw) in table.iter().enumerate().filter(|(_, raw)| **raw != 0) {
            let size = self.geometry.cluster_size();
            match RefTableEntry::decode(*raw, &self.geometry) {
                Ok(Some(at)) if at.saturating_add(size) <= self.file_len => {
                    let others = self.counts.get(at >> self.geometry.cluster_bits);
                    self.add(at, 1, 1);
                    if others > 0 {
                        self.bad_refcounts = true;
                        self.corruption(|| format!("ERROR refcount block {index} at {at:#x} overlaps other metadata"));
                    } else {
                        self.blocks.insert(index, at);
                    }
                }
                Ok(None) => {}
                _ => {
                    self.bad_refcounts = true;
                    self.corruption(|| format!("ERROR refcount block {index} cannot be at {raw:#x}"));
                }
            }
        }
        Ok(())
    }
}
