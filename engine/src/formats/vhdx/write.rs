//! Writing.
//!
//! Order of writes. Before the first change the header gets new ids. New blocks are past the end of the file, which grows first, so that
//! they read as zeroes whatever a crash left. Table and bitmaps change in memory only, until a flush: data are made stable; then the changed
//! pages go through the log, bitmaps before the table, and of the table the later pages first, because the entry of a bitmap is behind
//! the entries of the blocks it serves. After a flush the log is empty.

use std::sync::atomic::Ordering;

use super::blocks::{Piece, first_piece, pieces};
use super::image::{Space, VhdxImage};
use super::journal::{Page, derived, id_of_commit};
use super::layout::{Bitmap, Block, Geometry, MIB, PAGE};
use crate::formats::common::{exclusive, lock, shared};
use crate::image::{Below, ExtentKind};
use crate::storage::read_padded;
use crate::{Error, Result};

/// Table entries of a page.
pub(super) const ENTRIES: u64 = PAGE / 8;
/// The file changed: its metadata, or where data are.
pub(super) const FILE_CHANGED: u8 = 1;
/// What the guest sees changed as well. Disks above know this one by the id that says so.
pub(super) const DATA_CHANGED: u8 = 2;
/// Zeroes that are written as bytes at once, where sectors come partly from below.
const SOME: u64 = MIB;

impl VhdxImage {
    /// Gives the headers the ids that a change of this kind takes, once.
    pub(super) fn note_change(&self, kind: u8, what: &[u8]) -> Result<()> {
        self.unstable.store(true, Ordering::Release);
        if self.started.load(Ordering::Acquire) >= kind {
            return Ok(());
        }
        let mut space = lock(&self.space);
        let before = self.started.load(Ordering::Acquire);
        if before >= kind {
            return Ok(());
        }
        let what = what.get(..what.len().min(65536)).unwrap_or_default();
        space.journal.headers.update(self.file.as_ref(), |raw| {
            let (file, data) = (
                derived(raw, &[b"file", what].concat()),
                derived(raw, &[b"data", what].concat()),
            );
            if before < FILE_CHANGED {
                raw.file_write_guid = file;
            }
            if kind >= DATA_CHANGED {
                raw.data_write_guid = data;
            }
        })?;
        self.started.store(kind, Ordering::Release);
        Ok(())
    }

    /// Before a commit into this disk: the data-write id that the disk above recorded.
    pub(super) fn begin_commit(&self) -> Result<()> {
        let mut space = lock(&self.space);
        space.journal.headers.update(self.file.as_ref(), |raw| {
            let data = id_of_commit(uuid::Uuid::from_bytes_le(raw.data_write_guid));
            (raw.file_write_guid, raw.data_write_guid) = (derived(raw, b"file commit"), data.to_bytes_le());
        })?;
        self.started.store(DATA_CHANGED, Ordering::Release);
        Ok(())
    }

    /// Changes a table entry in memory.
    fn put(&self, space: &mut Space, index: u64, entry: u64) -> Result<()> {
        let at = usize::try_from(index).map_err(|_| Error::invalid("an index past the address space"))?;
        let mut bat = exclusive(&self.bat);
        let slot = bat
            .get_mut(at)
            .ok_or_else(|| Error::invalid(format!("the BAT has no entry {index}")))?;
        *slot = entry;
        space.dirty.insert(index / ENTRIES);
        Ok(())
    }
    pub(super) fn put_block(&self, space: &mut Space, geometry: &Geometry, block: u64, state: Block) -> Result<()> {
        self.put(space, geometry.index(block), state.encode())
    }

    /// Takes bytes at the end of the file, which grows by them.
    pub(super) fn take(&self, space: &mut Space, len: u64) -> Result<u64> {
        let place = space.end;
        let end = place
            .checked_add(len)
            .ok_or_else(|| Error::limit("the file would exceed 2^64 bytes"))?;
        self.file.set_len(end)?;
        space.end = end;
        Ok(place)
    }

    /// Makes a block fully present; what was not in it reads as zeroes.
    fn fill(&self, space: &mut Space, geometry: &Geometry, block: u64) -> Result<u64> {
        let place = self.take(space, geometry.block)?;
        self.put_block(space, geometry, block, Block::Full(place))?;
        Ok(place)
    }

    /// Makes a block partially present without any sector.
    fn begin_partial(&self, space: &mut Space, geometry: &Geometry, block: u64) -> Result<u64> {
        let (bitmap, first) = self.bitmap(geometry, block)?;
        let map = match bitmap {
            Bitmap::Present(place) => place,
            Bitmap::NotPresent => {
                let place = self.take(space, MIB)?;
                self.put(space, geometry.bitmap_index(block), Bitmap::Present(place).encode())?;
                place
            }
        };
        let sectors = geometry.block / geometry.sector;
        self.bits.set(self.file.as_ref(), map, first..first + sectors, false)?;
        let place = self.take(space, geometry.block)?;
        self.put_block(space, geometry, block, Block::Partial(place))?;
        Ok(place)
    }

    /// Writes guest bytes.
    pub(super) fn write_blocks(&self, offset: u64, mut buf: &[u8], below: &dyn Below) -> Result<()> {
        let geometry = self.geometry();
        for piece in pieces(geometry, offset, buf.len() as u64) {
            let (head, rest) = buf.split_at(usize::try_from(piece.len).unwrap_or(buf.len()));
            if geometry.overlay {
                self.write_over(&mut lock(&self.space), &geometry, piece, head, below)?;
            } else {
                let place = match self.block(&geometry, piece.block)? {
                    Block::Full(place) => place,
                    _ => self.full(&mut lock(&self.space), &geometry, piece.block)?,
                };
                self.file.write_at(place + piece.from, head)?;
            }
            buf = rest;
        }
        if self.bits.is_full() {
            self.flush_locked(&mut lock(&self.space))?;
        }
        Ok(())
    }

    /// Place of a block that is fully present, new if need be. Not for overlays.
    fn full(&self, space: &mut Space, geometry: &Geometry, block: u64) -> Result<u64> {
        match self.block(geometry, block)? {
            Block::Full(place) => Ok(place),
            Block::Partial(_) => Err(Error::corrupt(
                "a block is partially present, but there is no disk below",
            )),
            _ => self.fill(space, geometry, block),
        }
    }

    /// Writes a part of an overlay's block.
    fn write_over(
        &self,
        space: &mut Space,
        geometry: &Geometry,
        piece: Piece,
        bytes: &[u8],
        below: &dyn Below,
    ) -> Result<()> {
        let whole = self.is_whole(geometry, piece);
        let place = match self.block(geometry, piece.block)? {
            Block::Full(place) => place,
            Block::NotPresent if !whole => {
                let place = self.begin_partial(space, geometry, piece.block)?;
                return self.write_sectors(geometry, piece, place, bytes, below);
            }
            Block::Partial(place) => return self.write_sectors(geometry, piece, place, bytes, below),
            _ => self.fill(space, geometry, piece.block)?,
        };
        self.file.write_at(place + piece.from, bytes)
    }

    /// Whether a piece is all of its block that the guest has.
    fn is_whole(&self, geometry: &Geometry, piece: Piece) -> bool {
        let guest = geometry
            .size
            .saturating_sub(piece.block * geometry.block)
            .min(geometry.block);
        piece.from == 0 && piece.len >= guest
    }

    /// Writes to a partially present block. Sectors are all or nothing: what is missing of the first and the last comes from below.
    fn write_sectors(
        &self,
        geometry: &Geometry,
        piece: Piece,
        place: u64,
        bytes: &[u8],
        below: &dyn Below,
    ) -> Result<()> {
        let sector = geometry.sector;
        let (start, end) = (
            piece.from / sector * sector,
            (piece.from + piece.len).next_multiple_of(sector),
        );
        if start == piece.from && end == piece.from + piece.len {
            self.file.write_at(place + start, bytes)?;
        } else {
            let fit = |n: u64| usize::try_from(n).map_err(|_| Error::invalid("a write past the address space"));
            let mut whole = vec![0; fit(end - start)?];
            let guest = piece.block * geometry.block;
            for at in [start, end - sector] {
                let edge = Piece {
                    from: at,
                    len: sector,
                    ..piece
                };
                let (from, to) = (fit(at - start)?, fit(at - start + sector)?);
                let Some(part) = whole.get_mut(from..to) else { continue };
                if self.run(geometry, edge)?.0 {
                    self.file.read_at(place + at, part)?;
                } else {
                    below.read(guest + at, part)?;
                }
            }
            let lead = fit(piece.from - start)?;
            if let Some(part) = whole.get_mut(lead..lead + bytes.len()) {
                part.copy_from_slice(bytes);
            }
            self.file.write_at(place + start, &whole)?;
        }
        self.mark(geometry, piece.block, start, end)
    }

    /// Marks sectors of a partially present block as present.
    fn mark(&self, geometry: &Geometry, block: u64, start: u64, end: u64) -> Result<()> {
        let (Bitmap::Present(map), first) = self.bitmap(geometry, block)? else {
            return Err(Error::corrupt(format!("the bitmap of block {block} is not there")));
        };
        let sectors = first + start / geometry.sector..first + end / geometry.sector;
        self.bits.set(self.file.as_ref(), map, sectors, true)
    }

    /// Zeroes guest bytes: by nothing at all where they are zeroes already.
    pub(super) fn zero_blocks(&self, offset: u64, len: u64, unmap: bool, below: &dyn Below) -> Result<()> {
        let geometry = self.geometry();
        for piece in pieces(geometry, offset, len) {
            if geometry.overlay {
                self.zero_over(&mut lock(&self.space), &geometry, piece, unmap, below)?;
            } else if let Block::Full(place) = self.block(&geometry, piece.block)? {
                self.file.write_zeroes(place + piece.from, piece.len, unmap)?;
            }
        }
        if self.bits.is_full() {
            self.flush_locked(&mut lock(&self.space))?;
        }
        Ok(())
    }

    fn zero_over(
        &self,
        space: &mut Space,
        geometry: &Geometry,
        piece: Piece,
        unmap: bool,
        below: &dyn Below,
    ) -> Result<()> {
        let guest = piece.block * geometry.block + piece.from;
        match self.block(geometry, piece.block)? {
            Block::Full(place) => self.file.write_zeroes(place + piece.from, piece.len, unmap),
            Block::Zero | Block::Undefined | Block::Unmapped => Ok(()),
            Block::NotPresent if below.is_zero(guest, piece.len)? => Ok(()),
            Block::NotPresent if self.is_whole(geometry, piece) => {
                self.put_block(space, geometry, piece.block, Block::Zero)
            }
            Block::NotPresent => {
                self.begin_partial(space, geometry, piece.block)?;
                self.zero_sectors(geometry, piece, unmap, below)
            }
            Block::Partial(place) if self.is_whole(geometry, piece) => {
                self.file.write_zeroes(place, geometry.block, unmap)?;
                self.put_block(space, geometry, piece.block, Block::Full(place))
            }
            Block::Partial(_) => self.zero_sectors(geometry, piece, unmap, below),
        }
    }

    /// Zeroes a part of a partially present block.
    fn zero_sectors(&self, geometry: &Geometry, piece: Piece, unmap: bool, below: &dyn Below) -> Result<()> {
        let Some(place) = self.block(geometry, piece.block)?.place() else {
            return Err(Error::invalid("the block has no place"));
        };
        let end = piece.from + piece.len;
        let (first, last) = (
            piece.from.next_multiple_of(geometry.sector),
            end / geometry.sector * geometry.sector,
        );
        let edge = |mut from: u64, to: u64| {
            while from < to {
                let len = (to - from).min(SOME);
                let part = Piece { from, len, ..piece };
                let zeroes = vec![0; usize::try_from(len).unwrap_or(0)];
                self.write_sectors(geometry, part, place, &zeroes, below)?;
                from += len;
            }
            Ok::<_, Error>(())
        };
        if first >= last {
            return edge(piece.from, end);
        }
        edge(piece.from, first)?;
        edge(last, end)?;
        self.file.write_zeroes(place + first, last - first, unmap)?;
        self.mark(geometry, piece.block, first, last)
    }

    /// Gives host space back; the ranges stay in this layer.
    pub(super) fn discard_blocks(&self, mut offset: u64, mut len: u64) -> Result<()> {
        while len > 0 {
            let extent = self.block_extent(offset, len)?;
            if let ExtentKind::Data { at: Some(place), .. } = extent.kind {
                self.file.discard(place.offset, extent.len)?;
            }
            offset += extent.len;
            len -= extent.len;
        }
        Ok(())
    }

    /// Gives a run of blocks places in guest order; returns where its first byte goes.
    pub(super) fn place_blocks(&self, offset: u64, len: u64) -> Result<u64> {
        let geometry = self.geometry();
        let first = first_piece(geometry, offset, len);
        let mut missing = false;
        for piece in pieces(geometry, offset, len) {
            missing |= self.block(&geometry, piece.block)?.place().is_none();
        }
        if missing {
            let mut space = lock(&self.space);
            for piece in pieces(geometry, offset, len) {
                self.full(&mut space, &geometry, piece.block)?;
            }
        }
        match self.block(&geometry, first.block)? {
            Block::Full(place) => Ok(place + first.from),
            _ => Err(Error::invalid("an empty run has no place")),
        }
    }

    /// Writes the bytes of placed blocks.
    pub(super) fn store_blocks(&self, mut offset: u64, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let extent = self.block_extent(offset, bytes.len() as u64)?;
            let ExtentKind::Data { at: Some(place), .. } = extent.kind else {
                return Err(Error::invalid("the block was not placed before it is stored"));
            };
            let (head, rest) = bytes.split_at(usize::try_from(extent.len).unwrap_or(bytes.len()).min(bytes.len()));
            self.file.write_at(place.offset, head)?;
            offset += head.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    /// Makes everything stable, in the order said above.
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
