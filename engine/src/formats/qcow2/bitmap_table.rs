//! The directory of persistent dirty bitmaps and their tables.

use super::layout::extensions::{MAX_BITMAP_DIRECTORY, MAX_BITMAPS, text};
use super::layout::header::MAX_HOST_OFFSET;
use super::layout::{BitmapsExtension, Geometry, be32, be64, words_from_be};
use crate::storage::Storage;
use crate::{Error, Result};

/// Bytes of a directory entry before extra data and name.
const FIXED: usize = 24;
const IN_USE: u32 = 1;
const AUTO: u32 = 2;
const EXTRA_COMPATIBLE: u32 = 4;
const DIRTY_TRACKING: u8 = 1;
/// QEMU's bounds.
const GRANULARITY_BITS: std::ops::RangeInclusive<u8> = 9..=31;
pub(super) const MAX_NAME: usize = 1023;
const MAX_TABLE_ENTRIES: u32 = 0x800_0000;
/// Bytes of the bits of one bitmap.
pub(super) const MAX_BYTES: u64 = 0x2000_0000;

/// One bitmap as the directory has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bitmap {
    pub name: String,
    pub table_offset: u64,
    pub table_size: u32,
    /// Was not saved properly: its bits must not be trusted.
    pub in_use: bool,
    /// Records writes.
    pub auto: bool,
    pub granularity_bits: u8,
    pub extra: Vec<u8>,
    pub extra_compatible: bool,
}

/// Where one cluster of a bitmap's bits is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BitmapCluster {
    Zeroes,
    Ones,
    At(u64),
}

impl BitmapCluster {
    pub fn decode(raw: u64, geometry: &Geometry) -> Result<Self> {
        let at = raw & 0x00ff_ffff_ffff_fe00;
        if at == 0 && raw <= 1 {
            return Ok(if raw == 1 { Self::Ones } else { Self::Zeroes });
        }
        if raw != at || geometry.in_cluster(at) != 0 {
            return Err(Error::corrupt(format!("bitmap table entry {raw:#x} makes no sense")));
        }
        Ok(Self::At(at))
    }
    pub fn encode(self) -> u64 {
        match self {
            Self::Zeroes => 0,
            Self::Ones => 1,
            Self::At(at) => at,
        }
    }
}

impl Bitmap {
    fn encode(&self, out: &mut Vec<u8>) {
        let flag = |on: bool, bit: u32| if on { bit } else { 0 };
        let flags = flag(self.in_use, IN_USE) | flag(self.auto, AUTO) | flag(self.extra_compatible, EXTRA_COMPATIBLE);
        out.extend_from_slice(&self.table_offset.to_be_bytes());
        out.extend_from_slice(&self.table_size.to_be_bytes());
        out.extend_from_slice(&flags.to_be_bytes());
        out.extend_from_slice(&[DIRTY_TRACKING, self.granularity_bits]);
        out.extend_from_slice(&(self.name.len() as u16).to_be_bytes());
        out.extend_from_slice(&(self.extra.len() as u32).to_be_bytes());
        out.extend_from_slice(&self.extra);
        out.extend_from_slice(self.name.as_bytes());
        out.resize(out.len().next_multiple_of(8), 0);
    }

    /// Guest bytes a bit stands for.
    pub fn granularity(&self) -> u64 {
        1 << self.granularity_bits
    }

    fn check(&self, kind: u8, flags: u32, geometry: &Geometry) -> Result<()> {
        if kind != DIRTY_TRACKING {
            return Err(Error::unsupported(format!("bitmap type {kind} is not known")));
        }
        if flags & !(IN_USE | AUTO | EXTRA_COMPATIBLE) != 0 {
            return Err(Error::corrupt(format!("bitmap flags {flags:#x} are not known")));
        }
        if !self.extra.is_empty() && !self.extra_compatible {
            return Err(Error::unsupported("the bitmap has extra data that must be understood"));
        }
        if !GRANULARITY_BITS.contains(&self.granularity_bits) {
            return Err(Error::corrupt(format!(
                "bitmap granularity 2^{} is not possible",
                self.granularity_bits
            )));
        }
        let too_large = self.table_size > MAX_TABLE_ENTRIES
            || u64::from(self.table_size) > MAX_BYTES >> geometry.cluster_bits.min(29);
        if self.table_size == 0 || too_large {
            return Err(Error::corrupt(format!(
                "a bitmap table of {} entries is not possible",
                self.table_size
            )));
        }
        let at = self.table_offset;
        if at == 0 || at > MAX_HOST_OFFSET || geometry.in_cluster(at) != 0 {
            return Err(Error::corrupt(format!("a bitmap table cannot be at {at:#x}")));
        }
        Ok(())
    }

    /// Reads the table that says where the bits are.
    pub fn table(&self, storage: &dyn Storage) -> Result<Vec<u64>> {
        let len = self.table_size as usize * 8;
        Ok(words_from_be(&crate::storage::read_vec(
            storage,
            self.table_offset,
            len,
        )?))
    }
}

/// Reads the directory.
///
/// # Errors
/// `Corrupt` for a directory that makes no sense.
pub(super) fn read(storage: &dyn Storage, extension: &BitmapsExtension, geometry: &Geometry) -> Result<Vec<Bitmap>> {
    let (count, size, at) = (extension.count, extension.directory_size, extension.directory_offset);
    if count == 0 || count > MAX_BITMAPS {
        return Err(Error::corrupt(format!("{count} bitmaps are not possible")));
    }
    if size > MAX_BITMAP_DIRECTORY || size < u64::from(count) * FIXED as u64 {
        return Err(Error::corrupt(format!(
            "a bitmap directory of {size} bytes is not possible"
        )));
    }
    if at == 0 || at > MAX_HOST_OFFSET || geometry.in_cluster(at) != 0 {
        return Err(Error::corrupt(format!("the bitmap directory cannot be at {at:#x}")));
    }
    let bytes = crate::storage::read_vec(storage, at, size as usize)?;
    let mut list: Vec<Bitmap> = Vec::new();
    let mut rest = bytes.as_slice();
    for _ in 0..count {
        let (bitmap, len) = read_one(rest, geometry)?;
        rest = rest.get(len..).unwrap_or_default();
        if list.iter().any(|b| b.name == bitmap.name) {
            return Err(Error::corrupt(format!(
                "two bitmaps have the name \"{}\"",
                bitmap.name.escape_debug()
            )));
        }
        list.push(bitmap);
    }
    Ok(list)
}

fn read_one(bytes: &[u8], geometry: &Geometry) -> Result<(Bitmap, usize)> {
    let flags = be32(bytes, 12)?;
    let extra_len = be32(bytes, 20)? as usize;
    let name_len = (be32(bytes, 16)? & 0xffff) as usize;
    if name_len == 0 || name_len > MAX_NAME {
        return Err(Error::corrupt(format!(
            "a bitmap name of {name_len} bytes is not possible"
        )));
    }
    let short = || Error::corrupt("the bitmap directory ends inside an entry");
    let extra = bytes.get(FIXED..).and_then(|b| b.get(..extra_len)).ok_or_else(short)?;
    let name = bytes
        .get(FIXED + extra_len..)
        .and_then(|b| b.get(..name_len))
        .ok_or_else(short)?;
    let bitmap = Bitmap {
        name: text("bitmap name", name)?,
        table_offset: be64(bytes, 0)?,
        table_size: be32(bytes, 8)?,
        in_use: flags & IN_USE != 0,
        auto: flags & AUTO != 0,
        granularity_bits: bytes.get(17).copied().unwrap_or(0),
        extra: extra.to_vec(),
        extra_compatible: flags & EXTRA_COMPATIBLE != 0,
    };
    bitmap.check(bytes.get(16).copied().unwrap_or(0), flags, geometry)?;
    let len = (FIXED + extra_len + name_len).next_multiple_of(8);
    Ok((bitmap, len))
}

/// The bytes of a whole directory.
pub(super) fn encode(list: &[Bitmap]) -> Vec<u8> {
    let mut out = Vec::new();
    list.iter().for_each(|b| b.encode(&mut out));
    out
}
