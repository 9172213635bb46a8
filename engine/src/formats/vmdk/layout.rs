//! Hosted sparse extents (`KDMV`) on disk, little-endian: header, footer, markers. Pure bytes.
//!
//! Source: VMware Virtual Disk Format 5.0, "Hosted Sparse Extent Header" and "Stream-Optimized Compressed Sparse Extents".

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{Error, Result};

/// Unit of all offsets and sizes in VMDK structures.
pub(super) const SECTOR: u64 = 512;
/// `KDMV`.
pub(super) const MAGIC: u32 = u32::from_le_bytes(*b"KDMV");
/// `gdOffset` of a header whose footer has the real one.
pub(super) const GD_AT_END: u64 = u64::MAX;
/// The descriptor is at most this long.
pub(super) const MAX_DESCRIPTOR: u64 = 1 << 20;

/// `flags`: the newline test characters are there.
const NEWLINES: u32 = 1;
/// `flags`: a redundant grain directory with tables of its own.
const REDUNDANT: u32 = 1 << 1;
/// `flags`: grain table entry 1 means zeroes.
const ZERO_GRAINS: u32 = 1 << 2;
/// `flags`: grains are compressed.
const COMPRESSED: u32 = 1 << 16;
/// `flags`: grains and metadata have markers before them.
const MARKERS: u32 = 1 << 17;
/// `compression`: grains are zlib streams.
const DEFLATE: u16 = 1;

/// The header: first sector of the file, and of a stream's footer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C, packed)]
pub(super) struct RawHeader {
    /// [`MAGIC`].
    pub magic: U32,
    /// 1; 2 with zeroed grains; 3 compressed, or with changed block tracking.
    pub version: U32,
    /// Bits above.
    pub flags: U32,
    /// Sectors the guest sees.
    pub capacity: U64,
    /// Sectors of a grain, a power of two.
    pub grain_size: U64,
    /// First sector of the embedded descriptor; 0 without.
    pub descriptor_offset: U64,
    /// Its sectors.
    pub descriptor_size: U64,
    /// Entries of a grain table: 512.
    pub entries_per_table: U32,
    /// First sector of the redundant grain directory.
    pub redundant_offset: U64,
    /// First sector of the grain directory, or [`GD_AT_END`].
    pub directory_offset: U64,
    /// Sectors before the first grain.
    pub overhead: U64,
    /// The extent was not closed properly.
    pub unclean: u8,
    /// `\n`.
    pub single_end_line: u8,
    /// A space.
    pub non_end_line: u8,
    /// `\r\n`.
    pub double_end_line: [u8; 2],
    /// 1: deflate.
    pub compression: U16,
    /// Zero.
    pub padding: [u8; 433],
}

const _: () = assert!(size_of::<RawHeader>() == 512);

/// What a checked header says; sizes and offsets in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub version: u32,
    pub capacity: u64,
    pub grain: u64,
    pub entries: u64,
    /// Offset and length of the descriptor, if there is room for one.
    pub descriptor: Option<(u64, u64)>,
    /// `None`: the footer knows.
    pub directory: Option<u64>,
    pub redundant: Option<u64>,
    pub overhead: u64,
    pub zero_grains: bool,
    pub compressed: bool,
    pub markers: bool,
    pub raw: RawHeader,
}

impl RawHeader {
    /// Checks everything that the header alone can tell.
    ///
    /// # Errors
    /// `NotThisFormat`, `Unsupported` (version, compression), `Corrupt` that names the field.
    pub fn checked(&self) -> Result<Header> {
        if self.magic.get() != MAGIC {
            return Err(Error::not_this_format("expected the magic KDMV"));
        }
        let version = self.version.get();
        if !(1..=3).contains(&version) {
            return Err(Error::unsupported(format!("VMDK version {version}; known are 1 to 3")).at("header.version"));
        }
        let flags = self.flags.get();
        if flags & NEWLINES != 0
            && (self.single_end_line, self.non_end_line, self.double_end_line) != (b'\n', b' ', *b"\r\n")
        {
            return Err(Error::corrupt("the newline characters were changed by a text transfer").at("header"));
        }
        let compressed = self.is_compressed()?;
        let grain = self.grain_size.get();
        if !grain.is_power_of_two() || grain > 1 << 17 {
            return Err(bad("grain_size", grain, "a power of two of sectors up to 64 MiB"));
        }
        let entries = self.entries_per_table.get();
        if !(1..=512).contains(&entries) {
            return Err(bad("entries_per_table", u64::from(entries), "1 to 512"));
        }
        let directory = self.directory_offset.get();
        let header = Header {
            version,
            capacity: bytes("capacity", self.capacity.get())?,
            grain: grain * SECTOR,
            entries: u64::from(entries),
            descriptor: self.checked_descriptor()?,
            directory: (directory != GD_AT_END)
                .then(|| bytes("directory_offset", directory))
                .transpose()?,
            redundant: self.checked_redundant()?,
            overhead: bytes("overhead", self.overhead.get())?,
            zero_grains: flags & ZERO_GRAINS != 0,
            compressed,
            markers: flags & MARKERS != 0,
            raw: *self,
        };
        header.check_descriptor_room()?;
        Ok(header)
    }

    /// Flag and algorithm both tell; QEMU goes by the algorithm alone, VMware's writers set both. Of grains that are taken for compressed the
    /// sums show it where they are not; markers before grains that are not cannot be told from data.
    fn is_compressed(&self) -> Result<bool> {
        let flags = self.flags.get();
        match (flags & COMPRESSED != 0, self.compression.get()) {
            (_, algorithm @ 2..) => Err(Error::unsupported(format!("compression algorithm {algorithm}")).at("header")),
            (false, 0) if flags & MARKERS != 0 => Err(Error::corrupt(format!(
                "the flags {flags:#x} say that grains have markers, yet not that they are compressed"
            ))
            .at("header.flags")),
            (flag, algorithm) => Ok(flag || algorithm == DEFLATE),
        }
    }
    fn checked_descriptor(&self) -> Result<Option<(u64, u64)>> {
        let offset = bytes("descriptor_offset", self.descriptor_offset.get())?;
        let len = bytes("descriptor_size", self.descriptor_size.get())?;
        if offset == 0 || len == 0 {
            return Ok(None);
        }
        if len > MAX_DESCRIPTOR {
            return Err(bad("descriptor_size", len, "at most 1 MiB"));
        }
        Ok(Some((offset, len)))
    }
    fn checked_redundant(&self) -> Result<Option<u64>> {
        let offset = self.redundant_offset.get();
        if self.flags.get() & REDUNDANT == 0 || offset == 0 || offset == GD_AT_END {
            return Ok(None);
        }
        bytes("redundant_offset", offset).map(Some)
    }
}

impl Header {
    /// The descriptor is written as a whole, with zeroes behind its text: nothing else may be in its room.
    fn check_descriptor_room(&self) -> Result<()> {
        let Some((at, len)) = self.descriptor else {
            return Ok(());
        };
        let inside = |place: &u64| (at..at.saturating_add(len)).contains(place);
        match [self.directory, self.redundant].into_iter().flatten().find(inside) {
            Some(place) => Err(Error::corrupt(format!(
                "the descriptor's {len} bytes at {at:#x} reach over the grain directory at {place:#x}"
            ))
            .at("header.descriptor_size")),
            None if !self.compressed && self.overhead > 0 && at.saturating_add(len) > self.overhead => {
                Err(Error::corrupt(format!(
                    "the descriptor's {len} bytes at {at:#x} reach over the first grains at {:#x}",
                    self.overhead
                ))
                .at("header.descriptor_size"))
            }
            None => Ok(()),
        }
    }
    /// Guest bytes that one grain table covers.
    pub fn table_covers(&self) -> u64 {
        self.grain * self.entries
    }
    /// Entries of the grain directory.
    pub fn tables(&self) -> u64 {
        self.capacity.div_ceil(self.table_covers())
    }
    /// Whether a footer belongs to this header. Where the descriptor is, the header says; not every writer repeats it.
    pub fn same_extent(&self, footer: &Self) -> bool {
        let of = |h: &Self| (h.version, h.capacity, h.grain, h.entries, h.compressed, h.markers);
        of(self) == of(footer)
    }
}

/// What a new extent needs to say.
pub(super) struct NewHeader {
    pub sectors: u64,
    pub descriptor_sectors: u64,
    pub redundant: u64,
    pub directory: u64,
    pub overhead: u64,
    pub compressed: bool,
    pub zero_grains: bool,
}

/// Sectors of a grain in new extents.
pub(super) const GRAIN_SECTORS: u64 = 128;
/// Entries of a grain table in new extents.
pub(super) const TABLE_ENTRIES: u64 = 512;

impl NewHeader {
    pub fn to_raw(&self) -> RawHeader {
        let mut raw = RawHeader::new_zeroed();
        let (version, more) = match (self.compressed, self.zero_grains) {
            (true, zero) => (3, COMPRESSED | MARKERS | if zero { ZERO_GRAINS } else { 0 }),
            (false, true) => (2, ZERO_GRAINS),
            (false, false) => (1, 0),
        };
        let redundant = if self.redundant != 0 { REDUNDANT } else { 0 };
        raw.magic = U32::new(MAGIC);
        raw.version = U32::new(version);
        raw.flags = U32::new(NEWLINES | redundant | more);
        raw.capacity = U64::new(self.sectors);
        raw.grain_size = U64::new(GRAIN_SECTORS);
        raw.descriptor_offset = U64::new(1);
        raw.descriptor_size = U64::new(self.descriptor_sectors);
        raw.entries_per_table = U32::new(512);
        raw.redundant_offset = U64::new(self.redundant);
        raw.directory_offset = U64::new(self.directory);
        raw.overhead = U64::new(self.overhead);
        raw.single_end_line = b'\n';
        raw.non_end_line = b' ';
        raw.double_end_line = *b"\r\n";
        raw.compression = U16::new(u16::from(self.compressed));
        raw
    }
}

/// What stands before a grain or a piece of metadata in a stream.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C, packed)]
pub(super) struct RawMarker {
    /// Grain: its first guest sector. Metadata: its length in sectors.
    pub value: U64,
    /// Grain: bytes of compressed data that follow at once. Metadata: 0, and the data follows in the next sector.
    pub size: U32,
    /// Metadata: one of the kinds below. For a grain the data starts here.
    pub kind: U32,
}

const _: () = assert!(size_of::<RawMarker>() == 16);

/// Bytes of a marker before the data of a grain.
pub(super) const GRAIN_MARKER: usize = 12;

/// Kinds of metadata markers.
pub(super) mod marker {
    /// Nothing follows.
    pub const END_OF_STREAM: u32 = 0;
    /// A grain table follows.
    pub const TABLE: u32 = 1;
    /// The grain directory follows.
    pub const DIRECTORY: u32 = 2;
    /// The footer follows.
    pub const FOOTER: u32 = 3;
}

/// A metadata marker as a whole sector.
pub(super) fn metadata_marker(kind: u32, sectors: u64) -> [u8; 512] {
    let marker = RawMarker {
        value: U64::new(sectors),
        size: U32::new(0),
        kind: U32::new(kind),
    };
    let mut sector = [0; 512];
    sector[..16].copy_from_slice(marker.as_bytes());
    sector
}

/// A count of sectors as bytes.
pub(super) fn bytes(field: &str, sectors: u64) -> Result<u64> {
    sectors
        .checked_mul(SECTOR)
        .filter(|b| i64::try_from(*b).is_ok())
        .ok_or_else(|| bad(field, sectors, "a number of sectors below 2^54"))
}

pub(super) fn bad(field: &str, found: u64, expected: &str) -> Error {
    Error::corrupt(format!("{field} is {found:#x}, expected {expected}")).at(format!("header.{field}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_header_is_accepted_as_it_was_meant() {
        let new = NewHeader {
            sectors: 2048,
            descriptor_sectors: 20,
            redundant: 21,
            directory: 26,
            overhead: 128,
            compressed: false,
            zero_grains: true,
        };
        let header = new.to_raw().checked().unwrap();
        assert_eq!((header.capacity, header.grain, header.version), (1 << 20, 65536, 2));
        assert_eq!(header.descriptor, Some((512, 10240)));
        assert!(header.zero_grains && !header.compressed && !header.markers);
    }
}
