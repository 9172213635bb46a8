//! Two guest clusters in one host cluster that both claim it for themselves: a write to one would change the other, and freeing one
//! would take the other's data away. Before the first write the tables are looked through for that.

use super::clusters::ClusterSet;
use super::image::Qcow2;
use super::layout::{L1Entry, L2Entry, words_from_be};
use super::writer::Writer;
use crate::{Error, Result};

/// Bytes of L2 tables that are looked through; larger images are left to `check`.
const MOST_BYTES: u64 = 64 << 20;

impl Qcow2 {
    /// # Errors
    /// `Corrupt` when a host cluster has two users and a refcount for one.
    pub fn refuse_double_use(&self, writer: &mut Writer) -> Result<()> {
        if self.geometry.data_file {
            return Ok(());
        }
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
        let mut seen = ClusterSet::default();
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
                    let way = match writer.refcounts.width().max() {
                        1 => "widen the refcounts with amend refcount_bits",
                        _ => "run a repair",
                    };
                    return Err(Error::corrupt(format!(
                        "two guest clusters share the host cluster at {host:#x}; {way}"
                    )));
                }
            }
        }
        Ok(())
    }
}
