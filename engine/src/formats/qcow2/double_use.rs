//! Two guest clusters in one host cluster that both claim it for themselves: a write to one would change the other, and freeing one
//! would take the other's data away. So with compressed clusters, with those of snapshots, and with the tables and bits of dirty bitmaps. Before the
//! first write all tables are looked through for that.

use super::bitmap_table::BitmapCluster;
use super::clusters::ClusterSet;
use super::image::Qcow2;
use super::layout::{L1Entry, L2Entry, words_from_be};
use super::snapshots::Snapshot;
use super::writer::Writer;
use crate::{Error, Result};

/// Bytes of L2 tables, of snapshots' L1 tables and of bitmaps' tables that are looked through; larger images are left to `check`.
const MOST_BYTES: u64 = 64 << 20;

impl Qcow2 {
    /// # Errors
    /// `Corrupt` when a host cluster has two users and a refcount for one.
    pub fn refuse_double_use(&self, writer: &mut Writer) -> Result<()> {
        let mut seen = ClusterSet::default();
        if !self.geometry.data_file {
            self.refuse_shared_data(writer, &mut seen)?;
        }
        self.refuse_shared_bitmaps(writer, &seen)
    }

    /// Adds the clusters of guest data to `seen`. A table or a cluster that is met twice, as data or in compressed data, must be counted so.
    fn refuse_shared_data(&self, writer: &mut Writer, seen: &mut ClusterSet) -> Result<()> {
        let version = self.read_shared().header.version;
        let size = self.geometry.cluster_len();
        let end = self.host.file.len()?;
        let mut bytes = vec![0; size];
        for users in self.tables_to_look_through()?.chunk_by(|a, b| a == b) {
            let at = users.first().copied().unwrap_or(0);
            let shared = users.len() > 1;
            if shared {
                self.require_two_users(
                    writer,
                    at >> self.geometry.cluster_bits,
                    "two L1 tables or entries share the L2 table",
                )?;
            }
            if at.saturating_add(size as u64) > end {
                continue;
            }
            self.host.file.read_at(at, &mut bytes)?;
            for raw in bytes.chunks_exact(self.geometry.entry_words() * 8) {
                if raw.iter().all(|b| *b == 0) {
                    continue;
                }
                let Ok(entry) = L2Entry::decode(&words_from_be(raw), 0, &self.geometry, version) else {
                    continue;
                };
                for cluster in entry.clusters(&self.geometry) {
                    if !seen.insert(cluster) || shared {
                        self.require_two_users(writer, cluster, "two guest clusters share the host cluster")?;
                    }
                }
            }
        }
        Ok(())
    }

    fn require_two_users(&self, writer: &mut Writer, cluster: u64, what: &str) -> Result<()> {
        if writer.refcounts.get(cluster)? < 2 {
            let at = cluster << self.geometry.cluster_bits;
            return Err(Error::corrupt(format!("{what} at {at:#x}; {}", way_out(writer))));
        }
        Ok(())
    }

    /// The L2 tables of the active image and of its snapshots, in the order of the file, once for each L1 entry that names them. Without those
    /// of the snapshots, or none, where that would be too much.
    fn tables_to_look_through(&self) -> Result<Vec<u64>> {
        let (active, snapshots) = {
            let shared = self.read_shared();
            (shared.l1.clone(), shared.snapshots.clone())
        };
        let bytes = |tables: &[u64]| tables.chunk_by(|a, b| a == b).count() as u64 * self.geometry.cluster_size();
        let mut tables = self.named_tables(&active);
        tables.sort_unstable();
        if bytes(&tables) > MOST_BYTES {
            return Ok(Vec::new());
        }
        let l1_bytes = snapshots.iter().map(Snapshot::l1_bytes).fold(0, u64::saturating_add);
        if l1_bytes > MOST_BYTES {
            return Ok(tables);
        }
        let mut all = tables.clone();
        for snapshot in &snapshots {
            // One that cannot be read is told when it is used.
            all.extend(self.named_tables(&self.snapshot_l1(snapshot).unwrap_or_default()));
        }
        all.sort_unstable();
        Ok(if bytes(&all) > MOST_BYTES { tables } else { all })
    }

    fn named_tables(&self, l1: &[u64]) -> Vec<u64> {
        let decode = |raw: &u64| match L1Entry::decode(*raw, &self.geometry) {
            Ok(L1Entry::Table { at, .. }) => Some(at),
            _ => None,
        };
        l1.iter().filter_map(decode).collect()
    }

    /// A save writes bits and tables to new places and lets go of the old ones: their refcounts must be those of all who use them.
    fn refuse_shared_bitmaps(&self, writer: &mut Writer, guest: &ClusterSet) -> Result<()> {
        let directory = self.bitmap_directory()?;
        let bytes: u64 = directory.iter().map(|b| u64::from(b.table_size) * 8).sum();
        if bytes > MOST_BYTES {
            return Ok(());
        }
        let bits = self.geometry.cluster_bits;
        let mut used: Vec<u64> = Vec::new();
        for bitmap in &directory {
            // One that cannot be read is told when it is used.
            let table = bitmap.table(self.host.file.as_ref()).unwrap_or_default();
            let clusters = self.geometry.clusters(table.len() as u64 * 8);
            let first = bitmap.table_offset >> bits;
            used.extend(first..first + clusters);
            for raw in table {
                if let Ok(BitmapCluster::At(at)) = BitmapCluster::decode(raw, &self.geometry) {
                    used.push(at >> bits);
                }
            }
        }
        used.sort_unstable();
        for users in used.chunk_by(|a, b| a == b) {
            let cluster = users.first().copied().unwrap_or(0);
            let at = cluster << bits;
            let other = guest.contains(cluster) || self.read_metadata().refuse_data(at, 1).is_err();
            let found = users.len() as u64 + u64::from(other);
            let stored = writer.refcounts.get(cluster)?;
            if found > stored {
                return Err(Error::corrupt(format!(
                    "the cluster at {at:#x} with bits or a table of dirty bitmaps has {found} users and a refcount of {stored}; {}",
                    way_out(writer)
                )));
            }
        }
        Ok(())
    }
}

/// What makes refcounts say what is so.
fn way_out(writer: &Writer) -> &'static str {
    match writer.refcounts.width().max() {
        1 => "widen the refcounts with amend refcount_bits",
        _ => "run a repair",
    }
}
