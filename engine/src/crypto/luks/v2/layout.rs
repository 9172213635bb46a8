//! The bytes of a LUKS2 binary header (LUKS2 On-Disk Format Specification 1.1.1, section 2.1). All numbers are big-endian.

use zerocopy::{
    FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned,
    byteorder::big_endian::{U16, U64},
};

/// First bytes of the copy at the start.
pub(super) const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
/// First bytes of the second copy.
pub(super) const MAGIC_2ND: [u8; 6] = *b"SKUL\xba\xbe";
/// Bytes of the binary header with its padding; the JSON text follows.
pub(super) const BINARY_LEN: usize = 4096;
/// The sizes that a header (binary and JSON) can have: also the offset of the second copy.
pub(super) const SIZES: [u64; 9] = [
    0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000, 0x40_0000,
];

/// The binary header of either copy.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone)]
#[repr(C)]
pub(super) struct RawHeader {
    /// [`MAGIC`] or [`MAGIC_2ND`].
    pub magic: [u8; 6],
    /// 2.
    pub version: U16,
    /// Bytes of this copy, JSON included: one of [`SIZES`].
    pub size: U64,
    /// Rises with each change; the copy with the higher one counts.
    pub sequence: U64,
    /// Text of a label.
    pub label: [u8; 48],
    /// Hash of the checksum, such as `sha256`.
    pub checksum_alg: [u8; 32],
    /// Makes the two copies differ.
    pub salt: [u8; 64],
    /// Text of a UUID.
    pub uuid: [u8; 40],
    /// Text of a second label.
    pub subsystem: [u8; 48],
    /// Where this copy stands: 0, or [`size`](Self::size).
    pub offset: U64,
    /// Zero.
    pub padding: [u8; 184],
    /// Hash over the whole copy with this field zero.
    pub checksum: [u8; 64],
}

const _: () = assert!(size_of::<RawHeader>() == 512);

/// Offset of [`RawHeader::checksum`].
pub(super) const CHECKSUM_AT: usize = 448;

impl RawHeader {
    /// All zero.
    pub(super) fn zeroed() -> Self {
        Self::new_zeroed()
    }
}
