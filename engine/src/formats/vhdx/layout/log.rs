//! Section 2.3 "Log".

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::PAGE;

/// Signature of a descriptor that zeroes a range.
pub const ZERO_DESCRIPTOR: [u8; 4] = *b"zero";
/// Signature of a descriptor that stores 4 KiB.
pub const DATA_DESCRIPTOR: [u8; 4] = *b"desc";
/// Signature of the 4 KiB that a data descriptor stores.
pub const DATA_SECTOR: [u8; 4] = *b"data";

/// What an entry begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawEntry {
    /// `loge`.
    pub signature: [u8; 4],
    /// CRC-32C of the whole entry.
    pub checksum: U32,
    /// Bytes of the entry, whole 4 KiB.
    pub length: U32,
    /// Offset in the log of the first entry that still counts.
    pub tail: U32,
    /// One more than the entry before; never 0.
    pub sequence: U64,
    /// How many descriptors follow.
    pub descriptors: U32,
    /// Zero.
    pub reserved: U32,
    /// That of the header, or the entry does not count.
    pub log_guid: [u8; 16],
    /// The file was stable up to here when the entry was written.
    pub flushed_offset: U64,
    /// The file must be as long as this after the entry was replayed.
    pub last_offset: U64,
}
const _: () = assert!(size_of::<RawEntry>() == 64);

/// A descriptor: one place in the file that changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawDescriptor {
    /// `zero` or `desc`.
    pub signature: [u8; 4],
    /// Data: the last four bytes of the 4 KiB. Zero: nothing.
    pub trailing: [u8; 4],
    /// Data: the first eight bytes. Zero: bytes of the range.
    pub leading: [u8; 8],
    /// Place in the file, whole 4 KiB.
    pub offset: U64,
    /// That of the entry.
    pub sequence: U64,
}
const _: () = assert!(size_of::<RawDescriptor>() == 32);

/// The 4 KiB of a data descriptor but for the bytes that the descriptor holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawDataSector {
    /// `data`.
    pub signature: [u8; 4],
    /// Upper half of the entry's sequence number.
    pub sequence_high: U32,
    /// Bytes 8 to 4091.
    pub data: [u8; 4084],
    /// Lower half.
    pub sequence_low: U32,
}
const _: () = assert!(size_of::<RawDataSector>() == PAGE as usize);

/// 4 KiB sectors that the head of an entry and its descriptors take.
pub fn sectors_of_descriptors(descriptors: u64) -> u64 {
    (64 + descriptors * 32).div_ceil(PAGE)
}

/// Descriptors that fit in the first sector.
pub fn descriptors_in(sectors: u64) -> u64 {
    (sectors * PAGE - 64) / 32
}
