//! Section 2.5 "BAT": where blocks are, and in which state.

use super::MIB;
use crate::{Error, Result};

/// Bits of an entry that hold the place in MiB.
const PLACE: u64 = !(MIB - 1);
/// Bits that hold the state.
const STATE: u64 = 7;

/// An entry of a payload block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    /// Never written: what is below, or zeroes (state 0).
    NotPresent,
    /// Contents are not defined; read as zeroes (state 1).
    Undefined,
    /// Zeroes (state 2).
    Zero,
    /// The guest gave it back; reads as zeroes (state 3).
    Unmapped,
    /// All of it is here (state 6).
    Full(u64),
    /// The sector bitmap says what is here (state 7).
    Partial(u64),
}

impl Block {
    /// Decodes an entry.
    ///
    /// # Errors
    /// `Corrupt` for reserved states and bits, and for a block over the headers.
    pub fn decode(entry: u64) -> Result<Self> {
        let place = entry & PLACE;
        let state = entry & STATE;
        if entry & !PLACE & !STATE != 0 {
            return Err(Error::corrupt(format!("reserved bits are set in the entry {entry:#x}")));
        }
        match state {
            0 => Ok(Self::NotPresent),
            1 => Ok(Self::Undefined),
            2 => Ok(Self::Zero),
            3 => Ok(Self::Unmapped),
            6 | 7 if place < MIB => Err(Error::corrupt(format!(
                "the entry {entry:#x} places a block over the headers"
            ))),
            6 => Ok(Self::Full(place)),
            7 => Ok(Self::Partial(place)),
            _ => Err(Error::corrupt(format!(
                "unknown block state {state} in the entry {entry:#x}"
            ))),
        }
    }
    /// Encodes an entry; the place is whole MiB.
    pub fn encode(self) -> u64 {
        match self {
            Self::NotPresent => 0,
            Self::Undefined => 1,
            Self::Zero => 2,
            Self::Unmapped => 3,
            Self::Full(place) => place | 6,
            Self::Partial(place) => place | 7,
        }
    }
    /// Where it is stored.
    pub fn place(self) -> Option<u64> {
        match self {
            Self::Full(place) | Self::Partial(place) => Some(place),
            _ => None,
        }
    }
}

/// An entry of a block of sector bitmaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bitmap {
    /// There is none (state 0).
    NotPresent,
    /// 1 MiB of bits, least significant first (state 6).
    Present(u64),
}

impl Bitmap {
    /// Decodes an entry.
    ///
    /// # Errors
    /// `Corrupt`, as for a payload block.
    pub fn decode(entry: u64) -> Result<Self> {
        match Block::decode(entry)? {
            Block::NotPresent => Ok(Self::NotPresent),
            Block::Full(place) => Ok(Self::Present(place)),
            _ => Err(Error::corrupt(format!(
                "the entry {entry:#x} is none of a sector bitmap"
            ))),
        }
    }
    /// Encodes an entry.
    pub fn encode(self) -> u64 {
        match self {
            Self::NotPresent => 0,
            Self::Present(place) => place | 6,
        }
    }
}

/// Numbers that follow from block size, sector size and virtual size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Guest bytes of a block.
    pub block: u64,
    /// Guest bytes of a sector.
    pub sector: u64,
    /// Guest bytes of the disk.
    pub size: u64,
    /// Whether there is a disk below.
    pub overlay: bool,
}

impl Geometry {
    /// Payload blocks that one block of sector bitmaps serves: 2^23 sectors.
    pub fn chunk(&self) -> u64 {
        (self.sector << 23) / self.block
    }
    /// Payload blocks of the disk.
    pub fn blocks(&self) -> u64 {
        self.size.div_ceil(self.block)
    }
    /// Entries of the table: after each chunk of payload blocks one of its bitmap. Without a disk below the last one may be left out.
    pub fn entries(&self) -> u64 {
        let (blocks, chunk) = (self.blocks(), self.chunk());
        if self.overlay {
            blocks.div_ceil(chunk) * (chunk + 1)
        } else {
            blocks + blocks.saturating_sub(1) / chunk
        }
    }
    /// Index of a payload block's entry.
    pub fn index(&self, block: u64) -> u64 {
        block + block / self.chunk()
    }
    /// Index of the entry of the bitmap that serves a payload block.
    pub fn bitmap_index(&self, block: u64) -> u64 {
        let chunk = self.chunk();
        (block / chunk) * (chunk + 1) + chunk
    }
    /// Whether an index is that of a bitmap's entry.
    pub fn is_bitmap(&self, index: u64) -> bool {
        index % (self.chunk() + 1) == self.chunk()
    }
    /// Payload block of an index that is not a bitmap's.
    pub fn block_of(&self, index: u64) -> u64 {
        index - index / (self.chunk() + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of qemu-img 10.0.2 and Hyper-V: a differencing disk of 4 MiB has its bitmap's entry at 2048; 64 TiB in blocks of 64 MiB
    /// need 9 MiB of table.
    #[test]
    fn entries_lie_where_others_put_them() {
        let small = Geometry {
            block: 2 << 20,
            sector: 512,
            size: 4 << 20,
            overlay: true,
        };
        assert_eq!(
            (small.chunk(), small.bitmap_index(0), small.entries()),
            (2048, 2048, 2049)
        );
        let large = Geometry {
            block: 64 << 20,
            size: 64 << 40,
            overlay: false,
            ..small
        };
        assert_eq!((large.entries() * 8).div_ceil(MIB), 9);
        for block in [0, 1, 63, 64, 1000] {
            let index = large.index(block);
            assert!(!large.is_bitmap(index) && large.block_of(index) == block, "{block}");
            assert!(large.is_bitmap(large.bitmap_index(block)));
        }
    }

    #[test]
    fn entries_come_back() {
        for block in [
            Block::NotPresent,
            Block::Undefined,
            Block::Zero,
            Block::Unmapped,
            Block::Full(5 * MIB),
            Block::Partial(MIB),
        ] {
            assert_eq!(Block::decode(block.encode()).unwrap(), block);
        }
        for entry in [4, 5, 6, 7, 8 | 6 | MIB, 1 << 19] {
            assert!(Block::decode(entry).is_err(), "{entry:#x}");
        }
    }
}
