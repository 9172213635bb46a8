//! The bits of one dirty bitmap, in pieces of one host cluster as they are stored.

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

    /// Dirty guest ranges (offset, length) in order, merged.
    pub fn ranges(&self) -> Vec<(u64, u64)> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let unit = 1u64 << self.granularity_bits;
        let mut add = |first: u64, count: u64| {
            let start = first * unit;
            let end = ((first + count) * unit).min(self.virtual_size);
            match ranges.last_mut() {
                _ if start >= end => {}
                Some(last) if last.0 + last.1 == start => last.1 += end - start,
                _ => ranges.push((start, end - start)),
            }
        };
        for (n, piece) in self.pieces.iter().enumerate() {
            let base = n as u64 * self.per_piece();
            match piece {
                Piece::Zeroes => {}
                Piece::Ones => add(base, self.per_piece()),
                Piece::Mixed(bytes) => {
                    for (i, byte) in bytes.iter().enumerate().filter(|(_, b)| **b != 0) {
                        (0..8)
                            .filter(|b| byte >> b & 1 == 1)
                            .for_each(|b| add(base + i as u64 * 8 + b, 1));
                    }
                }
            }
        }
        ranges
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

    #[test]
    fn marks_are_merged_and_cut_at_the_end() {
        let mut bits = Bits::new(100_000, 12, 512);
        bits.mark(4095, 2);
        bits.mark(8192, 1);
        bits.mark(99_999, 50);
        assert_eq!(bits.ranges(), [(0, 12_288), (98_304, 1696)]);
        bits.resize(50_000);
        assert_eq!(bits.ranges(), [(0, 12_288)]);
        bits.resize(200_000);
        assert_eq!(bits.ranges(), [(0, 12_288)]);
    }

    #[test]
    fn growing_after_all_ones_adds_clean_bits() {
        let mut bits = Bits::stored(vec![Piece::Ones], 1 << 20, 16, 512);
        bits.resize(2 << 20);
        assert_eq!(bits.ranges(), [(0, 1 << 20)]);
    }
}
