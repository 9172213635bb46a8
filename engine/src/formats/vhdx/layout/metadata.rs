//! Section 2.6 "Metadata Region".

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{Error, Result};

/// What the region begins with.
pub const METADATA: &[u8; 8] = b"metadata";
/// Where the items begin: behind the table.
pub const METADATA_ITEMS: u32 = 64 << 10;
/// Bytes of the largest item.
const LARGEST: u32 = 1 << 20;

/// Block size and flags.
pub const FILE_PARAMETERS: uuid::Uuid = uuid::uuid!("caa16737-fa36-4d43-b3b6-33f0aa44e76b");
/// Bytes the guest sees.
pub const VIRTUAL_SIZE: uuid::Uuid = uuid::uuid!("2fa54224-cd1b-4876-b211-5dbed83bf4b8");
/// Id of the disk.
pub const DISK_ID: uuid::Uuid = uuid::uuid!("beca12ab-b2e6-4523-93ef-c309e000c746");
/// Bytes of a sector for the guest.
pub const LOGICAL_SECTOR: uuid::Uuid = uuid::uuid!("8141bf1d-a96f-4709-ba47-f233a8faab5f");
/// Bytes that the guest had better write together.
pub const PHYSICAL_SECTOR: uuid::Uuid = uuid::uuid!("cda348c7-445d-4471-9cc9-e9885251c556");
/// Where the disk below is.
pub const PARENT_LOCATOR: uuid::Uuid = uuid::uuid!("a8d35f2d-b30b-454d-abf7-d3d84834ab0c");
/// The only type of parent locator: another VHDX.
pub const PARENT_TYPE: uuid::Uuid = uuid::uuid!("b04aefb7-d19e-4a81-b789-25b8e9445913");

/// The table's head.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawMetadataHeader {
    /// `metadata`.
    pub signature: [u8; 8],
    /// Zero.
    pub reserved: U16,
    /// How many entries follow, at most 2047.
    pub count: U16,
    /// Zero.
    pub reserved2: [u8; 20],
}
const _: () = assert!(size_of::<RawMetadataHeader>() == 32);

/// An entry of the table.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawMetadataEntry {
    /// What the item is.
    pub id: [u8; 16],
    /// Bytes from the start of the region, at least 64 KiB.
    pub offset: U32,
    /// Bytes of the item, at most 1 MiB.
    pub length: U32,
    /// Bit 0: the user's; bit 1: of the virtual disk; bit 2: must be known.
    pub flags: U32,
    /// Zero.
    pub reserved: U32,
}
const _: () = assert!(size_of::<RawMetadataEntry>() == 32);

/// A checked entry: the item lies in the region, behind the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetadataEntry {
    /// What it is.
    pub id: uuid::Uuid,
    /// Bytes from the start of the region.
    pub offset: u64,
    /// Bytes.
    pub length: usize,
    /// Of the user, not of the format.
    pub user: bool,
    /// Whether it must be known.
    pub required: bool,
}

impl MetadataEntry {
    /// Checks the 64 KiB of the table of a region of `region` bytes.
    ///
    /// # Errors
    /// `Corrupt` that names the field.
    pub fn table(bytes: &[u8], region: u64) -> Result<Vec<Self>> {
        let short = || Error::corrupt("the metadata table has 65536 bytes");
        let (header, rest) = RawMetadataHeader::read_from_prefix(bytes).map_err(|_| short())?;
        if header.signature != *METADATA {
            return Err(Error::corrupt(
                "expected \"metadata\" at the front of the metadata region",
            ));
        }
        let count = header.count.get();
        if count > 2047 {
            return Err(Error::corrupt(format!(
                "expected at most 2047 metadata items, found {count}"
            )));
        }
        let entries = rest
            .chunks_exact(size_of::<RawMetadataEntry>())
            .take(usize::from(count));
        entries
            .map(|e| Self::checked(&RawMetadataEntry::read_from_bytes(e).map_err(|_| short())?, region))
            .collect()
    }
    fn checked(raw: &RawMetadataEntry, region: u64) -> Result<Self> {
        let (offset, length, flags) = (raw.offset.get(), raw.length.get(), raw.flags.get());
        let empty = offset == 0 && length == 0;
        let inside = u64::from(offset) + u64::from(length) <= region;
        if !(empty || offset >= METADATA_ITEMS && length > 0 && length <= LARGEST && inside) {
            return Err(Error::corrupt(format!(
                "a metadata item of {length:#x} bytes at {offset:#x} does not lie in the region of {region:#x} bytes"
            )));
        }
        Ok(Self {
            id: uuid::Uuid::from_bytes_le(raw.id),
            offset: u64::from(offset),
            length: length as usize,
            user: flags & 1 != 0,
            required: flags & 4 != 0,
        })
    }
}

/// What a parent locator begins with.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawLocator {
    /// Always [`PARENT_TYPE`].
    pub kind: [u8; 16],
    /// Zero.
    pub reserved: U16,
    /// How many keys with values follow.
    pub count: U16,
}
const _: () = assert!(size_of::<RawLocator>() == 20);

/// A key and its value: offsets from the start of the item, UTF-16LE text without an end mark.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawLocatorEntry {
    /// Place of the key.
    pub key_offset: U32,
    /// Place of the value.
    pub value_offset: U32,
    /// Bytes of the key.
    pub key_length: U16,
    /// Bytes of the value.
    pub value_length: U16,
}
const _: () = assert!(size_of::<RawLocatorEntry>() == 12);
