//! What the blocks of a disk are, and reading them.

use super::image::VhdxImage;
use super::layout::{Bitmap, Block, Geometry};
use crate::formats::common::shared;
use crate::image::{Extent, ExtentKind, HostPlace};
use crate::{Error, Result};

/// The part of a guest range that lies in one block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    /// Number of the block.
    pub block: u64,
    /// First byte in it.
    pub from: u64,
    /// Bytes.
    pub len: u64,
}

/// Cuts a range at the borders of blocks.
pub(super) fn pieces(geometry: Geometry, mut offset: u64, mut len: u64) -> impl Iterator<Item = Piece> {
    std::iter::from_fn(move || {
        let piece = first_piece(geometry, offset, len);
        offset += piece.len;
        len -= piece.len;
        (piece.len > 0).then_some(piece)
    })
}

/// The first part of a range.
pub(super) fn first_piece(geometry: Geometry, offset: u64, len: u64) -> Piece {
    let from = offset % geometry.block;
    Piece {
        block: offset / geometry.block,
        from,
        len: len.min(geometry.block - from),
    }
}

impl VhdxImage {
    fn entry(&self, index: u64) -> u64 {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        shared(&self.bat).get(index).copied().unwrap_or(0)
    }
    /// State and place of a block.
    pub(super) fn block(&self, geometry: &Geometry, block: u64) -> Result<Block> {
        Block::decode(self.entry(geometry.index(block))).map_err(|e| e.at(self.file.name()))
    }
    /// Place of the bitmap that serves a block, and the number of the block's first bit in it.
    pub(super) fn bitmap(&self, geometry: &Geometry, block: u64) -> Result<(Bitmap, u64)> {
        let bitmap = Bitmap::decode(self.entry(geometry.bitmap_index(block)))?;
        Ok((bitmap, block % geometry.chunk() * (geometry.block / geometry.sector)))
    }

    /// Whether the sector at byte `from` of a partially present block is here, and bytes from there on, at most `len`, of which the same
    /// is true.
    pub(super) fn run(&self, geometry: &Geometry, piece: Piece) -> Result<(bool, u64)> {
        let (Bitmap::Present(place), first) = self.bitmap(geometry, piece.block)? else {
            return Err(
                Error::corrupt(format!("the bitmap of block {} is not there", piece.block)).at(self.file.name()),
            );
        };
        let sector = geometry.sector;
        let (start, end) = (piece.from / sector, (piece.from + piece.len).div_ceil(sector));
        let (present, stop) = self.bits.run(self.file.as_ref(), place, first + start, first + end)?;
        Ok((present, ((stop - first) * sector - piece.from).min(piece.len)))
    }

    /// What a range begins with; a range of blocks of one kind, contiguous in the file for data.
    pub(super) fn block_extent(&self, offset: u64, len: u64) -> Result<Extent> {
        let geometry = self.geometry();
        let piece = first_piece(geometry, offset, len);
        let data = |place: u64, len: u64| Extent {
            len,
            kind: ExtentKind::Data {
                at: Some(HostPlace {
                    file: 0,
                    offset: place + piece.from,
                }),
                direct: true,
            },
        };
        match self.block(&geometry, piece.block)? {
            Block::Full(place) => Ok(data(
                place,
                self.extend(&geometry, piece, len, |ahead, entry| {
                    entry == Block::Full(place + ahead)
                }),
            )),
            Block::Partial(place) => match self.run(&geometry, piece)? {
                (true, len) => Ok(data(place, len)),
                (false, len) => Ok(Extent {
                    len,
                    kind: ExtentKind::Unallocated,
                }),
            },
            Block::NotPresent if geometry.overlay => Ok(Extent {
                len: self.extend(&geometry, piece, len, |_, entry| entry == Block::NotPresent),
                kind: ExtentKind::Unallocated,
            }),
            _ => Ok(Extent {
                len: self.extend(&geometry, piece, len, |_, entry| {
                    entry.place().is_none() && !(geometry.overlay && entry == Block::NotPresent)
                }),
                kind: ExtentKind::Zero { at: None },
            }),
        }
    }

    /// Bytes from the piece on, at most `len`, while `same` is true of the following blocks; it is given the distance from the first block.
    fn extend(&self, geometry: &Geometry, piece: Piece, len: u64, same: impl Fn(u64, Block) -> bool) -> u64 {
        let bat = shared(&self.bat);
        let (mut total, mut block) = (piece.len, piece.block + 1);
        while total < len {
            let index = usize::try_from(geometry.index(block)).unwrap_or(usize::MAX);
            let ahead = (block - piece.block) * geometry.block;
            let entry = bat.get(index).copied().unwrap_or(0);
            if !Block::decode(entry).is_ok_and(|entry| same(ahead, entry)) {
                break;
            }
            total = (total + geometry.block).min(len);
            block += 1;
        }
        total
    }

    /// Reads what this layer has; the rest as zeroes.
    pub(super) fn read_blocks(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<()> {
        while !buf.is_empty() {
            let extent = self.block_extent(offset, buf.len() as u64)?;
            let len = usize::try_from(extent.len).unwrap_or(usize::MAX).min(buf.len());
            let (head, rest) = buf.split_at_mut(len);
            match extent.kind {
                ExtentKind::Data { at: Some(place), .. } => self.file.read_at(place.offset, head)?,
                _ => head.fill(0),
            }
            offset += len as u64;
            buf = rest;
        }
        Ok(())
    }
}
