//! Zeroing and giving host space back.

use super::blocks::{Piece, pieces};
use super::image::{Space, VhdxImage};
use super::layout::{Block, Geometry, MIB};
use crate::formats::common::lock;
use crate::image::{Below, ExtentKind};
use crate::{Error, Result};

/// Zeroes that are written as bytes at once, where sectors come partly from below.
const SOME: u64 = MIB;

impl VhdxImage {
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
}
