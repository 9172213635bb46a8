//! Bringing changed tables to the file: steps 3 to 5 of the order of writes.

use std::sync::atomic::Ordering;

use super::layout::SECTOR;
use super::sparse::{Packing, SparseExtent};
use super::tables::Tables;
use crate::{Error, Result, Storage};

impl SparseExtent {
    /// Steps 3 to 5 of the order in `write`; without `data_first` for new images only, whose content nobody was promised.
    pub fn flush(&self, data_first: bool) -> Result<()> {
        let _growth = self.growth();
        let mut tables = self.tables_mut();
        if self.packing != Packing::Plain || !tables.is_dirty() {
            return self.file.flush();
        }
        let end = self.end.load(Ordering::Acquire);
        if self.file.len()? < end {
            self.file.set_len(end)?;
        }
        let homeless = tables.homeless();
        for index in &homeless {
            self.house(&mut tables, *index)?;
        }
        if data_first {
            self.file.flush()?;
        }
        write_pieces(self.file.as_ref(), tables.dirty_pieces(true))?;
        write_pieces(self.file.as_ref(), tables.dirty_pieces(false))?;
        if !homeless.is_empty() {
            self.file.flush()?;
            for index in &homeless {
                self.write_directory_entry(&tables, *index)?;
            }
        }
        tables.mark_clean();
        if data_first { self.file.flush() } else { Ok(()) }
    }

    /// Finds places for a new table and its redundant twin behind the end.
    fn house(&self, tables: &mut Tables, index: u64) -> Result<()> {
        let bytes = tables.geometry.table_bytes().next_multiple_of(SECTOR);
        let twin = tables.redundant_at.is_some();
        let total = if twin { 2 * bytes } else { bytes };
        let place = self.new_place(total.div_ceil(self.grain))?;
        tables.house(index, place, twin.then_some(place + bytes));
        let end = (place + total).next_multiple_of(self.grain);
        self.file.set_len(end)?;
        self.end.store(end, Ordering::Release);
        Ok(())
    }

    fn write_directory_entry(&self, tables: &Tables, index: u64) -> Result<()> {
        let slot = usize::try_from(index).unwrap_or(usize::MAX);
        let both = [
            (tables.redundant_at, tables.redundant().get(slot)),
            (Some(tables.directory_at), tables.directory().get(slot)),
        ];
        for (at, place) in both {
            if let (Some(at), Some(place)) = (at, place) {
                let sector = u32::try_from(place / SECTOR).map_err(|_| Error::limit("a grain table past 2 TiB"))?;
                self.file.write_at(at + index * 4, &sector.to_le_bytes())?;
            }
        }
        Ok(())
    }
}

fn write_pieces(file: &dyn Storage, pieces: Vec<(u64, Vec<u8>)>) -> Result<()> {
    pieces
        .into_iter()
        .try_for_each(|(place, bytes)| file.write_at(place, &bytes))
}
