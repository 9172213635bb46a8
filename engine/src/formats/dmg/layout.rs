//! Apple's disk images (UDIF) on disk: a trailer of 512 bytes at the end, block tables inside a property list or a resource fork; all
//! big-endian. Source: libmodi's description of the format and QEMU's block/dmg.c.

use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{Error, Result};

/// Bytes of a sector in every field that counts sectors.
pub(super) const SECTOR: u64 = 512;
/// Checksum type of a CRC-32.
pub(super) const CRC32: u32 = 2;

/// A checksum with room for 1024 bits.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawChecksum {
    /// 0 none, 2 CRC-32.
    pub kind: U32,
    /// Bits.
    pub bits: U32,
    /// The value; a CRC-32 is the first number.
    pub value: [u8; 128],
}

impl RawChecksum {
    /// No checksum.
    pub const NONE: Self = Self {
        kind: U32::ZERO,
        bits: U32::ZERO,
        value: [0; 128],
    };
    /// The CRC-32, if this is one.
    pub fn crc32(&self) -> Option<u32> {
        let value = self.value.first_chunk().map(|b| u32::from_be_bytes(*b));
        value.filter(|_| self.kind.get() == CRC32)
    }
    /// A CRC-32.
    pub fn of_crc32(crc: u32) -> Self {
        let mut value = [0; 128];
        for (to, from) in value.iter_mut().zip(crc.to_be_bytes()) {
            *to = from;
        }
        Self {
            kind: CRC32.into(),
            bits: 32.into(),
            value,
        }
    }
}

/// The trailer as stored.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Koly {
    /// `koly`.
    pub magic: [u8; 4],
    /// 4.
    pub version: U32,
    /// 512.
    pub header_size: U32,
    /// 1: flattened.
    pub flags: U32,
    /// Where this file's part of the data fork starts in the whole of a segmented image.
    pub running_offset: U64,
    /// Where the data fork is.
    pub data_offset: U64,
    /// Bytes of the data fork.
    pub data_len: U64,
    /// Where the resource fork is.
    pub resource_offset: U64,
    /// Bytes of the resource fork, 0 for none.
    pub resource_len: U64,
    /// Number of this segment from 1; 0 in old files.
    pub segment: U32,
    /// Segments of the image; 0 in old files.
    pub segments: U32,
    /// Identity shared by segments.
    pub segment_id: [u8; 16],
    /// Over the data fork as stored.
    pub data_checksum: RawChecksum,
    /// Where the property list is.
    pub xml_offset: U64,
    /// Bytes of the property list, 0 for none.
    pub xml_len: U64,
    /// Not used.
    pub reserved_1: [u8; 120],
    /// Over the checksums of all block tables.
    pub master_checksum: RawChecksum,
    /// 1: a device, 2: a partition.
    pub variant: U32,
    /// Sectors of the disk.
    pub sectors: U64,
    /// Not used.
    pub reserved_2: [u8; 12],
}

/// Bytes of [`Koly`].
pub(super) const KOLY_LEN: usize = size_of::<Koly>();
const _: () = assert!(KOLY_LEN == 512);

/// The start of a block table as stored.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Mish {
    /// `mish`.
    pub magic: [u8; 4],
    /// 1.
    pub version: U32,
    /// First sector of the part of the disk that this table describes.
    pub first_sector: U64,
    /// Sectors of that part.
    pub sectors: U64,
    /// To be added to the offsets of the chunks.
    pub data_offset: U64,
    /// Sectors of the largest buffer a reader needs.
    pub buffers: U32,
    /// Number of the partition; not used.
    pub descriptor: U32,
    /// Not used.
    pub reserved: [u8; 24],
    /// Over the part of the disk.
    pub checksum: RawChecksum,
    /// Chunks that follow.
    pub chunks: U32,
}
const _: () = assert!(size_of::<Mish>() == 204);

/// A chunk of a block table as stored.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawChunk {
    /// See [`Kind`].
    pub kind: U32,
    /// Text of comment chunks.
    pub comment: U32,
    /// First sector, from the table's first.
    pub sector: U64,
    /// Sectors.
    pub sectors: U64,
    /// Where the stored bytes are in the data fork.
    pub offset: U64,
    /// Stored bytes.
    pub len: U64,
}
const _: () = assert!(size_of::<RawChunk>() == 40);

/// Entry types.
pub(super) mod kind {
    pub const ZERO: u32 = 0;
    pub const RAW: u32 = 1;
    pub const IGNORE: u32 = 2;
    pub const ADC: u32 = 0x8000_0004;
    pub const ZLIB: u32 = 0x8000_0005;
    pub const BZIP2: u32 = 0x8000_0006;
    pub const LZFSE: u32 = 0x8000_0007;
    pub const LZMA: u32 = 0x8000_0008;
    pub const COMMENT: u32 = 0x7fff_fffe;
    pub const END: u32 = 0xffff_ffff;
}

/// How a chunk is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Not at all: zeroes.
    Zero,
    /// Not at all, because nobody needs it: reads as zeroes, and checksums leave it out.
    Ignore,
    /// As it is.
    Raw,
    /// Compressed.
    Packed(Codec),
    /// In a way that nobody knows.
    Unknown(u32),
}

/// Compressions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Codec {
    /// Apple Data Compression (UDCO).
    Adc,
    /// zlib (UDZO).
    Zlib,
    /// bzip2 (UDBZ).
    Bzip2,
    /// LZFSE (ULFO).
    Lzfse,
    /// xz (ULMO).
    Lzma,
}

impl Kind {
    /// What an entry type means; `None` for entries that describe no part of the disk.
    pub(super) fn of(entry: u32) -> Option<Self> {
        Some(match entry {
            kind::ZERO => Self::Zero,
            kind::IGNORE => Self::Ignore,
            kind::RAW => Self::Raw,
            kind::ADC => Self::Packed(Codec::Adc),
            kind::ZLIB => Self::Packed(Codec::Zlib),
            kind::BZIP2 => Self::Packed(Codec::Bzip2),
            kind::LZFSE => Self::Packed(Codec::Lzfse),
            kind::LZMA => Self::Packed(Codec::Lzma),
            kind::COMMENT | kind::END => return None,
            other => Self::Unknown(other),
        })
    }
}

/// Where the trailer begins in the last bytes of a file: 512 bytes before the end, or a little before where something was added.
pub(super) fn trailer_in(tail: &[u8]) -> Option<usize> {
    let last = tail.len().checked_sub(KOLY_LEN)?;
    (0..=last)
        .rev()
        .find(|at| tail.get(*at..).is_some_and(|t| t.starts_with(b"koly")))
}

/// Checks a trailer against the file.
///
/// # Errors
/// `NotThisFormat`, `Unsupported`, `Corrupt` with the field's name.
pub(super) fn check_koly(bytes: &[u8], file_len: u64) -> Result<Koly> {
    let short = |_| Error::not_this_format("shorter than a UDIF trailer");
    let koly = Koly::read_from_prefix(bytes).map_err(short)?.0;
    if &koly.magic != b"koly" {
        return Err(Error::not_this_format("no UDIF trailer at the end of the file"));
    }
    let inside = |what: &str, at: u64, len: u64| match at.checked_add(len) {
        Some(end) if end <= file_len => Ok(()),
        _ => Err(Error::corrupt(format!(
            "{what} of {len} bytes at {at:#x} ends past the end of the file at {file_len:#x}"
        ))),
    };
    inside("the property list", koly.xml_offset.get(), koly.xml_len.get())?;
    inside("the resource fork", koly.resource_offset.get(), koly.resource_len.get())?;
    inside("the data fork", koly.data_offset.get(), 0)?;
    if koly.segments.get() > 1 {
        return Err(Error::unsupported(format!(
            "the image is one of {} segments; join them first",
            koly.segments
        )));
    }
    if koly.sectors.get() > i64::MAX as u64 / SECTOR {
        return Err(Error::corrupt(format!("sector count {:#x} is too large", koly.sectors)));
    }
    Ok(koly)
}
