//! The bytes of a VHDX file. All numbers are little-endian; sums are CRC-32C of a structure with its sum field zero.
//!
//! Source: "[MS-VHDX]: Virtual Hard Disk v2 (VHDX) File Format", sections named in each part.

mod bat;
mod header;
mod log;
mod metadata;
mod region;

pub use bat::{Bitmap, Block, Geometry};
pub use header::{Header, RawHeader, file_type, has_file_type};
pub use log::{
    DATA_DESCRIPTOR, DATA_SECTOR, RawDataSector, RawDescriptor, RawEntry, ZERO_DESCRIPTOR, descriptors_in,
    sectors_of_descriptors,
};
pub use metadata::{
    DISK_ID, FILE_PARAMETERS, LOGICAL_SECTOR, METADATA, METADATA_ITEMS, MetadataEntry, PARENT_LOCATOR, PARENT_TYPE,
    PHYSICAL_SECTOR, RawLocator, RawLocatorEntry, RawMetadataEntry, RawMetadataHeader, VIRTUAL_SIZE,
};
pub use region::{BAT_REGION, METADATA_REGION, Region, encode_table};

/// The unit of places in the file.
pub const MIB: u64 = 1 << 20;
/// The unit of the log, and the size of a header.
pub const PAGE: u64 = 4096;
/// Places of the two headers.
pub const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
/// Places of the two region tables.
pub const REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];
/// Bytes of a region table.
pub const REGION_TABLE: u64 = 64 << 10;
/// Largest virtual size: 64 TiB.
pub const MAX_SIZE: u64 = 64 << 40;

/// The sum of a structure whose sum field is the four bytes at 4.
pub fn checksum(bytes: &[u8]) -> u32 {
    let (head, rest) = bytes.split_at(bytes.len().min(4));
    let rest = rest.get(4..).unwrap_or_default();
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(head), &[0; 4]), rest)
}

/// Puts the right sum at 4.
pub fn seal(bytes: &mut [u8]) {
    let sum = checksum(bytes);
    if let Some(field) = bytes.get_mut(4..8) {
        field.copy_from_slice(&sum.to_le_bytes());
    }
}

/// Whether the sum at 4 is right.
pub fn is_sound(bytes: &[u8]) -> bool {
    bytes
        .get(4..8)
        .is_some_and(|field| field == checksum(bytes).to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_counts_its_own_field_as_zero() {
        let mut bytes = b"head____and some more".to_vec();
        seal(&mut bytes);
        assert!(is_sound(&bytes));
        assert_eq!(checksum(&bytes), crc32c::crc32c(b"head\0\0\0\0and some more"));
        bytes[12] ^= 1;
        assert!(!is_sound(&bytes));
    }
}
