//! Which host clusters hold metadata: guest data must never be read from them or written over them.

use super::clusters::ClusterSet;
use super::layout::{Geometry, Header, L1Entry, RefTableEntry};
use crate::{Error, Result};

/// The clusters of header, active L1 and L2 tables, refcount table and blocks, snapshot table, snapshots' L1 tables and bitmap directory.
///
/// Built when an image is opened, kept up while it is written.
#[derive(Debug, Default, Clone)]
pub(super) struct MetadataMap {
    owned: ClusterSet,
    /// Clusters that two structures claim.
    conflicts: ClusterSet,
    first_conflict: Option<u64>,
    /// Clusters that were added, those that two structures claim counted twice.
    claimed: u64,
    /// Clusters that may be claimed.
    most: u64,
    /// Structures claim so much that not all of them are in the map.
    too_much: bool,
    cluster_bits: u32,
}

/// Clusters that all structures together may claim: a table of the largest size has 4 million entries. A few bytes in a header can claim
/// any number.
const MOST_CLAIMED: u64 = 1 << 23;
/// Clusters that they may claim past what a file has when it is opened. Sound structures do not overlap, and stand in the file.
const EXCESS: u64 = 1 << 17;

impl MetadataMap {
    /// Collects what header and tables say. Entries that make no sense are left out: using them fails by itself.
    pub fn build(geometry: &Geometry, header: &Header, l1: &[u64], reftable: &[u64], file_len: u64) -> Self {
        let mut map = Self {
            most: MOST_CLAIMED.min(geometry.clusters(file_len).saturating_add(EXCESS)),
            cluster_bits: geometry.cluster_bits,
            ..Self::default()
        };
        map.add(0, 1);
        map.add(header.l1_offset, u64::from(header.l1_size) * 8);
        let reftable_bytes = u64::from(header.reftable_clusters) << geometry.cluster_bits;
        map.add(header.reftable_offset, reftable_bytes);
        let inside = |at: &u64| *at < file_len;
        let blocks = reftable.iter().filter(|raw| **raw != 0);
        for at in blocks
            .filter_map(|raw| RefTableEntry::decode(*raw, geometry).ok()?)
            .filter(inside)
        {
            map.add(at, 1);
        }
        // Two entries may share a table as long as neither may write to it: a repair leaves them so.
        let mut shared = ClusterSet::default();
        for raw in l1.iter().filter(|raw| **raw != 0) {
            if let Ok(L1Entry::Table { at, copied }) = L1Entry::decode(*raw, geometry)
                && inside(&at)
                && (copied || shared.insert(at >> geometry.cluster_bits))
            {
                map.add(at, 1);
            }
        }
        map
    }

    /// All that was in the file is in the map: from here on the file grows with what is added.
    pub fn complete(mut self) -> Self {
        self.most = MOST_CLAIMED;
        self
    }

    fn range(&self, at: u64, len: u64) -> std::ops::Range<u64> {
        let end = at.saturating_add(len.saturating_sub(1)) >> self.cluster_bits;
        at >> self.cluster_bits..if len == 0 { 0 } else { end + 1 }
    }

    /// A structure of `len` bytes stands at `at`.
    pub fn add(&mut self, at: u64, len: u64) {
        let clusters = self.range(at, len);
        self.claimed = self.claimed.saturating_add(clusters.end.saturating_sub(clusters.start));
        if self.claimed > self.most {
            self.too_much = true;
            return;
        }
        for cluster in clusters {
            if !self.owned.insert(cluster) {
                self.conflicts.insert(cluster);
                self.first_conflict.get_or_insert(cluster << self.cluster_bits);
            }
        }
    }
    /// It stands there no longer.
    pub fn remove(&mut self, at: u64, len: u64) {
        let clusters = self.range(at, len);
        self.claimed = self.claimed.saturating_sub(clusters.end.saturating_sub(clusters.start));
        self.owned.remove_range(clusters);
    }

    /// # Errors
    /// `Corrupt` when a range of guest data lies over metadata.
    pub fn refuse_data(&self, at: u64, len: u64) -> Result<()> {
        match self.owned.first_in(self.range(at, len)) {
            None => Ok(()),
            Some(cluster) => Err(Error::corrupt(format!(
                "guest data at {at:#x} overlaps metadata at {:#x}",
                cluster << self.cluster_bits
            ))),
        }
    }
    /// # Errors
    /// `Corrupt` when another structure claims the cluster of this table too.
    pub fn refuse_shared(&self, what: &str, at: u64) -> Result<()> {
        if self.conflicts.contains(at >> self.cluster_bits) {
            return Err(Error::corrupt(format!("the {what} at {at:#x} overlaps other metadata")));
        }
        Ok(())
    }
    /// # Errors
    /// `LimitExceeded` when structures claim too much to be told apart, or to be looked at one by one.
    pub fn refuse_excess(&self) -> Result<()> {
        match self.too_much {
            true => Err(Error::limit(format!(
                "the metadata claim {} clusters, more than the file can have",
                self.claimed
            ))),
            false => Ok(()),
        }
    }
    /// # Errors
    /// `Corrupt` when any two structures overlap, `LimitExceeded` when they claim too much to be told apart: such an image must not be
    /// written.
    pub fn refuse_conflicts(&self) -> Result<()> {
        self.refuse_excess()?;
        match self.first_conflict {
            None => Ok(()),
            Some(at) => Err(Error::corrupt(format!("metadata structures overlap at {at:#x}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn what_claims_everything_is_not_counted() {
        let mut map = MetadataMap {
            most: MOST_CLAIMED,
            cluster_bits: 9,
            ..MetadataMap::default()
        };
        map.add(512, 512);
        map.refuse_conflicts().unwrap();
        // Snapshots may claim tables of 32 MiB each, an extension of the header everything.
        for _ in 0..65_536 {
            map.add(1 << 20, 32 << 20);
        }
        map.add(4096, u64::MAX - 8192);
        assert_eq!(map.refuse_conflicts().unwrap_err().kind(), ErrorKind::LimitExceeded);
    }
}
