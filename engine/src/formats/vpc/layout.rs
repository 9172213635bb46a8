//! The bytes of a VHD file: footer, dynamic disk header, sums. All numbers are big-endian.
//!
//! Source: "Virtual Hard Disk Image Format Specification" 1.0 (Microsoft, 2006), sections named below.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::geometry::Geometry;
use crate::{Error, Result};

/// All places in the file are counted in sectors of this many bytes.
pub const SECTOR: u64 = 512;
/// Bytes of a footer.
pub const FOOTER: u64 = 512;
/// Bytes of a dynamic disk header.
pub const HEADER: u64 = 1024;
/// A table entry that points nowhere.
pub const UNUSED: u32 = u32::MAX;
/// Sectors of the largest disk: 2040 GiB.
pub const MAX_SECTORS: u64 = 0xff00_0000;
/// The largest block that is opened.
pub const MAX_BLOCK: u32 = 256 << 20;
/// What is at the front of a footer.
pub const FOOTER_COOKIE: &[u8; 8] = b"conectix";
/// What is at the front of a dynamic disk header.
pub const HEADER_COOKIE: &[u8; 8] = b"cxsparse";
/// The only version there is: 1.0.
pub const VERSION: u32 = 0x0001_0000;
/// Stands for "no next structure".
pub const NOWHERE: u64 = u64::MAX;
/// Seconds from 1970 to 2000, where the format's clock starts.
pub const EPOCH: u64 = 946_684_800;

/// "Hard Disk Footer Format".
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawFooter {
    /// `conectix`.
    pub cookie: [u8; 8],
    /// Bit 0: temporary; bit 1: always set.
    pub features: U32,
    /// Major version in the upper half; must be 1.
    pub version: U32,
    /// Place of the dynamic disk header; all ones in a fixed disk.
    pub data_offset: U64,
    /// Seconds since 2000-01-01 UTC.
    pub timestamp: U32,
    /// Program that made the image.
    pub creator: [u8; 4],
    /// Its version.
    pub creator_version: U32,
    /// `Wi2k` or `Mac `.
    pub creator_os: [u8; 4],
    /// Bytes of the disk when it was made.
    pub original_size: U64,
    /// Bytes of the disk.
    pub current_size: U64,
    /// Cylinders, heads, sectors per track.
    pub cylinders: U16,
    /// Heads.
    pub heads: u8,
    /// Sectors per track.
    pub sectors: u8,
    /// 2 fixed, 3 dynamic, 4 differencing.
    pub disk_type: U32,
    /// One's complement of the sum of all bytes but these.
    pub checksum: U32,
    /// Id of the image, by which overlays know it.
    pub unique_id: [u8; 16],
    /// 1: the guest is in a saved state.
    pub saved_state: u8,
    /// Zero.
    pub reserved: [u8; 427],
}
const _: () = assert!(size_of::<RawFooter>() as u64 == FOOTER);

/// "Dynamic Disk Header Format".
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawHeader {
    /// `cxsparse`.
    pub cookie: [u8; 8],
    /// All ones.
    pub data_offset: U64,
    /// Place of the block allocation table.
    pub table_offset: U64,
    /// Major version in the upper half; must be 1.
    pub version: U32,
    /// Entries of the table.
    pub max_table_entries: U32,
    /// Guest bytes of a block, a power of two.
    pub block_size: U32,
    /// As in the footer.
    pub checksum: U32,
    /// Differencing: `unique_id` of the disk below.
    pub parent_unique_id: [u8; 16],
    /// Differencing: time of the last change of the disk below; not maintained by anybody and ignored.
    pub parent_timestamp: U32,
    /// Zero.
    pub reserved1: U32,
    /// Differencing: name of the disk below, UTF-16.
    pub parent_name: [U16; 256],
    /// Differencing: where fuller names are.
    pub locators: [RawLocator; 8],
    /// Zero.
    pub reserved2: [u8; 256],
}
const _: () = assert!(size_of::<RawHeader>() as u64 == HEADER);

/// "Parent Locator": one way to name the disk below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawLocator {
    /// `W2ru` relative, `W2ku` absolute (both UTF-16LE), `MacX` a file URL in UTF-8; 0 unused.
    pub platform: [u8; 4],
    /// Space for the name: sectors by the specification, bytes by most writers. Not needed to read.
    pub space: U32,
    /// Bytes of the name.
    pub length: U32,
    /// Zero.
    pub reserved: U32,
    /// Place of the name in the file.
    pub offset: U64,
}
const _: () = assert!(size_of::<RawLocator>() == 24);

/// The sum both structures carry: the one's complement of the sum of their bytes, the field itself left out.
pub fn checksum(structure: &[u8], field: &[u8; 4]) -> u32 {
    let sum = |bytes: &[u8]| bytes.iter().fold(0u32, |sum, b| sum.wrapping_add(u32::from(*b)));
    !sum(structure).wrapping_sub(sum(field))
}

impl RawFooter {
    /// The sum as it should be.
    pub fn sum(&self) -> u32 {
        checksum(self.as_bytes(), &self.checksum.to_bytes())
    }
    /// Whether the stored sum is right.
    pub fn is_sound(&self) -> bool {
        self.sum() == self.checksum.get()
    }
    /// Stores the sum.
    #[must_use]
    pub fn sealed(mut self) -> Self {
        self.checksum = self.sum().into();
        self
    }
    /// The geometry.
    pub fn geometry(&self) -> Geometry {
        Geometry {
            cylinders: self.cylinders.get(),
            heads: self.heads,
            sectors: self.sectors,
        }
    }
}

impl RawHeader {
    /// The sum as it should be.
    pub fn sum(&self) -> u32 {
        checksum(self.as_bytes(), &self.checksum.to_bytes())
    }
    /// Whether the stored sum is right.
    pub fn is_sound(&self) -> bool {
        self.sum() == self.checksum.get()
    }
    /// Stores the sum.
    #[must_use]
    pub fn sealed(mut self) -> Self {
        self.checksum = self.sum().into();
        self
    }
}

/// The kinds of disk that can be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskKind {
    /// All guest bytes in order, then the footer.
    Fixed,
    /// Blocks where the table says.
    Dynamic,
    /// Blocks with the sectors that differ from the disk below.
    Differencing,
}

impl DiskKind {
    /// The number in the footer.
    pub fn code(self) -> u32 {
        match self {
            Self::Fixed => 2,
            Self::Dynamic => 3,
            Self::Differencing => 4,
        }
    }
}

/// A footer whose cookie, version, features and kind were checked. Its sum was not: see [`RawFooter::is_sound`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footer {
    /// As stored.
    pub raw: RawFooter,
    /// What kind of disk.
    pub kind: DiskKind,
}

impl TryFrom<RawFooter> for Footer {
    type Error = Error;

    fn try_from(raw: RawFooter) -> Result<Self> {
        if raw.cookie != *FOOTER_COOKIE {
            return Err(Error::not_this_format("invalid VPC image: there is no footer"));
        }
        let (version, features, kind) = (raw.version.get(), raw.features.get(), raw.disk_type.get());
        if version >> 16 != VERSION >> 16 {
            return Err(Error::unsupported(format!(
                "expected footer version 1, found {version:#x}"
            )));
        }
        if features & !3 != 0 {
            return Err(Error::unsupported(format!(
                "unknown features {features:#x} in the footer"
            )));
        }
        let kind = match kind {
            2 => DiskKind::Fixed,
            3 => DiskKind::Dynamic,
            4 => DiskKind::Differencing,
            _ => {
                return Err(Error::unsupported(format!(
                    "expected disk type 2 (fixed), 3 (dynamic) or 4 (differencing), found {kind}"
                )));
            }
        };
        Ok(Self { raw, kind })
    }
}

/// A dynamic disk header whose own fields were checked. Whether they fit the file and the disk is for `open` to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// As stored.
    pub raw: RawHeader,
    /// Where it is.
    pub offset: u64,
    /// Guest bytes of a block: a power of two from 512 to 256 MiB.
    pub block_size: u64,
    /// Bytes of the bitmap before each block: whole sectors.
    pub bitmap_size: u64,
    /// Place of the table.
    pub table_offset: u64,
    /// Entries of the table.
    pub entries: u64,
}

impl Header {
    /// Checks a header found at `offset`.
    ///
    /// # Errors
    /// `Corrupt` or `Unsupported` that names the field.
    pub fn checked(raw: RawHeader, offset: u64) -> Result<Self> {
        if raw.cookie != *HEADER_COOKIE {
            return Err(Error::corrupt(
                "expected the dynamic disk header's \"cxsparse\", found something else",
            ));
        }
        let version = raw.version.get();
        if version >> 16 != VERSION >> 16 {
            return Err(Error::unsupported(format!(
                "expected header version 1, found {version:#x}"
            )));
        }
        let size = raw.block_size.get();
        if !size.is_power_of_two() || u64::from(size) < SECTOR {
            return Err(Error::corrupt(format!("Invalid block size {size}")));
        }
        if size > MAX_BLOCK {
            return Err(Error::unsupported(format!(
                "block size {size} is over {MAX_BLOCK} bytes"
            )));
        }
        let block_size = u64::from(size);
        Ok(Self {
            raw,
            offset,
            block_size,
            bitmap_size: (block_size / SECTOR).div_ceil(8).next_multiple_of(SECTOR),
            table_offset: raw.table_offset.get(),
            entries: u64::from(raw.max_table_entries.get()),
        })
    }
    /// Bytes of the table.
    pub fn table_bytes(&self) -> u64 {
        self.entries * 4
    }
    /// Bytes of a block with its bitmap.
    pub fn stored_block(&self) -> u64 {
        self.bitmap_size + self.block_size
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_sum_leaves_its_own_field_out() {
        let mut raw = RawFooter::read_from_bytes(&[0; 512]).unwrap();
        raw.cookie = *FOOTER_COOKIE;
        // 'c' + 'o' + 'n' + 'e' + 'c' + 't' + 'i' + 'x' = 861
        assert_eq!(raw.sum(), !861);
        raw.checksum = 0x1234_5678.into();
        assert_eq!(raw.sum(), !861);
        assert!(raw.sealed().is_sound());
    }

    #[test]
    fn the_bitmap_of_a_block_is_whole_sectors() {
        for (block, bitmap) in [(512u32, 512), (2 << 20, 512), (4 << 20, 1024), (256 << 20, 65536)] {
            let mut raw = RawHeader::read_from_bytes(&[0; 1024]).unwrap();
            raw.cookie = *HEADER_COOKIE;
            raw.version = VERSION.into();
            raw.block_size = block.into();
            assert_eq!(Header::checked(raw, 512).unwrap().bitmap_size, bitmap, "{block}");
        }
    }

    proptest! {
        #[test]
        fn structures_keep_every_byte(footer in prop::collection::vec(any::<u8>(), 512), header in prop::collection::vec(any::<u8>(), 1024)) {
            let raw = RawFooter::read_from_bytes(&footer).unwrap();
            prop_assert_eq!(raw.as_bytes(), &footer[..]);
            let _ = Footer::try_from(raw);
            let raw = RawHeader::read_from_bytes(&header).unwrap();
            prop_assert_eq!(raw.as_bytes(), &header[..]);
            let _ = Header::checked(raw, 512);
        }
    }
}
