//! Shrinking. One header write leads from the old disk with all its bytes to the new one: nothing is given back before it is stable.

use super::cache::Table;
use super::image::Qcow2;
use super::layout::{L1Entry, L2Entry, words_to_be};
use super::writer::{Release, Writer};
use crate::image::{Preallocation, Resize};
use crate::{Error, Result};

/// The tables of a smaller disk, and what they no longer refer to.
struct Cut {
    /// The active L1 table without what lies past the end.
    l1: Vec<u64>,
    /// The L2 table that the end falls into, without what lies past it: its L1 index and its words.
    table: Option<(usize, Table)>,
    /// Host offsets of the L2 tables that are not used any more.
    old_tables: Vec<u64>,
    released: Vec<Release>,
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
            old_tables: Vec::new(),
            released: Vec::new(),
        };
        let done = self.take_out(writer, new, &mut cut);
        // Whatever comes, it is not given back before the header says so.
        cut.released = std::mem::take(&mut writer.released);
        done?;
        for release in &cut.released {
            writer.refcounts.require_used(release.clusters.clone())?;
        }
        Ok(cut)
    }

    fn take_out(&self, writer: &mut Writer, new: u64, cut: &mut Cut) -> Result<()> {
        let from = new.next_multiple_of(self.geometry.cluster_size());
        if self.geometry.l2_index(from) > 0 {
            self.cut_table(writer, from, cut)?;
        }
        let keep = usize::try_from(self.geometry.l1_entries(new)).unwrap_or(usize::MAX);
        (keep..cut.l1.len()).try_for_each(|index| self.drop_table(writer, index, cut))
    }

    /// Takes what lies from `from` on out of the table that `from` falls into.
    fn cut_table(&self, writer: &mut Writer, from: u64, cut: &mut Cut) -> Result<()> {
        let index = self.geometry.l1_index(from);
        let first = self.geometry.l2_index(from);
        let past = self.entries(from, self.geometry.l2_entries() - first as u64)?;
        let (Some(at), false) = (
            self.table_place(cut, index)?,
            past.iter().all(|entry| entry.is_unallocated()),
        ) else {
            return Ok(());
        };
        let mut words = self.table(&self.read_shared(), index)?.unwrap_or_default();
        if let Some(gone) = std::sync::Arc::make_mut(&mut words).get_mut(first * self.geometry.entry_words()..) {
            gone.fill(0);
        }
        cut.table = Some((index, words));
        self.let_go(writer, at, &past, cut);
        Ok(())
    }

    fn drop_table(&self, writer: &mut Writer, index: usize, cut: &mut Cut) -> Result<()> {
        let Some(at) = self.table_place(cut, index)? else {
            return Ok(());
        };
        let guest = index as u64 * self.geometry.l2_span();
        let entries = self.entries(guest, self.geometry.l2_entries())?;
        if let Some(slot) = cut.l1.get_mut(index) {
            *slot = L1Entry::Unallocated.encode();
        }
        self.let_go(writer, at, &entries, cut);
        Ok(())
    }

    fn table_place(&self, cut: &Cut, index: usize) -> Result<Option<u64>> {
        let raw = cut.l1.get(index).copied().unwrap_or(0);
        Ok(match L1Entry::decode(raw, &self.geometry)? {
            L1Entry::Table { at, .. } => Some(at),
            L1Entry::Unallocated => None,
        })
    }

    /// Notes that an L2 table is not used any more, nor what some of its entries point to.
    fn let_go(&self, writer: &mut Writer, at: u64, entries: &[L2Entry], cut: &mut Cut) {
        for entry in entries {
            self.release_entry(writer, *entry, L2Entry::UNALLOCATED, true);
        }
        let cluster = at >> self.geometry.cluster_bits;
        writer.release(cluster..cluster + 1, true);
        cut.old_tables.push(at);
    }

    /// Writes the new tables, where there are any. Nothing refers to them yet: when it fails, their clusters are free again.
    fn write_cut(&self, writer: &mut Writer, cut: &mut Cut) -> Result<Places> {
        let mut places = Places::default();
        if cut.old_tables.is_empty() {
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
        cut.old_tables.iter().for_each(|table| metadata.remove(*table, size));
        metadata.add(at, l1_bytes);
        places.table.into_iter().for_each(|table| metadata.add(table, size));
        drop(metadata);
        writer.released = cut.released;
        let old = old_at >> self.geometry.cluster_bits;
        writer.release(old..old + self.geometry.clusters(l1_bytes), true);
        Ok(())
    }
}
