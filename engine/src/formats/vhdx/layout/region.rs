//! Section 2.2.3 "Region Table".

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{MIB, REGION_TABLE, is_sound, seal};
use crate::{Error, Result};

/// Id of the block allocation table.
pub const BAT_REGION: uuid::Uuid = uuid::uuid!("2dc27766-f623-4200-9d64-115e9bfd4a08");
/// Id of the metadata.
pub const METADATA_REGION: uuid::Uuid = uuid::uuid!("8b7ca206-4790-4b9a-b8fe-575f050f886e");
/// Entries of the largest table.
const MOST: u32 = 2047;

/// What a region table begins with.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawRegionHeader {
    /// `regi`.
    pub signature: [u8; 4],
    /// CRC-32C of the 64 KiB.
    pub checksum: U32,
    /// How many entries follow, at most 2047.
    pub count: U32,
    /// Zero.
    pub reserved: U32,
}
const _: () = assert!(size_of::<RawRegionHeader>() == 16);

/// An entry.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawRegion {
    /// What the region is.
    pub id: [u8; 16],
    /// Its place, whole MiB, at least 1 MiB.
    pub offset: U64,
    /// Its bytes, whole MiB.
    pub length: U32,
    /// Bit 0: who does not know it must not open the file.
    pub required: U32,
}
const _: () = assert!(size_of::<RawRegion>() == 32);

/// A checked entry: whole MiB, behind the headers, inside 2^64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// What it is.
    pub id: uuid::Uuid,
    /// Place.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Whether it must be known.
    pub required: bool,
}

impl Region {
    /// Whether 64 KiB look like a table: signature and sum.
    pub fn is_sound_table(table: &[u8]) -> bool {
        table.starts_with(b"regi") && is_sound(table)
    }
    /// Checks the 64 KiB of a sound table.
    ///
    /// # Errors
    /// `Corrupt` that names the field.
    pub fn table(bytes: &[u8]) -> Result<Vec<Self>> {
        let short = |_| Error::corrupt("a region table has 65536 bytes");
        let (header, rest) = RawRegionHeader::read_from_prefix(bytes).map_err(|_| short(()))?;
        let count = header.count.get();
        if count > MOST {
            return Err(Error::corrupt(format!(
                "expected at most {MOST} regions, found {count}"
            )));
        }
        let size = size_of::<RawRegion>();
        let entries = rest.chunks_exact(size).take(count as usize);
        entries
            .map(|e| Self::checked(RawRegion::read_from_bytes(e).map_err(|_| short(()))?))
            .collect()
    }
    fn checked(raw: RawRegion) -> Result<Self> {
        let (offset, length) = (raw.offset.get(), u64::from(raw.length.get()));
        let whole = offset.is_multiple_of(MIB) && length.is_multiple_of(MIB) && offset >= MIB && length > 0;
        if !whole || offset.checked_add(length).is_none() {
            return Err(Error::corrupt(format!(
                "expected a region of whole MiB behind the headers, found {length:#x} bytes at {offset:#x}"
            )));
        }
        Ok(Self {
            id: uuid::Uuid::from_bytes_le(raw.id),
            offset,
            length,
            required: raw.required.get() & 1 != 0,
        })
    }
    fn encode(&self) -> RawRegion {
        RawRegion {
            id: self.id.to_bytes_le(),
            offset: self.offset.into(),
            // Checked or made by us: below 4 GiB.
            length: u32::try_from(self.length).unwrap_or(u32::MAX).into(),
            required: u32::from(self.required).into(),
        }
    }
}

/// A table as it is stored.
pub fn encode_table(regions: &[Region]) -> Vec<u8> {
    let header = RawRegionHeader {
        signature: *b"regi",
        checksum: 0.into(),
        count: u32::try_from(regions.len()).unwrap_or(MOST).into(),
        reserved: 0.into(),
    };
    let mut bytes = header.as_bytes().to_vec();
    for region in regions {
        bytes.extend_from_slice(region.encode().as_bytes());
    }
    bytes.resize(REGION_TABLE as usize, 0);
    seal(&mut bytes);
    bytes
}
