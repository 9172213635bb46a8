//! Bringing changed tables to the file: steps 3 to 5 of the order of writes.

use std::sync::atomic::Ordering;

use super::layout::SECTOR;
use super::sparse::{Packing, SparseExtent};
use super::tables::Tables;
use crate::{Error, Result, Storage};

impl SparseExtent {
    /// Steps 3 to 5 of the order in `write`; without `data_first` for new images only, whose content nobody was promised.
    ///
    /// # Errors
    /// Those of the file. After one all later calls fail: what is stable is no longer known.
    pub fn flush(&self, data_first: bool) -> Result<()> {
        let _growth = self.growth();
        self.refuse_broken()?;
        self.broken_by(self.write_out(data_first))
    }

    pub fn refuse_broken(&self) -> Result<()> {
        if !self.broken.load(Ordering::Acquire) {
            return Ok(());
        }
        Err(Error::io(
            "an earlier flush failed: what is stable is not known",
            std::io::Error::from(std::io::ErrorKind::Other),
        )
        .at(self.file.name()))
    }
    /// Remembers that a step towards stable content failed.
    pub fn broken_by<T>(&self, result: Result<T>) -> Result<T> {
        if result.is_err() {
            self.broken.store(true, Ordering::Release);
        }
        result
    }

    fn write_out(&self, data_first: bool) -> Result<()> {
        let mut tables = self.tables_mut();
        if self.packing != Packing::Plain || !tables.is_dirty() {
            return self.file.flush();
        }
        let end = self.end.load(Ordering::Acquire);
        if self.file.len()? < end {
            self.file.set_len(end)?;
        }
        for index in tables.homeless() {
            self.house(&mut tables, index)?;
        }
        if data_first {
            self.file.flush()?;
        }
        write_pieces(self.file.as_ref(), tables.twin_pieces(self.file.as_ref())?)?;
        write_pieces(self.file.as_ref(), tables.dirty_pieces()?)?;
        let unnamed = tables.unnamed();
        if !unnamed.is_empty() {
            self.file.flush()?;
            for index in unnamed {
                self.write_directory_entry(&tables, index)?;
            }
        }
        if data_first {
            self.file.flush()?;
        }
        tables.mark_clean();
        Ok(())
    }

    /// Finds places for a new table and its redundant twin behind the end. A twin that is there already stays: the table may have been lost.
    fn house(&self, tables: &mut Tables, index: u64) -> Result<()> {
        let bytes = tables.geometry.table_bytes().next_multiple_of(SECTOR);
        let slot = usize::try_from(index).unwrap_or(usize::MAX);
        let twin = tables.redundant_at.is_some() && tables.redundant().get(slot).is_none_or(|place| *place == 0);
        let total = if twin { 2 * bytes } else { bytes };
        let place = self.new_place(total.div_ceil(self.grain))?;
        let end = (place + total).next_multiple_of(self.grain);
        self.file.set_len(end)?;
        self.end.store(end, Ordering::Release);
        tables.house(index, place, twin.then_some(place + bytes));
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
