//! Shrinking. One header write leads from the old disk with all its bytes to the new one: nothing is given back before it is stable.

use super::cache::Table;
use super::image::Qcow2;
use super::layout::{L1Entry, L2Entry, words_from_be, words_to_be};
use super::releases::{Release, Releases};
use super::writer::Writer;
use crate::image::{Preallocation, Resize};
use crate::storage::read_vec;
use crate::{Error, Result};

/// The tables of a smaller disk, and what they no longer refer to.
struct Cut {
    /// The active L1 table without what lies past the end.
    l1: Vec<u64>,
    /// The L2 table that the end falls into, without what lies past it: its L1 index and its words.
    table: Option<(usize, Table)>,
    /// The tables that are not used any more, in the order of the file, once for each user.
    gone: Vec<Gone>,
}

/// A table of which what stands from an entry on is not used any more, nor itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Gone {
    /// Host offset.
    at: u64,
    /// The first entry whose clusters go with it.
    first: usize,
}

/// Where the tables of a smaller disk were written.
#[derive(Default)]
struct Places {
    table: Option<u64>,
    l1: Option<u64>,
}

impl Qcow2 {
    /// Order: everything pending; new tables and their refcounts, flush; header (size and place of the L1 table in one write), flush; what lies
    /// past the end is given back; bitmaps, for which there is room then; files are cut.
    pub fn shrink(&self, writer: &mut Writer, old: u64, to: &Resize) -> Result<()> {
        let new = to.virtual_size;
        if !to.shrink {
            return Err(Error::invalid(format!(
                "shrinking from {old} to {new} bytes loses the data past the end; allow it explicitly"
            )));
        }
        if to.preallocation != Preallocation::Off {
            return Err(Error::invalid("preallocation cannot be used for shrinking an image"));
        }
        self.write_back(writer)?;
        let mut cut = self.cut_tables(writer, new)?;
        let places = self.write_cut(writer, &mut cut)?;
        self.switch_to(writer, new, cut, &places)?;
        self.write_back(writer)?;
        self.save_resized_bitmaps(writer)?;
        if self.geometry.data_file && self.host.data().can_resize() {
            self.host.data().set_len(new)?;
            self.host.forget_len();
        }
        self.cut_file(writer)
    }

    fn cut_tables(&self, writer: &mut Writer, new: u64) -> Result<Cut> {
        let mut cut = Cut {
            l1: self.read_shared().l1.clone(),
            table: None,
            gone: Vec::new(),
        };
        let from = new.next_multiple_of(self.geometry.cluster_size());
        if self.geometry.l2_index(from) > 0 {
            self.cut_table(from, &mut cut)?;
        }
        let keep = usize::try_from(self.geometry.l1_entries(new)).unwrap_or(usize::MAX);
        for raw in cut.l1.iter_mut().skip(keep) {
            if let L1Entry::Table { at, .. } = L1Entry::decode(*raw, &self.geometry)? {
                cut.gone.push(Gone { at, first: 0 });
            }
            *raw = L1Entry::Unallocated.encode();
        }
        cut.gone.sort_unstable();
        self.each_release(&cut.gone, |release| {
            writer.refcounts.require_users(release.clusters.clone(), release.times)
        })?;
        Ok(cut)
    }

    /// Takes what lies from `from` on out of the table that `from` falls into.
    fn cut_table(&self, from: u64, cut: &mut Cut) -> Result<()> {
        let index = self.geometry.l1_index(from);
        let first = self.geometry.l2_index(from);
        let past = self.entries(from, self.geometry.l2_entries() - first as u64)?;
        let Some(at) = self.l2_table_place(index)? else {
            return Ok(());
        };
        if past.iter().all(|entry| entry.is_unallocated()) {
            return Ok(());
        }
        let mut words = self.table(&self.read_shared(), index)?.unwrap_or_default();
        if let Some(gone) = std::sync::Arc::make_mut(&mut words).get_mut(first * self.geometry.entry_words()..) {
            gone.fill(0);
        }
        cut.table = Some((index, words));
        cut.gone.push(Gone { at, first });
        Ok(())
    }

    /// What tables that are not used any more refer to, and they themselves. One table at a time: all together may name more than memory
    /// holds.
    fn each_release(&self, gone: &[Gone], mut each: impl FnMut(&Release) -> Result<()>) -> Result<()> {
        let version = self.read_shared().header.version;
        for users in gone.chunk_by(|a, b| a == b) {
            let Some(Gone { at, first }) = users.first() else {
                continue;
            };
            let bytes = read_vec(self.host.file.as_ref(), *at, self.geometry.cluster_len())?;
            let words = words_from_be(&bytes);
            let mut releases = Releases::default();
            for index in *first..self.geometry.l2_entries() as usize {
                let entry = L2Entry::decode(&words, index, &self.geometry, version)?;
                releases.add(entry.clusters(&self.geometry), true);
            }
            let table = at >> self.geometry.cluster_bits;
            releases.add(table..table + 1, true);
            for mut release in releases.take() {
                release.times = release.times.saturating_mul(users.len() as u64);
                each(&release)?;
            }
        }
        Ok(())
    }

    /// Writes the new tables, where there are any. Nothing refers to them yet: when it fails, their clusters are free again.
    fn write_cut(&self, writer: &mut Writer, cut: &mut Cut) -> Result<Places> {
        let mut places = Places::default();
        if cut.gone.is_empty() {
            return Ok(places);
        }
        let done = self
            .write_new_tables(writer, cut, &mut places)
            .and_then(|()| self.stabilise_refcounts(writer));
        if let Err(error) = done {
            let l1_bytes = cut.l1.len() as u64 * 8;
            for (at, len) in [(places.table, self.geometry.cluster_size()), (places.l1, l1_bytes)] {
                let first = at.map(|at| at >> self.geometry.cluster_bits);
                // The worst that can happen is a leak; the first error is the one to tell.
                let _ = first.map(|first| writer.refcounts.decrement(first..first + self.geometry.clusters(len)));
            }
            return Err(error);
        }
        Ok(places)
    }

    fn write_new_tables(&self, writer: &mut Writer, cut: &mut Cut, places: &mut Places) -> Result<()> {
        if let Some((index, table)) = &cut.table {
            let at = self.write_new(writer, &words_to_be(table))?;
            places.table = Some(at);
            if let Some(slot) = cut.l1.get_mut(*index) {
                *slot = L1Entry::Table { at, copied: true }.encode();
            }
        }
        places.l1 = Some(self.write_new(writer, &words_to_be(&cut.l1))?);
        Ok(())
    }

    /// Makes the new tables and the new size those of the image, in the file and in memory.
    fn switch_to(&self, writer: &mut Writer, new: u64, cut: Cut, places: &Places) -> Result<()> {
        let old_at = self.read_shared().header.l1_offset;
        self.change_header(writer, |s| {
            s.header.virtual_size = new;
            s.header.l1_offset = places.l1.unwrap_or(old_at);
        })?;
        let l1_bytes = cut.l1.len() as u64 * 8;
        {
            let mut shared = self.write_shared();
            shared.l1 = cut.l1;
            shared.l2.clear();
        }
        self.host.flush()?;
        let Some(at) = places.l1 else { return Ok(()) };
        let size = self.geometry.cluster_size();
        let mut metadata = self.write_metadata();
        metadata.remove(old_at, l1_bytes);
        cut.gone.iter().for_each(|gone| metadata.remove(gone.at, size));
        metadata.add(at, l1_bytes);
        places.table.into_iter().for_each(|table| metadata.add(table, size));
        drop(metadata);
        self.each_release(&cut.gone, |release| self.free_now(writer, release))?;
        let old = old_at >> self.geometry.cluster_bits;
        self.free_now(writer, &Release::once(old..old + self.geometry.clusters(l1_bytes)))
    }
}
