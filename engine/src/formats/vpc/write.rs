//! Writing to the blocks of a dynamic or differencing disk.
//!
//! Order of writes. A new block takes the place of the footer at the end of the file: the footer is written behind the block first, then the
//! block's bitmap over the old footer, then the data. The table (and an overlay's bitmaps) change in memory only, until a flush:
//! data and bitmaps are made stable, then changed bitmaps and table sectors are written and made stable. A crash in between leaves
//! space that nobody refers to, with a footer behind it, and everything as it was at the last flush.
//! New blocks are always behind the last byte of the file, so that they read as zeroes whatever a crash left there.

use std::sync::atomic::Ordering;

use zerocopy::IntoBytes;

use super::blocks::{Blocks, Piece, Space};
use super::image::{lock, reading, writing};
use super::layout::{FOOTER, SECTOR, UNUSED};
use crate::image::Below;
use crate::storage::read_vec;
use crate::{Error, Result};

/// Table entries of a sector.
const ENTRIES: u64 = SECTOR / 4;

impl Blocks {
    fn stored(&self) -> u64 {
        self.bitmap_size + self.block_size()
    }

    /// Gives blocks that have none a place, one behind the other at the end of the file.
    fn allocate(&self, space: &mut Space, blocks: &[usize]) -> Result<()> {
        let start = space.end;
        let end = start + self.stored() * blocks.len() as u64;
        // The last entry means "none"; a file of 2 TiB is where the format ends.
        let last = u32::try_from(end / SECTOR).ok().filter(|sector| *sector < UNUSED);
        if last.is_none() {
            return Err(Error::limit("the file would exceed 2 TiB, which a VHD cannot address").at(self.file.name()));
        }
        self.touched();
        self.file.write_at(end, space.footer.raw.as_bytes())?;
        let byte = if self.is_overlay() { 0 } else { 0xff };
        let bitmap = vec![byte; usize::try_from(self.bitmap_size).unwrap_or(0)];
        for at in 0..blocks.len() as u64 {
            self.file.write_at(start + at * self.stored(), &bitmap)?;
        }
        let mut table = writing(&self.table);
        for (at, block) in blocks.iter().enumerate() {
            let place = start + at as u64 * self.stored();
            if self.is_overlay() {
                self.bitmaps.start(*block, place);
            }
            if let (Some(entry), Ok(sector)) = (table.get_mut(*block), u32::try_from(place / SECTOR)) {
                *entry = sector;
            }
            space.dirty.insert(*block as u64 / ENTRIES);
        }
        if !self.is_overlay() {
            writing(&self.whole).extend(blocks);
        }
        space.end = end;
        Ok(())
    }

    /// The place of a block, new if need be.
    fn place_for(&self, space: &mut Space, block: usize) -> Result<u64> {
        if self.place_of(block)?.is_none() {
            self.allocate(space, &[block])?;
        }
        self.place_of(block)?
            .ok_or_else(|| Error::invalid("the block lies past the end of the table"))
    }

    fn pieces(&self, mut offset: u64, mut len: u64) -> impl Iterator<Item = Result<Piece>> {
        std::iter::from_fn(move || {
            if len == 0 {
                return None;
            }
            let piece = self.piece(offset, len);
            match &piece {
                Ok(p) => {
                    offset += p.len as u64;
                    len -= p.len as u64;
                }
                Err(_) => len = 0,
            }
            Some(piece)
        })
    }

    /// Before a block of a dynamic disk is written: sets all bits of its bitmap. A clear one means nothing here, but makes other programs
    /// (VirtualBox) read zeroes.
    fn make_whole(&self, block: usize, place: u64) -> Result<()> {
        if reading(&self.whole).contains(&block) {
            return Ok(());
        }
        let len = usize::try_from(self.bitmap_size).map_err(|_| Error::limit("a bitmap exceeds the address space"))?;
        let bits = usize::try_from((self.block_size() / SECTOR).div_ceil(8)).unwrap_or(len);
        let bitmap = read_vec(self.file.as_ref(), place, len)?;
        if bitmap.iter().take(bits).any(|byte| *byte != 0xff) {
            self.file.write_at(place, &vec![0xff; len])?;
        }
        writing(&self.whole).insert(block);
        Ok(())
    }

    /// Writes guest bytes.
    pub fn write(&self, offset: u64, mut buf: &[u8], below: &dyn Below) -> Result<()> {
        self.touched();
        for piece in self.pieces(offset, buf.len() as u64) {
            let piece = piece?;
            let (head, rest) = buf.split_at(piece.len);
            if self.is_overlay() {
                self.write_sectors(&mut lock(&self.space), piece, head, below)?;
            } else {
                let place = match self.place_of(piece.block)? {
                    Some(place) => {
                        self.make_whole(piece.block, place)?;
                        place
                    }
                    None => self.place_for(&mut lock(&self.space), piece.block)?,
                };
                self.file.write_at(place + self.bitmap_size + piece.from, head)?;
            }
            buf = rest;
        }
        if self.bitmaps.is_full() {
            self.flush()?;
        }
        Ok(())
    }

    /// Writes a part of an overlay's block. Sectors are all or nothing: what is missing of the first and the last comes from below.
    fn write_sectors(&self, space: &mut Space, piece: Piece, bytes: &[u8], below: &dyn Below) -> Result<()> {
        let place = self.place_for(space, piece.block)?;
        let data = place + self.bitmap_size;
        let (first, last) = (piece.from / SECTOR, (piece.from + bytes.len() as u64).div_ceil(SECTOR));
        let (start, end) = (first * SECTOR, last * SECTOR);
        if start == piece.from && end - start == bytes.len() as u64 {
            self.file.write_at(data + start, bytes)?;
        } else {
            let lead = (piece.from - start) as usize;
            let mut whole = vec![0; (end - start) as usize];
            let guest = piece.block as u64 * self.block_size();
            let sector = SECTOR as usize;
            let fill = |number: u64, part: Option<&mut [u8]>| match part {
                None => Ok(()),
                Some(part) if self.bitmaps.get(self.file.as_ref(), piece.block, place)?.has(number) => {
                    self.file.read_at(data + number * SECTOR, part)
                }
                Some(part) => below.read(guest + number * SECTOR, part),
            };
            fill(
                first,
                whole.first_chunk_mut::<{ SECTOR as usize }>().map(|c| c.as_mut_slice()),
            )?;
            if last - first > 1 {
                let tail = whole.len() - sector;
                fill(last - 1, whole.get_mut(tail..))?;
            }
            if let Some(part) = whole.get_mut(lead..lead + bytes.len()) {
                part.copy_from_slice(bytes);
            }
            self.file.write_at(data + start, &whole)?;
        }
        self.bitmaps.set(self.file.as_ref(), piece.block, place, first..last)
    }

    /// Zeroes guest bytes: by nothing at all where they are zeroes already.
    pub fn write_zeroes(&self, offset: u64, len: u64, unmap: bool, below: &dyn Below) -> Result<()> {
        self.touched();
        for piece in self.pieces(offset, len) {
            let piece = piece?;
            if self.is_overlay() {
                self.zero_sectors(piece, unmap, below)?;
            } else if let Some(place) = self.place_of(piece.block)? {
                self.file
                    .write_zeroes(place + self.bitmap_size + piece.from, piece.len as u64, unmap)?;
            }
        }
        if self.bitmaps.is_full() {
            self.flush()?;
        }
        Ok(())
    }

    fn zero_sectors(&self, piece: Piece, unmap: bool, below: &dyn Below) -> Result<()> {
        let space = &mut *lock(&self.space);
        let guest = piece.block as u64 * self.block_size();
        let (mut at, end) = (piece.from, piece.from + piece.len as u64);
        while at < end {
            let place = self.place_of(piece.block)?;
            let run = match place {
                Some(place) => self
                    .bitmaps
                    .get(self.file.as_ref(), piece.block, place)?
                    .run(at, end - at),
                None => super::bitmaps::Run {
                    len: end - at,
                    present: false,
                },
            };
            match place {
                Some(place) if run.present => {
                    self.file.write_zeroes(place + self.bitmap_size + at, run.len, unmap)?;
                }
                _ if below.is_zero(guest + at, run.len)? => {}
                _ => self.cover(space, piece.block, at, run.len, below)?,
            }
            at += run.len;
        }
        Ok(())
    }

    /// Puts zeroes over what is below; none of these sectors is in this layer.
    fn cover(&self, space: &mut Space, block: usize, from: u64, len: u64, below: &dyn Below) -> Result<()> {
        let (start, end) = (from.next_multiple_of(SECTOR), (from + len) / SECTOR * SECTOR);
        let edge = |space: &mut Space, from: u64, to: u64| {
            let len = (to - from) as usize;
            self.write_sectors(space, Piece { block, from, len }, &vec![0; len], below)
        };
        if start >= end {
            return edge(space, from, from + len);
        }
        if from < start {
            edge(space, from, start)?;
        }
        if end < from + len {
            edge(space, end, from + len)?;
        }
        let place = self.place_for(space, block)?;
        self.file
            .write_zeroes(place + self.bitmap_size + start, end - start, true)?;
        self.bitmaps
            .set(self.file.as_ref(), block, place, start / SECTOR..end / SECTOR)
    }

    /// Gives host space back; the ranges stay in this layer.
    pub fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.touched();
        let (mut offset, mut len) = (offset, len);
        while len > 0 {
            let extent = self.extent(offset, len)?;
            if let crate::image::ExtentKind::Data { at: Some(place), .. } = extent.kind {
                self.file.discard(place.offset, extent.len)?;
            }
            offset += extent.len;
            len -= extent.len;
        }
        Ok(())
    }

    /// Gives a run of blocks places in guest order; returns where its first byte goes.
    pub fn place(&self, offset: u64, len: u64) -> Result<u64> {
        let mut space = lock(&self.space);
        let mut new = Vec::new();
        for piece in self.pieces(offset, len) {
            let block = piece?.block;
            match self.place_of(block)? {
                Some(place) => self.make_whole(block, place)?,
                None => new.push(block),
            }
        }
        if !new.is_empty() {
            self.allocate(&mut space, &new)?;
        }
        let first = self.piece(offset, 1)?;
        let place = self.place_for(&mut space, first.block)?;
        Ok(place + self.bitmap_size + first.from)
    }

    /// Writes the bytes of placed blocks.
    pub fn store(&self, offset: u64, mut bytes: &[u8]) -> Result<()> {
        self.touched();
        for piece in self.pieces(offset, bytes.len() as u64) {
            let piece = piece?;
            let (head, rest) = bytes.split_at(piece.len);
            let place = self.place_of(piece.block)?;
            let place = place.ok_or_else(|| Error::invalid("the block was not placed before it is stored"))?;
            self.file.write_at(place + self.bitmap_size + piece.from, head)?;
            bytes = rest;
        }
        Ok(())
    }

    /// Makes everything stable, in the order said above.
    pub fn flush(&self) -> Result<()> {
        let mut space = lock(&self.space);
        self.flush_locked(&mut space)
    }

    pub(super) fn flush_locked(&self, space: &mut Space) -> Result<()> {
        let metadata = !space.dirty.is_empty() || self.bitmaps.waiting() > 0;
        if !self.unstable.swap(false, Ordering::AcqRel) && !metadata {
            return Ok(());
        }
        let work = || {
            self.file.flush()?;
            if metadata {
                self.bitmaps.write_dirty(self.file.as_ref())?;
                self.write_table(space)?;
                self.file.flush()?;
            }
            Ok(())
        };
        work().inspect_err(|_| self.touched())?;
        space.dirty.clear();
        Ok(())
    }

    /// Writes the changed sectors of the table, neighbours together.
    fn write_table(&self, space: &Space) -> Result<()> {
        let offset = reading(&self.header).table_offset;
        let mut sectors = space.dirty.iter().copied().peekable();
        while let Some(first) = sectors.next() {
            let mut last = first;
            while sectors.next_if_eq(&(last + 1)).is_some() {
                last += 1;
            }
            let bytes = self.table_bytes(first * ENTRIES, (last + 1) * ENTRIES);
            self.file.write_at(offset + first * SECTOR, &bytes)?;
        }
        Ok(())
    }

    /// Entries `from..to` as they are stored, as far as the disk has them.
    pub(super) fn table_bytes(&self, from: u64, to: u64) -> Vec<u8> {
        let table = reading(&self.table);
        let index = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).min(table.len());
        let part = table.get(index(from)..index(to)).unwrap_or_default();
        part.iter().flat_map(|entry| entry.to_be_bytes()).collect()
    }

    /// Forgets every block: the table first, then the space.
    pub fn make_empty(&self) -> Result<()> {
        let mut space = lock(&self.space);
        let header = *reading(&self.header);
        writing(&self.table).fill(UNUSED);
        self.bitmaps.clear();
        space.dirty.clear();
        self.file
            .write_at(header.table_offset, &self.table_bytes(0, u64::MAX))?;
        self.file.flush()?;
        // Blocks that only the size field covers were not shown, so nobody wanted them dropped.
        if self.hidden_end.load(Ordering::Acquire) == 0 {
            self.forget_past()?;
        }
        let end = self.used_end(space.end);
        self.file.write_at(end, space.footer.raw.as_bytes())?;
        self.file.flush()?;
        self.file.set_len(end + FOOTER)?;
        space.end = end;
        self.file.flush()
    }
}
