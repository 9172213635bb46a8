//! Writing.
//!
//! Order of writes. Before the first change the header gets new ids. New blocks are past the end of the file, which grows first, so that
//! they read as zeroes whatever a crash left. Table and bitmaps change in memory only, until a flush: data are made stable; then the changed
//! pages go through the log, bitmaps before the table, and of the table the later pages first, because the entry of a bitmap is behind
//! the entries of the blocks it serves. After a flush the log is empty.

use std::sync::atomic::Ordering;

use super::blocks::{Piece, first_piece, pieces};
use super::image::{Space, VhdxImage};
use super::journal::{derived, id_of_commit};
use super::layout::{Bitmap, Block, Geometry, MIB, PAGE};
use crate::formats::common::{exclusive, lock};
use crate::image::{Below, ExtentKind};
use crate::{Error, Result};

/// Table entries of a page.
pub(super) const ENTRIES: u64 = PAGE / 8;
/// The file changed: its metadata, or where data are.
pub(super) const FILE_CHANGED: u8 = 1;
/// What the guest sees changed as well. Disks above know this one by the id that says so.
pub(super) const DATA_CHANGED: u8 = 2;

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
    pub(super) fn put(&self, space: &mut Space, index: u64, entry: u64) -> Result<()> {
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
    pub(super) fn begin_partial(&self, space: &mut Space, geometry: &Geometry, block: u64) -> Result<u64> {
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
    pub(super) fn is_whole(&self, geometry: &Geometry, piece: Piece) -> bool {
        let guest = geometry
            .size
            .saturating_sub(piece.block * geometry.block)
            .min(geometry.block);
        piece.from == 0 && piece.len >= guest
    }

    /// Writes to a partially present block. Sectors are all or nothing: what is missing of the first and the last comes from below.
    pub(super) fn write_sectors(
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
    pub(super) fn mark(&self, geometry: &Geometry, block: u64, start: u64, end: u64) -> Result<()> {
        let (Bitmap::Present(map), first) = self.bitmap(geometry, block)? else {
            return Err(Error::corrupt(format!("the bitmap of block {block} is not there")));
        };
        let sectors = first + start / geometry.sector..first + end / geometry.sector;
        self.bits.set(self.file.as_ref(), map, sectors, true)
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
}
