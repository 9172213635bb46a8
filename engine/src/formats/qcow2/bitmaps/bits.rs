//! The bits of one dirty bitmap, in pieces of one host cluster as they are stored.

use crate::Result;

/// One host cluster of bits. The lowest bit of the first byte comes first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) enum Piece {
    /// All clean.
    Zeroes,
    /// All dirty.
    Ones,
    /// Some dirty.
    Mixed(Vec<u8>),
}

/// All bits of a bitmap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Bits {
    pub pieces: Vec<Piece>,
    /// Which pieces differ from the file.
    pub changed: Vec<bool>,
    piece_len: usize,
    granularity_bits: u8,
    virtual_size: u64,
}

impl Bits {
    /// All clean.
    pub fn new(virtual_size: u64, granularity_bits: u8, piece_len: usize) -> Self {
        let mut bits = Self {
            pieces: Vec::new(),
            changed: Vec::new(),
            piece_len,
            granularity_bits,
            virtual_size: 0,
        };
        bits.resize(virtual_size);
        bits
    }
    /// As stored: `pieces` of a table.
    pub fn stored(pieces: Vec<Piece>, virtual_size: u64, granularity_bits: u8, piece_len: usize) -> Self {
        Self {
            changed: vec![false; pieces.len()],
            pieces,
            piece_len,
            granularity_bits,
            virtual_size,
        }
    }
    /// Pieces that so many guest bytes need.
    pub fn pieces_for(virtual_size: u64, granularity_bits: u8, piece_len: usize) -> u64 {
        virtual_size
            .div_ceil(1 << granularity_bits)
            .div_ceil(piece_len as u64 * 8)
    }

    /// Follows a change of the virtual size: new bits are clean, those past the end go.
    pub fn resize(&mut self, virtual_size: u64) {
        let count = Self::pieces_for(virtual_size, self.granularity_bits, self.piece_len) as usize;
        let old_bits = self.bit_count();
        let shrunk = virtual_size < self.virtual_size;
        self.virtual_size = virtual_size;
        self.pieces.resize(count, Piece::Zeroes);
        self.changed.resize(count, true);
        if shrunk {
            let end = (count as u64 * self.per_piece()).min(old_bits);
            self.set_bits(self.bit_count(), end, false);
        } else if old_bits < self.bit_count() {
            // A whole piece of ones may have stood for fewer bits than it has.
            let end = old_bits.next_multiple_of(self.per_piece()).min(self.bit_count());
            self.set_bits(old_bits, end, false);
        }
    }

    fn per_piece(&self) -> u64 {
        self.piece_len as u64 * 8
    }
    fn bit_count(&self) -> u64 {
        self.virtual_size.div_ceil(1 << self.granularity_bits)
    }

    /// Marks guest bytes dirty.
    pub fn mark(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len).min(self.virtual_size);
        if offset < end {
            self.set_bits(
                offset >> self.granularity_bits,
                end.div_ceil(1 << self.granularity_bits),
                true,
            );
        }
    }
    /// Marks everything clean.
    pub fn clear(&mut self) {
        self.pieces.fill(Piece::Zeroes);
        self.changed.fill(true);
    }

    fn set_bits(&mut self, from: u64, to: u64, dirty: bool) {
        let per = self.per_piece();
        let mut at = from;
        while at < to {
            let index = (at / per) as usize;
            let end = to.min((at / per + 1) * per);
            let (Some(piece), Some(changed)) = (self.pieces.get_mut(index), self.changed.get_mut(index)) else {
                return;
            };
            let whole = if dirty { Piece::Ones } else { Piece::Zeroes };
            if *piece != whole {
                *changed = true;
                if end - at == per {
                    *piece = whole;
                } else {
                    set_some(piece, self.piece_len, at % per, end - at, dirty);
                }
            }
            at = end;
        }
    }

    /// Gives the dirty guest ranges (offset, length) in order, merged.
    pub fn each_range(&self, each: &mut dyn FnMut(u64, u64) -> Result<()>) -> Result<()> {
        let mut ranges = Ranges::new(self.virtual_size, self.granularity_bits, each);
        for (n, piece) in (0..).zip(&self.pieces) {
            ranges.piece(n * self.per_piece(), self.per_piece(), piece)?;
        }
        ranges.finish()
    }
}

/// Merges dirty bits to ranges of the guest, which are not kept: there may be as many as bits.
pub(in super::super) struct Ranges<'a> {
    virtual_size: u64,
    granularity_bits: u8,
    /// Offset and length of the last one, which may go on.
    last: Option<(u64, u64)>,
    each: &'a mut dyn FnMut(u64, u64) -> Result<()>,
}

impl<'a> Ranges<'a> {
    pub fn new(virtual_size: u64, granularity_bits: u8, each: &'a mut dyn FnMut(u64, u64) -> Result<()>) -> Self {
        Self {
            virtual_size,
            granularity_bits,
            last: None,
            each,
        }
    }

    /// The next piece: `count` bits from bit `first` on.
    pub fn piece(&mut self, first: u64, count: u64, piece: &Piece) -> Result<()> {
        match piece {
            Piece::Zeroes => Ok(()),
            Piece::Ones => self.dirty(first, count),
            Piece::Mixed(bytes) => {
                for (at, byte) in (first..).step_by(8).zip(bytes).filter(|(_, byte)| **byte != 0) {
                    match byte {
                        0xff => self.dirty(at, 8)?,
                        _ => (0..8)
                            .filter(|bit| byte >> bit & 1 == 1)
                            .try_for_each(|bit| self.dirty(at + bit, 1))?,
                    }
                }
                Ok(())
            }
        }
    }

    fn dirty(&mut self, first: u64, count: u64) -> Result<()> {
        let offset = |bit: u64| bit.saturating_mul(1 << self.granularity_bits).min(self.virtual_size);
        let (start, end) = (offset(first), offset(first + count));
        match &mut self.last {
            _ if start >= end => Ok(()),
            Some((at, len)) if *at + *len == start => {
                *len += end - start;
                Ok(())
            }
            last => match last.replace((start, end - start)) {
                None => Ok(()),
                Some((at, len)) => (self.each)(at, len),
            },
        }
    }

    /// Gives the last one.
    pub fn finish(self) -> Result<()> {
        self.last.map_or(Ok(()), |(at, len)| (self.each)(at, len))
    }
}

fn set_some(piece: &mut Piece, len: usize, from: u64, count: u64, dirty: bool) {
    if !matches!(piece, Piece::Mixed(_)) {
        *piece = Piece::Mixed(vec![if *piece == Piece::Ones { 0xff } else { 0 }; len]);
    }
    let Piece::Mixed(bytes) = piece else { return };
    let mut at = from;
    let end = from + count;
    while at < end {
        let Some(byte) = bytes.get_mut((at / 8) as usize) else {
            return;
        };
        if at.is_multiple_of(8) && end - at >= 8 {
            *byte = if dirty { 0xff } else { 0 };
            at += 8;
            continue;
        }
        let bit = 1u8 << (at % 8);
        *byte = if dirty { *byte | bit } else { *byte & !bit };
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(bits: &Bits) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        let mut each = |offset, len| {
            found.push((offset, len));
            Ok(())
        };
        bits.each_range(&mut each).unwrap();
        found
    }

    #[test]
    fn marks_are_merged_and_cut_at_the_end() {
        let mut bits = Bits::new(100_000, 12, 512);
        bits.mark(4095, 2);
        bits.mark(8192, 1);
        bits.mark(99_999, 50);
        assert_eq!(ranges(&bits), [(0, 12_288), (98_304, 1696)]);
        bits.resize(50_000);
        assert_eq!(ranges(&bits), [(0, 12_288)]);
        bits.resize(200_000);
        assert_eq!(ranges(&bits), [(0, 12_288)]);
    }

    #[test]
    fn growing_after_all_ones_adds_clean_bits() {
        let mut bits = Bits::stored(vec![Piece::Ones], 1 << 20, 16, 512);
        bits.resize(2 << 20);
        assert_eq!(ranges(&bits), [(0, 1 << 20)]);
    }
}
