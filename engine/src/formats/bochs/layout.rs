//! Bochs redologs on disk: a little-endian header of 512 bytes, a catalog of 32-bit extent numbers, then extents, each a bitmap of its
//! sectors followed by the sectors. Source: Bochs' hdimage.h; the bounds are those of QEMU's block/bochs.c.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{Error, Result};

const MAGIC: &[u8] = b"Bochs Virtual HD Image";
const TYPE: &[u8] = b"Redolog";
const VERSION_1: u32 = 0x0001_0000;
const VERSION_2: u32 = 0x0002_0000;
/// A catalog entry without an extent.
pub(super) const NO_EXTENT: u32 = u32::MAX;
const MAX_CATALOG: u32 = 0x10_0000;
const MAX_EXTENT: u32 = 0x80_0000;

/// The header as stored.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawHeader {
    /// `Bochs Virtual HD Image`, padded with NUL.
    pub magic: [u8; 32],
    /// `Redolog`.
    pub kind: [u8; 16],
    /// `Growing`, `Undoable` or `Volatile`.
    pub subtype: [u8; 16],
    /// 1.0 or 2.0, as 16.16 bits.
    pub version: U32,
    /// Bytes of the header: where the catalog is.
    pub header: U32,
    /// Entries of the catalog.
    pub catalog: U32,
    /// Bytes of an extent's bitmap.
    pub bitmap: U32,
    /// Bytes of an extent's data, a power of two.
    pub extent: U32,
    /// Version 2: time stamp of the base; version 1: first half of the disk size.
    pub stamp: U32,
    /// Version 2: bytes of the disk.
    pub disk: U64,
}

/// Bytes that a header takes in the file.
pub(super) const HEADER_LEN: usize = 512;
const _: () = assert!(size_of::<RawHeader>() == 96);

/// What the image is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Subtype {
    /// A disk of its own.
    Growing,
    /// The changes of a disk that stands in another file.
    Undoable,
    /// The same, thrown away at the end.
    Volatile,
}

/// A header whose numbers are good.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    /// What it is for.
    pub subtype: Subtype,
    /// Where the catalog is.
    pub catalog_at: u64,
    /// Its entries.
    pub catalog: u64,
    /// Bytes of a bitmap.
    pub bitmap: u64,
    /// Bytes of an extent's data.
    pub extent: u64,
    /// Virtual size.
    pub size: u64,
}

impl Header {
    /// Where extents start.
    pub fn data_at(&self) -> u64 {
        self.catalog_at + self.catalog * 4
    }
    /// Bytes from an extent's start to its data: the bitmap in whole sectors.
    pub fn bitmap_space(&self) -> u64 {
        self.bitmap.next_multiple_of(512)
    }
    /// Bytes from one extent to the next.
    pub fn stride(&self) -> u64 {
        self.bitmap_space() + self.extent
    }
}

fn name(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    bytes.get(..end).unwrap_or_default()
}

/// Whether bytes begin as a redolog does.
pub(super) fn looks_right(bytes: &[u8]) -> bool {
    bytes.get(..32).is_some_and(|m| name(m) == MAGIC) && bytes.get(32..48).is_some_and(|t| name(t) == TYPE)
}

/// Checks a header, with QEMU's bounds.
///
/// # Errors
/// `NotThisFormat`, `Corrupt` with the field's name.
pub(super) fn check(bytes: &[u8]) -> Result<Header> {
    let short = |_| Error::not_this_format("shorter than a Bochs header");
    let raw = RawHeader::read_from_prefix(bytes).map_err(short)?.0;
    if !looks_right(bytes) {
        return Err(Error::not_this_format("no Bochs redolog header at offset 0"));
    }
    let subtype = match name(&raw.subtype) {
        b"Growing" => Subtype::Growing,
        b"Undoable" => Subtype::Undoable,
        b"Volatile" => Subtype::Volatile,
        other => {
            let other = other.escape_ascii();
            return Err(Error::not_this_format(format!("unknown Bochs image type \"{other}\"")));
        }
    };
    let size = match raw.version.get() {
        VERSION_2 => raw.disk.get(),
        VERSION_1 => u64::from(raw.stamp.get()) | (raw.disk.get() & 0xffff_ffff) << 32,
        other => {
            return Err(Error::not_this_format(format!(
                "unknown Bochs image version {other:#x}"
            )));
        }
    };
    let header = Header {
        subtype,
        catalog_at: raw.header.get().into(),
        catalog: raw.catalog.get().into(),
        bitmap: raw.bitmap.get().into(),
        extent: raw.extent.get().into(),
        size,
    };
    check_sizes(&raw, &header)?;
    Ok(header)
}

fn check_sizes(raw: &RawHeader, header: &Header) -> Result<()> {
    let extent = raw.extent.get();
    if header.catalog_at < HEADER_LEN as u64 {
        return Err(Error::corrupt(format!(
            "header size {} is too small",
            header.catalog_at
        )));
    }
    if raw.catalog.get() > MAX_CATALOG {
        return Err(Error::corrupt(format!("catalog size {} is too large", raw.catalog)));
    }
    if extent < 512 {
        return Err(Error::corrupt(format!("extent size {extent} must be at least 512")));
    }
    if !extent.is_power_of_two() {
        return Err(Error::corrupt(format!("extent size {extent} is not a power of two")));
    }
    if extent > MAX_EXTENT {
        return Err(Error::corrupt(format!("extent size {extent} is too large")));
    }
    if header.bitmap > 1 << 20 || header.bitmap * 8 < header.extent / 512 {
        return Err(Error::corrupt(format!(
            "bitmap size {} does not fit extents of {extent} bytes",
            header.bitmap
        )));
    }
    if header.size > header.catalog * header.extent {
        return Err(Error::corrupt(format!(
            "catalog size {} is too small for a disk size of {:#x}",
            header.catalog, header.size
        )));
    }
    Ok(())
}

/// The header of a new growing image: bitmaps and catalog double in turn until they map the size, as bximage has it.
///
/// # Errors
/// `InvalidArgument` for a size that no image can have.
pub(super) fn new_header(size: u64) -> Result<Vec<u8>> {
    let (mut entries, mut bitmap, mut flip) = (512u32, 1u32, false);
    while u64::from(entries) * u64::from(bitmap) * 4096 < size {
        flip = !flip;
        if flip {
            bitmap *= 2;
        } else {
            entries *= 2;
        }
        if bitmap * 4096 > MAX_EXTENT || entries > MAX_CATALOG {
            return Err(Error::invalid(format!("a Bochs image cannot have {size} bytes")));
        }
    }
    let mut raw = RawHeader {
        magic: [0; 32],
        kind: [0; 16],
        subtype: [0; 16],
        version: VERSION_2.into(),
        header: 512.into(),
        catalog: entries.into(),
        bitmap: bitmap.into(),
        extent: (bitmap * 4096).into(),
        stamp: 0.into(),
        disk: size.into(),
    };
    put(&mut raw.magic, MAGIC);
    put(&mut raw.kind, TYPE);
    put(&mut raw.subtype, b"Growing");
    let mut bytes = raw.as_bytes().to_vec();
    bytes.resize(HEADER_LEN, 0);
    Ok(bytes)
}

fn put(field: &mut [u8], text: &[u8]) {
    if let Some(start) = field.get_mut(..text.len()) {
        start.copy_from_slice(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn every_bad_field_is_refused_by_name() {
        let cases: &[(&str, usize, u32)] = &[
            ("header size", 68, 0),
            ("catalog size", 72, u32::MAX),
            ("catalog size", 72, 0x4000_0000),
            ("catalog size", 72, 0x10_0001),
            ("catalog size", 72, 1),
            ("bitmap size", 76, u32::MAX),
            ("bitmap size", 76, 0),
            ("extent size", 80, 0),
            ("extent size", 80, 511),
            ("extent size", 80, 0x3000),
            ("extent size", 80, 1 << 31),
            ("disk size", 92, 0x8000_0000),
        ];
        for (word, at, value) in cases {
            let mut bytes = new_header(10 << 20).unwrap();
            bytes[*at..at + 4].copy_from_slice(&value.to_le_bytes());
            let error = check(&bytes).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
    }

    #[test]
    fn a_size_past_the_largest_catalog_is_refused() {
        assert!(new_header(8 << 40).is_ok());
        assert_eq!(new_header(9 << 40).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
}
