//! Two guest clusters in one host cluster that both claim it for themselves: a write to one would change the other, and freeing one
//! would take the other's data away. So with the tables and bits of dirty bitmaps. Before the first write all tables are looked through for that.

use super::bitmap_table::BitmapCluster;
use super::clusters::ClusterSet;
use super::image::Qcow2;
use super::layout::{L1Entry, L2Entry, words_from_be};
use super::writer::Writer;
use crate::{Error, Result};

/// Bytes of L2 tables, and of bitmaps' tables, that are looked through; larger images are left to `check`.
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

    /// Adds the clusters of guest data to `seen`.
    fn refuse_shared_data(&self, writer: &mut Writer, seen: &mut ClusterSet) -> Result<()> {
        let (mut tables, version) = {
            let shared = self.read_shared();
            let decode = |raw: &u64| match L1Entry::decode(*raw, &self.geometry) {
                Ok(L1Entry::Table { at, .. }) => Some(at),
                _ => None,
            };
            let tables: Vec<u64> = shared.l1.iter().filter_map(decode).collect();
            (tables, shared.header.version)
        };
        let size = self.geometry.cluster_len();
        if tables.len() as u64 * size as u64 > MOST_BYTES {
            return Ok(());
        }
        tables.sort_unstable();
        tables.dedup();
        let end = self.host.file.len()?;
        let mut bytes = vec![0; size];
        for at in tables {
            if at.saturating_add(size as u64) > end {
                continue;
            }
            self.host.file.read_at(at, &mut bytes)?;
            for raw in bytes.chunks_exact(self.geometry.entry_words() * 8) {
                if raw.iter().all(|b| *b == 0) {
                    continue;
                }
                let entry = L2Entry::decode(&words_from_be(raw), 0, &self.geometry, version);
                let Ok(L2Entry::Standard { at: Some(host), .. }) = entry else {
                    continue;
                };
                let cluster = host >> self.geometry.cluster_bits;
                if !seen.insert(cluster) && writer.refcounts.get(cluster)? < 2 {
                    return Err(Error::corrupt(format!(
                        "two guest clusters share the host cluster at {host:#x}; {}",
                        way_out(writer)
                    )));
                }
            }
        }
        Ok(())
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
