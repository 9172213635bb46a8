//! User-mode Linux COW files on disk: a header, a bitmap with a bit a sector (bit 0 of byte 0 is sector 0), then the sectors at their
//! own places. Source: User-mode Linux' cow.h and cow_user.c. Version 1 has the byte order of the machine that wrote it, 2 and 3 are
//! big-endian.

use zerocopy::big_endian::{I64, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::formats::common::text;
use crate::{Error, Result};

/// `OOOM`: the magic in big-endian byte order.
pub(super) const MAGIC: [u8; 4] = *b"OOOM";
/// The magic of a version 1 file from a little-endian machine.
pub(super) const MAGIC_SWAPPED: [u8; 4] = *b"MOOO";
/// Bytes for the backing file's name in version 3, the terminator included.
pub(super) const NAME_LEN: usize = 4096;
/// Alignment of bitmap and data in new files.
pub(super) const ALIGNMENT: u32 = 4096;

#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader1 {
    magic: [u8; 4],
    version: U32,
    backing: [u8; 256],
    mtime: U32,
    size: U64,
    sector: U32,
}
const _: () = assert!(size_of::<RawHeader1>() == 280);

#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader2 {
    magic: [u8; 4],
    version: U32,
    backing: [u8; NAME_LEN],
    mtime: U32,
    size: U64,
    sector: U32,
}
const _: () = assert!(size_of::<RawHeader2>() == 4120);

/// Version 3 as stored.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawHeader3 {
    /// `OOOM`.
    pub magic: [u8; 4],
    /// 3.
    pub version: U32,
    /// Modification time of the backing file when the COW file was made, in seconds since 1970.
    pub mtime: U32,
    /// Virtual size in bytes: that of the backing file.
    pub size: U64,
    /// Bytes of a sector.
    pub sector: U32,
    /// Bitmap and data stand at multiples of this.
    pub alignment: U32,
    /// 0: bitmap.
    pub format: U32,
    /// Name of the backing file, ended by NUL.
    pub backing: [u8; NAME_LEN],
}
const _: () = assert!(size_of::<RawHeader3>() == 4128);

/// Version 3 as some 64-bit kernels wrote it.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader3Wide {
    magic: [u8; 4],
    version: U32,
    mtime: I64,
    size: U64,
    sector: U32,
    alignment: U32,
    format: U32,
    backing: [u8; NAME_LEN],
}
const _: () = assert!(size_of::<RawHeader3Wide>() == 4132);

/// Bytes to read for any version.
pub(super) const MAX_HEADER: usize = size_of::<RawHeader3Wide>();

/// A header whose numbers are good.
#[derive(Debug, Clone)]
pub(super) struct Header {
    /// 1 to 3.
    pub version: u32,
    /// Virtual size in bytes.
    pub size: u64,
    /// Bytes of a sector, a power of two.
    pub sector: u64,
    /// Where the bitmap is.
    pub bitmap_at: u64,
    /// Its bytes.
    pub bitmap_len: u64,
    /// Where sector 0 is.
    pub data_at: u64,
    /// Name of the backing file; empty for none.
    pub backing: String,
    /// Modification time of the backing file.
    pub mtime: u64,
}

/// Checks a header of any version.
///
/// # Errors
/// `NotThisFormat`, `Unsupported`, `Corrupt` with the field's name.
pub(super) fn check(bytes: &[u8]) -> Result<Header> {
    let magic = bytes.get(..4).unwrap_or_default();
    let swapped = magic == MAGIC_SWAPPED;
    if magic != MAGIC && !swapped {
        return Err(Error::not_this_format("no COW magic at offset 0"));
    }
    let version = U32::read_from_bytes(bytes.get(4..8).unwrap_or_default()).map_or(0, |v| v.get());
    match (version, swapped) {
        (1, false) => version_1(bytes, false),
        (0x0100_0000, true) => version_1(bytes, true),
        (2, false) => version_2(bytes),
        (3, false) => version_3(bytes),
        _ => Err(Error::not_this_format(format!("unknown COW version {version:#x}"))),
    }
}

fn short<T>(_: T) -> Error {
    Error::corrupt("the COW header is cut short")
}

fn version_1(bytes: &[u8], swapped: bool) -> Result<Header> {
    let raw = RawHeader1::read_from_prefix(bytes).map_err(short)?.0;
    let (mut size, mut sector, mut mtime) = (raw.size.get(), raw.sector.get(), raw.mtime.get());
    if swapped {
        (size, sector, mtime) = (size.swap_bytes(), sector.swap_bytes(), mtime.swap_bytes());
    }
    old(1, size, sector, mtime, &raw.backing, size_of::<RawHeader1>())
}

fn version_2(bytes: &[u8]) -> Result<Header> {
    let raw = RawHeader2::read_from_prefix(bytes).map_err(short)?.0;
    let (size, sector, mtime) = (raw.size.get(), raw.sector.get(), raw.mtime.get());
    old(2, size, sector, mtime, &raw.backing, size_of::<RawHeader2>())
}

fn check_sizes(size: u64, sector: u32) -> Result<u64> {
    if !sector.is_power_of_two() || !(512..=65536).contains(&sector) {
        return Err(Error::corrupt(format!("sector size {sector} is invalid")));
    }
    if size > i64::MAX as u64 {
        return Err(Error::corrupt(format!("size {size:#x} is too large")));
    }
    Ok(sector.into())
}

/// Versions 1 and 2: the bitmap follows the header at once, the data at the next sector.
fn old(version: u32, size: u64, sector: u32, mtime: u32, backing: &[u8], header: usize) -> Result<Header> {
    let sector = check_sizes(size, sector)?;
    let bitmap_at = header as u64;
    let said = (size + sector - 1) / (8 * sector);
    let data_at = (bitmap_at + said).next_multiple_of(sector);
    Ok(Header {
        version,
        size,
        sector,
        bitmap_at,
        // The length is rounded down; the bits of the last sectors use the padding before the data.
        bitmap_len: size.div_ceil(sector).div_ceil(8).min(data_at - bitmap_at),
        data_at,
        backing: text(backing, "the backing file name")?,
        mtime: mtime.into(),
    })
}

fn version_3(bytes: &[u8]) -> Result<Header> {
    let raw = RawHeader3::read_from_prefix(bytes).map_err(short)?.0;
    let narrow = new_layout(
        raw.size.get(),
        [raw.sector.get(), raw.alignment.get(), raw.format.get()],
        &raw.backing,
        size_of::<RawHeader3>(),
        raw.mtime.get().into(),
    );
    let Ok(wide) = RawHeader3Wide::read_from_prefix(bytes) else {
        return narrow;
    };
    let wide = wide.0;
    // In the wide variant the high half of the time stands where the time is: the sector size tells the variants apart.
    if narrow.is_ok() || check_sizes(0, wide.sector.get()).is_err() {
        return narrow;
    }
    new_layout(
        wide.size.get(),
        [wide.sector.get(), wide.alignment.get(), wide.format.get()],
        &wide.backing,
        size_of::<RawHeader3Wide>(),
        u64::try_from(wide.mtime.get()).unwrap_or(0),
    )
}

fn new_layout(size: u64, fields: [u32; 3], backing: &[u8], header: usize, mtime: u64) -> Result<Header> {
    let [sector, alignment, format] = fields;
    let sector = check_sizes(size, sector)?;
    if !alignment.is_power_of_two() || alignment > 1 << 24 {
        return Err(Error::corrupt(format!("alignment {alignment} is invalid")));
    }
    if format != 0 {
        return Err(Error::unsupported(format!(
            "COW bitmap format {format} is not supported"
        )));
    }
    let bitmap_at = (header as u64).next_multiple_of(alignment.into());
    let bitmap_len = size.div_ceil(sector).div_ceil(8);
    Ok(Header {
        version: 3,
        size,
        sector,
        bitmap_at,
        bitmap_len,
        data_at: (bitmap_at + bitmap_len).next_multiple_of(alignment.into()),
        backing: text(backing, "the backing file name")?,
        mtime,
    })
}

/// A backing file's name as its field.
///
/// # Errors
/// `InvalidArgument` when it does not fit.
pub(super) fn name_field(name: &str) -> Result<[u8; NAME_LEN]> {
    let mut field = [0; NAME_LEN];
    match field.get_mut(..name.len()) {
        Some(start) if name.len() < NAME_LEN && !name.contains('\0') => start.copy_from_slice(name.as_bytes()),
        _ => {
            return Err(Error::invalid(format!(
                "a backing file name takes at most {} bytes",
                NAME_LEN - 1
            )));
        }
    }
    Ok(field)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn valid() -> RawHeader3 {
        RawHeader3 {
            magic: MAGIC,
            version: 3.into(),
            mtime: 1.into(),
            size: (4 << 20).into(),
            sector: 512.into(),
            alignment: ALIGNMENT.into(),
            format: 0.into(),
            backing: name_field("base").unwrap(),
        }
    }

    #[test]
    fn the_data_starts_where_user_mode_linux_has_it() {
        let header = check(valid().as_bytes()).unwrap();
        assert_eq!((header.bitmap_at, header.data_at), (8192, 12288));
    }

    type Change = fn(&mut RawHeader3);

    #[test]
    fn every_bad_field_is_refused_by_name() {
        let cases: &[(&str, Change)] = &[
            ("sector size", |h| h.sector = 0.into()),
            ("sector size", |h| h.sector = 513.into()),
            ("sector size", |h| h.sector = (1 << 31).into()),
            ("alignment", |h| h.alignment = 0.into()),
            ("alignment", |h| h.alignment = u32::MAX.into()),
            ("alignment", |h| h.alignment = (1 << 31).into()),
            ("size", |h| h.size = u64::MAX.into()),
        ];
        for (word, change) in cases {
            let mut header = valid();
            change(&mut header);
            let error = check(header.as_bytes()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
    }

    #[test]
    fn version_1_has_the_byte_order_of_its_machine() {
        let mut bytes = [&b"MOOO"[..], &1u32.to_le_bytes(), b"base"].concat();
        bytes.resize(264, 0);
        bytes.extend(
            [
                &7u32.to_le_bytes()[..],
                &(1u64 << 20).to_le_bytes(),
                &512u32.to_le_bytes(),
            ]
            .concat(),
        );
        let header = check(&bytes).unwrap();
        assert_eq!(
            (header.size, header.sector, header.backing.as_str()),
            (1 << 20, 512, "base")
        );
        assert_eq!((header.bitmap_at, header.data_at), (280, 1024));
    }
}
