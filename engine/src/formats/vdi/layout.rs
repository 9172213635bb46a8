//! VDI on disk: one header sector and the block map, little-endian. Pure bytes.
//!
//! Source: VirtualBox's documentation of the VDI format, and QEMU 10.0.2's limits.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Error, Result};

/// `signature`, at offset 64.
pub(super) const SIGNATURE: u32 = 0xbeda_107f;
/// `version` 1.1: the only one that VirtualBox wrote in public releases.
pub(super) const VERSION_1_1: u32 = 0x0001_0001;
/// Unit of the header's offsets.
pub(super) const SECTOR: u64 = 512;
/// The block size that every reader takes.
pub(super) const DEFAULT_BLOCK: u64 = 1 << 20;
/// Blocks in an image at most, as QEMU has it: the map and the offset behind it fit in 31 bits.
pub(super) const MAX_BLOCKS: u64 = 0x1fff_ff80;
/// Blocks that growing can move behind the others: a table of 2 GiB takes the place of that many blocks of 4 KiB, twice.
pub(super) const MOVED_AT_MOST: u64 = 1 << 20;

const FREE: u32 = u32::MAX;
const ZERO: u32 = u32::MAX - 1;

/// The first sector of the file.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct RawHeader {
    /// Text for people, such as `<<< Oracle VM VirtualBox Disk Image >>>`.
    pub text: [u8; 64],
    /// [`SIGNATURE`].
    pub signature: U32,
    /// Major version in the upper half, minor in the lower.
    pub version: U32,
    /// Bytes of the header from this field on: 384, or 400 with the logical geometry.
    pub header_size: U32,
    /// 1 dynamic, 2 static, 3 undo, 4 differencing.
    pub image_type: U32,
    /// VirtualBox's flags; nothing a reader must know.
    pub image_flags: U32,
    /// A comment.
    pub description: [u8; 256],
    /// First byte of the block map; a multiple of 512.
    pub offset_map: U32,
    /// First byte of block 0; a multiple of 512.
    pub offset_data: U32,
    /// Legacy geometry, unused.
    pub cylinders: U32,
    /// Legacy geometry, unused.
    pub heads: U32,
    /// Legacy geometry, unused.
    pub sectors: U32,
    /// 512.
    pub sector_size: U32,
    /// Unused.
    pub unused: U32,
    /// Virtual size in bytes. QEMU rounds it up to sectors.
    pub disk_size: U64,
    /// Guest bytes of a block. QEMU takes 1 MiB alone; VirtualBox any power of two.
    pub block_size: U32,
    /// Bytes in the file before the guest bytes of each block. QEMU takes 0 alone.
    pub block_extra: U32,
    /// Entries of the map.
    pub blocks_in_image: U32,
    /// Blocks that the file holds.
    pub blocks_allocated: U32,
    /// Identity of this image.
    pub uuid_image: [u8; 16],
    /// Changes whenever VirtualBox changes the image.
    pub uuid_modify: [u8; 16],
    /// `uuid_image` of the layer below; zero without one.
    pub uuid_link: [u8; 16],
    /// `uuid_modify` that the layer below had when this one was made.
    pub uuid_parent_modify: [u8; 16],
    /// Logical geometry, present when `header_size` covers it.
    pub logical_geometry: [U32; 4],
    /// Zero.
    pub reserved: [u8; 40],
}

const _: () = assert!(size_of::<RawHeader>() == 512);

/// What kind of image it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Grows as blocks are written.
    Dynamic,
    /// Every block has its place.
    Static,
    /// A layer over another image: `undo` for those that VirtualBox throws away on demand.
    Overlay {
        /// Whether it says undo rather than differencing.
        undo: bool,
    },
}

/// A header whose every number was checked against the others, not yet against the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub kind: Kind,
    pub map_offset: u64,
    pub data_offset: u64,
    /// Virtual size, a multiple of 512.
    pub size: u64,
    /// A power of two.
    pub block: u64,
    /// Bytes before each block's guest bytes.
    pub extra: u64,
    pub blocks: u64,
    pub allocated: u64,
    /// What is not interpreted, kept for rewriting.
    pub raw: RawHeader,
}

impl RawHeader {
    /// Checks everything that the header alone can tell.
    ///
    /// # Errors
    /// `NotThisFormat` for another signature, `Unsupported` for another version, `Corrupt` that names the field.
    pub fn checked(&self) -> Result<Header> {
        if self.signature.get() != SIGNATURE {
            return Err(Error::not_this_format(format!(
                "expected signature {SIGNATURE:#x}, found {:#x}",
                self.signature
            )));
        }
        if self.version.get() != VERSION_1_1 {
            let (major, minor) = (self.version.get() >> 16, self.version.get() & 0xffff);
            return Err(Error::unsupported(format!("VDI version {major}.{minor}; known is 1.1")).at("header.version"));
        }
        let block = checked_block_size(self.block_size.get())?;
        let extra = u64::from(self.block_extra.get());
        if extra % SECTOR != 0 || extra > block {
            return Err(bad("block_extra", extra, "whole sectors, at most the block size"));
        }
        let size = self.disk_size.get().checked_next_multiple_of(SECTOR);
        let blocks = u64::from(self.blocks_in_image.get());
        let Some(size) = size.filter(|s| blocks <= MAX_BLOCKS && s.div_ceil(block) <= blocks) else {
            let what = format!(
                "{blocks} blocks of {block} bytes cannot hold a disk of {} bytes",
                self.disk_size
            );
            return Err(Error::corrupt(what).at("header.blocks_in_image"));
        };
        let header = Header {
            kind: self.kind()?,
            map_offset: checked_offset("offset_map", self.offset_map.get())?,
            data_offset: checked_offset("offset_data", self.offset_data.get())?,
            size,
            block,
            extra,
            blocks,
            allocated: u64::from(self.blocks_allocated.get()),
            raw: *self,
        };
        header.checked_order()
    }

    fn kind(&self) -> Result<Kind> {
        let overlay = self.uuid_link != [0; 16] || self.uuid_parent_modify != [0; 16];
        match self.image_type.get() {
            1 | 2 if overlay => {
                Err(Error::corrupt("a dynamic or static image names a layer below").at("header.uuid_link"))
            }
            1 => Ok(Kind::Dynamic),
            2 => Ok(Kind::Static),
            3 | 4 if !overlay => {
                Err(Error::corrupt("a differencing image names no layer below").at("header.uuid_link"))
            }
            3 => Ok(Kind::Overlay { undo: true }),
            4 => Ok(Kind::Overlay { undo: false }),
            other => Err(bad("image_type", u64::from(other), "1 to 4")),
        }
    }
}

impl Header {
    fn checked_order(self) -> Result<Self> {
        if self.raw.sector_size.get() != 512 {
            return Err(bad("sector_size", u64::from(self.raw.sector_size.get()), "512"));
        }
        if self.allocated > self.blocks + MOVED_AT_MOST {
            return Err(self.counts_too_many());
        }
        let map_end = self.map_offset + self.blocks * 4;
        if self.data_offset < map_end {
            return Err(bad("offset_data", self.data_offset, "behind the block map"));
        }
        Ok(self)
    }

    /// The error for a count of blocks that neither the image nor the file can have.
    pub fn counts_too_many(&self) -> Error {
        bad("blocks_allocated", self.allocated, "at most blocks_in_image")
    }

    /// Bytes from one block to the next.
    pub fn stride(&self) -> u64 {
        self.block + self.extra
    }
    /// Where the guest bytes of the block with this index in the file start. Indexes are below 2^32 and strides below 2^29: no overflow.
    pub fn place(&self, index: u64) -> u64 {
        self.data_offset + index * self.stride() + self.extra
    }
    /// Where a file with this many blocks ends.
    pub fn end(&self, blocks: u64) -> u64 {
        self.data_offset + blocks * self.stride()
    }
    /// The sector to write, with the fields that change.
    pub fn to_raw(self) -> RawHeader {
        let mut raw = self.raw;
        let low = |v: u64| U32::new(u32::try_from(v).unwrap_or(u32::MAX)); // All were checked to fit when they were set.
        raw.offset_map = low(self.map_offset);
        raw.offset_data = low(self.data_offset);
        raw.disk_size = U64::new(self.size);
        raw.blocks_in_image = low(self.blocks);
        raw.blocks_allocated = low(self.allocated);
        raw
    }
}

/// A block size that can be worked with: a power of two from 4 KiB to 256 MiB.
pub(super) fn checked_block_size(bytes: u32) -> Result<u64> {
    if bytes.is_power_of_two() && (4 << 10..=256 << 20).contains(&bytes) {
        return Ok(u64::from(bytes));
    }
    Err(bad(
        "block_size",
        u64::from(bytes),
        "a power of two from 4 KiB to 256 MiB",
    ))
}

fn checked_offset(field: &str, value: u32) -> Result<u64> {
    let value = u64::from(value);
    if value % SECTOR != 0 || value < SECTOR {
        return Err(bad(field, value, "whole sectors behind the header"));
    }
    Ok(value)
}

fn bad(field: &str, found: u64, expected: &str) -> Error {
    Error::corrupt(format!("{field} is {found:#x}, expected {expected}")).at(format!("header.{field}"))
}

/// An entry of the block map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// Never written: zeroes, or what the layer below has.
    Free,
    /// Zeroes, whatever is below (VirtualBox: discarded).
    Zero,
    /// The block with this index in the file.
    Block(u32),
}

impl Entry {
    pub fn decode(raw: u32) -> Self {
        match raw {
            FREE => Self::Free,
            ZERO => Self::Zero,
            index => Self::Block(index),
        }
    }
    pub fn encode(self) -> u32 {
        match self {
            Self::Free => FREE,
            Self::Zero => ZERO,
            Self::Block(index) => index,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_round_trip() {
        for raw in [0, 1, 0x1fff_ff80, FREE, ZERO] {
            assert_eq!(Entry::decode(raw).encode(), raw);
        }
    }
}
