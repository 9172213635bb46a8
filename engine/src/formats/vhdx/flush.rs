//! Making changes stable: metadata through the log, in the order that [`write`](super::write) says. Cutting off what is behind the last use.

use std::sync::atomic::Ordering;

use super::image::{Space, VhdxImage};
use super::journal::Page;
use super::layout::{Bitmap, Block, MIB, PAGE};
use super::write::ENTRIES;
use crate::Result;
use crate::formats::common::{lock, shared};
use crate::storage::read_padded;

impl VhdxImage {
    /// Makes everything stable, in that order.
    pub(super) fn flush_locked(&self, space: &mut Space) -> Result<()> {
        let metadata = !space.dirty.is_empty() || self.bits.waiting() > 0;
        if !self.unstable.swap(false, Ordering::AcqRel) && !metadata {
            return Ok(());
        }
        self.flush_all(space, metadata)
            .inspect_err(|_| self.unstable.store(true, Ordering::Release))
    }

    fn flush_all(&self, space: &mut Space, metadata: bool) -> Result<()> {
        self.file.flush()?;
        if !metadata {
            return Ok(());
        }
        let mut pages = self.bits.changed();
        {
            let table = shared(&self.bat);
            for page in space.dirty.iter().rev() {
                pages.push(self.table_page(&table, space.regions.bat.offset, *page)?);
            }
        }
        self.commit(space, &pages)?;
        self.bits.written();
        space.dirty.clear();
        Ok(())
    }

    /// Changes pages of metadata through the log, and leaves the log empty.
    pub(super) fn commit(&self, space: &mut Space, pages: &[Page]) -> Result<()> {
        let len = self.file.len()?;
        let journal = &mut space.journal;
        let done = journal
            .write(self.file.as_ref(), pages, len)
            .and_then(|()| journal.close(self.file.as_ref()));
        // The next flush has something to flush, and fails before the log is written again when a flush failed here.
        done.inspect_err(|_| self.unstable.store(true, Ordering::Release))
    }

    /// A page of the table at `start` as it is to be; what is behind the entries that the disk needs stays.
    pub(super) fn table_page(&self, table: &[u64], start: u64, page: u64) -> Result<Page> {
        let mut bytes = Box::new([0; PAGE as usize]);
        let place = start + page * PAGE;
        read_padded(self.file.as_ref(), place, bytes.as_mut_slice())?;
        let first = usize::try_from(page * ENTRIES).unwrap_or(usize::MAX);
        let entries = table.get(first..).unwrap_or_default();
        for (slot, entry) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(entries) {
            *slot = entry.to_le_bytes();
        }
        Ok((place, bytes))
    }

    /// Forgets every block: the table first, then the space.
    pub(super) fn empty(&self) -> Result<()> {
        self.start(b"empty")?;
        let mut space = lock(&self.space);
        let space = &mut *space;
        let used: Vec<u64> = (0..)
            .zip(shared(&self.bat).iter())
            .filter(|(_, e)| **e != 0)
            .map(|(i, _)| i)
            .collect();
        for index in used {
            self.put(space, index, 0)?;
        }
        self.bits.clear();
        self.flush_locked(space)?;
        self.trim(space).map(|_| ())
    }

    /// Cuts off what nothing refers to at the end of the file; gives the bytes.
    pub(super) fn trim(&self, space: &mut Space) -> Result<u64> {
        let (len, used) = (self.file.len()?, self.used_end(space));
        if used < len {
            self.file.set_len(used)?;
            self.file.flush()?;
            space.end = used;
        }
        Ok(len.saturating_sub(used))
    }

    /// Where the last byte in use is.
    pub(super) fn used_end(&self, space: &Space) -> u64 {
        let geometry = self.geometry();
        let bat = shared(&self.bat);
        let blocks = (0u64..)
            .zip(bat.iter())
            .filter(|(_, e)| **e != 0)
            .map(|(index, entry)| {
                if geometry.is_bitmap(index) {
                    return Bitmap::decode(*entry).map_or(0, |b| match b {
                        Bitmap::Present(place) => place + MIB,
                        Bitmap::NotPresent => 0,
                    });
                }
                let place = Block::decode(*entry).ok().and_then(Block::place);
                place.map_or(0, |place| place.saturating_add(geometry.block))
            });
        let structures = super::open::taken(&space.regions, &self.header)
            .into_iter()
            .map(|(_, end)| end);
        blocks.chain(structures).max().unwrap_or(0)
    }
}
