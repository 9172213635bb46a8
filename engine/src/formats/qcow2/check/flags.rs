//! The copied flags: set exactly where the refcount is 1.

use super::super::image::Qcow2;
use super::super::layout::{L1Entry, L2Entry, words_from_be, words_to_be};
use super::super::writer::Writer;
use super::walk::Walk;
use crate::Result;

impl Qcow2 {
    /// Compares the flags of the active tables with the refcounts as they stand; with a writer, mends them.
    pub(super) fn check_flags(&self, walk: &mut Walk<'_>, mend: Option<&mut Writer>) -> Result<()> {
        if !walk.flags_matter {
            return Ok(());
        }
        let mending = mend.is_some();
        let mut l1 = self.read_shared().l1.clone();
        let mut changed = false;
        for index in 0..l1.len() {
            let raw = l1.get(index).copied().unwrap_or(0);
            let Ok(L1Entry::Table { at, copied }) = L1Entry::decode(raw, &self.geometry) else {
                continue;
            };
            let refcount = walk.refcount(at >> self.geometry.cluster_bits);
            let alone = refcount == 1;
            if alone != copied {
                let place = || format!("L2 cluster: l1_index={index} l1_entry={raw:x} refcount={refcount}");
                walk.note_flag(place, mending);
                changed = true;
                if let Some(slot) = l1.get_mut(index) {
                    *slot = L1Entry::Table { at, copied: alone }.encode();
                }
            }
            self.check_table_flags(walk, at, mending)?;
        }
        if mending && changed {
            let offset = self.read_shared().header.l1_offset;
            self.host.file.write_at(offset, &words_to_be(&l1))?;
            self.write_shared().l1 = l1;
        }
        Ok(())
    }

    fn check_table_flags(&self, walk: &mut Walk<'_>, at: u64, mending: bool) -> Result<()> {
        let size = self.geometry.cluster_len();
        if at.saturating_add(size as u64) > self.host.file.len()? {
            return Ok(());
        }
        let version = self.read_shared().header.version;
        let mut words = words_from_be(&crate::storage::read_vec(self.host.file.as_ref(), at, size)?);
        let mut changed = false;
        for index in 0..self.geometry.l2_entries() as usize {
            let entry = L2Entry::decode(&words, index, &self.geometry, version);
            let Ok(L2Entry::Standard {
                at: Some(host),
                copied,
                subs,
            }) = entry
            else {
                continue;
            };
            // Clusters of a data file are not counted: each has one user.
            let refcount = match self.geometry.data_file {
                true => 1,
                false => walk.refcount(host >> self.geometry.cluster_bits),
            };
            let alone = refcount == 1;
            if alone != copied {
                let raw = words.get(index * self.geometry.entry_words()).copied().unwrap_or(0);
                let place = || format!("data cluster: l2_entry={raw:x} refcount={refcount}");
                walk.note_flag(place, mending);
                changed = true;
                let mended = L2Entry::Standard {
                    at: Some(host),
                    copied: alone,
                    subs,
                };
                mended.encode(&mut words, index, &self.geometry);
            }
        }
        if mending && changed {
            self.host.file.write_at(at, &words_to_be(&words))?;
        }
        Ok(())
    }
}
