//! Parallels expandable images on disk: little-endian header and BAT. Source: QEMU's docs/interop/parallels and libphdi's description.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{Error, Result};

/// The older magic: BAT entries count sectors, the size has 32 bits.
pub(super) const MAGIC_OLD: [u8; 16] = *b"WithoutFreeSpace";
/// The newer magic: BAT entries count clusters.
pub(super) const MAGIC_EXT: [u8; 16] = *b"WithouFreSpacExt";
/// `inuse` of an image that somebody writes to, or did not close.
pub(super) const IN_USE: u32 = 0x746f_6e59;
/// `flags`: there is nothing in the image. Not believed, but taken away when it stops being true.
pub(super) const EMPTY: u32 = 1;
/// Heads and sectors of the geometry that new images claim.
const HEADS: u64 = 16;
const SECTORS_PER_CYLINDER: u64 = 32;
/// Largest cluster in sectors, QEMU's bound.
const MAX_TRACKS: u32 = i32::MAX as u32 / 513;

/// The header as stored. The BAT, an array of 32-bit numbers, follows at once.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawHeader {
    /// One of the two magics.
    pub magic: [u8; 16],
    /// 2.
    pub version: U32,
    /// Heads of the geometry.
    pub heads: U32,
    /// Cylinders of the geometry.
    pub cylinders: U32,
    /// Sectors of a cluster.
    pub tracks: U32,
    /// Entries of the BAT.
    pub bat_entries: U32,
    /// Virtual size in sectors; with the older magic the low 32 bits alone.
    pub nb_sectors: U64,
    /// [`IN_USE`] or anything else.
    pub in_use: U32,
    /// First sector of the data; 0 in older images: right behind the BAT.
    pub data_off: U32,
    /// Flags: [`EMPTY`] or nothing.
    pub flags: U32,
    /// First sector of the format extension cluster, 0 for none.
    pub ext_off: U64,
}

/// Bytes of [`RawHeader`].
pub(super) const HEADER_LEN: usize = size_of::<RawHeader>();
const _: () = assert!(HEADER_LEN == 64);

/// A header whose numbers are good.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    /// As stored, to be written back.
    pub raw: RawHeader,
    /// Bytes of a cluster.
    pub cluster: u64,
    /// Bytes that one step of a BAT entry stands for.
    pub step: u64,
    /// Virtual size in bytes.
    pub size: u64,
    /// First byte where data can be.
    pub data_start: u64,
    /// `data_off` contradicts the BAT or the file.
    pub data_off_is_wrong: bool,
}

impl Header {
    /// Whether somebody writes to the image or did not close it.
    pub fn in_use(&self) -> bool {
        self.raw.in_use.get() == IN_USE
    }
    /// Data starts behind the BAT where a cluster of it lies before the data offset: that is wrong, not the cluster.
    pub fn mind_clusters(&mut self, entries: &[u32], file_len: u64) {
        let least = data_start(self.bat_end(), self.cluster, self.is_old());
        let early = |entry: &u32| {
            let at = u64::from(*entry) * self.step;
            (least..self.data_start).contains(&at) && at + self.cluster <= file_len
        };
        if entries.iter().any(early) {
            (self.data_start, self.data_off_is_wrong) = (least, true);
        }
    }
    /// Bytes of header and BAT.
    pub fn bat_end(&self) -> u64 {
        bat_end(self.raw.bat_entries.get().into())
    }
    /// Whether BAT entries count sectors.
    pub fn is_old(&self) -> bool {
        self.raw.magic == MAGIC_OLD
    }
    /// Largest virtual size in bytes that the header can say.
    pub fn max_size(&self) -> u64 {
        let by_bat = u64::from(u32::MAX / 4).saturating_mul(self.cluster);
        if self.is_old() {
            by_bat.min(u64::from(u32::MAX) * 512)
        } else {
            by_bat
        }
    }
}

/// Bytes of the BAT of a disk.
pub(super) fn bat_bytes(size: u64, cluster: u64) -> u64 {
    size.div_ceil(cluster).saturating_mul(4)
}

/// Bytes of header and a BAT of so many entries.
pub(super) fn bat_end(entries: u64) -> u64 {
    HEADER_LEN as u64 + entries.saturating_mul(4)
}

/// Where data starts when header and BAT take `bat_end` bytes.
pub(super) fn data_start(bat_end: u64, cluster: u64, old: bool) -> u64 {
    bat_end.next_multiple_of(if old { 512 } else { cluster })
}

/// Checks a header against the specification and the length of the file.
///
/// # Errors
/// `NotThisFormat`, `Corrupt` with the field's name.
pub(super) fn check(bytes: &[u8], file_len: u64) -> Result<Header> {
    let short = |_| Error::not_this_format("shorter than a Parallels header");
    let raw = RawHeader::read_from_prefix(bytes).map_err(short)?.0;
    let old = raw.magic == MAGIC_OLD;
    if !old && raw.magic != MAGIC_EXT {
        return Err(Error::not_this_format("no Parallels magic at offset 0"));
    }
    if raw.version.get() != 2 {
        return Err(Error::not_this_format(format!(
            "Parallels version {} where 2 was expected",
            raw.version
        )));
    }
    let tracks = raw.tracks.get();
    if tracks == 0 {
        return Err(Error::corrupt("invalid image: zero sectors per track"));
    }
    if tracks > MAX_TRACKS {
        return Err(Error::corrupt(format!(
            "invalid image: too big cluster of {tracks} sectors"
        )));
    }
    let entries = raw.bat_entries.get();
    let end = bat_end(entries.into());
    if entries > i32::MAX as u32 / 4 || end > file_len {
        return Err(Error::corrupt(format!(
            "catalog too large: {entries} entries in a file of {file_len} bytes"
        )));
    }
    let cluster = u64::from(tracks) * 512;
    let sectors = raw.nb_sectors.get();
    let sectors = if old { sectors & 0xffff_ffff } else { sectors };
    let size = sectors
        .checked_mul(512)
        .filter(|s| *s <= u64::from(entries) * cluster)
        .ok_or_else(|| {
            Error::corrupt(format!(
                "{entries} BAT entries cannot map the {sectors} sectors of the disk"
            ))
        })?;
    let least = data_start(end, cluster, old);
    let said = u64::from(raw.data_off.get()) * 512;
    let absent = said == 0 && old;
    let wrong = !absent && (said < least || said > file_len);
    Ok(Header {
        raw,
        cluster,
        step: if old { 512 } else { cluster },
        size,
        data_start: if absent || wrong { least } else { said },
        data_off_is_wrong: wrong,
    })
}

/// Header of a new image.
///
/// # Errors
/// `InvalidArgument` for sizes that the header cannot say.
pub(super) fn new_header(size: u64, cluster: u64) -> Result<RawHeader> {
    let tracks = u32::try_from(cluster / 512).ok().filter(|t| *t > 0 && *t <= MAX_TRACKS);
    let tracks = tracks.ok_or_else(|| Error::invalid(format!("cluster size {cluster} is out of range")))?;
    let entries = size.div_ceil(cluster);
    let data_off = data_start(bat_end(entries), cluster, false) / 512;
    let narrow = |n: u64| {
        u32::try_from(n).map_err(|_| Error::invalid(format!("image size {size} is too large for this cluster size")))
    };
    if entries > i32::MAX as u64 / 4 {
        narrow(u64::MAX)?;
    }
    Ok(RawHeader {
        magic: MAGIC_EXT,
        version: 2.into(),
        heads: 16.into(),
        cylinders: cylinders(size).into(),
        tracks: tracks.into(),
        bat_entries: narrow(entries)?.into(),
        nb_sectors: size.div_ceil(512).into(),
        in_use: 0.into(),
        data_off: narrow(data_off)?.into(),
        flags: 0.into(),
        ext_off: 0.into(),
    })
}

/// Cylinders of the geometry for a size in bytes; the field is of no use and wraps as QEMU's does.
pub(super) fn cylinders(size: u64) -> u32 {
    let cylinders = size / 512 / HEADS / SECTORS_PER_CYLINDER;
    u32::try_from(cylinders & 0xffff_ffff).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    type Change = fn(&mut RawHeader);

    #[test]
    fn every_bad_field_is_refused_by_name() {
        let cases: &[(&str, Change)] = &[
            ("zero sectors per track", |h| h.tracks = 0.into()),
            ("too big cluster", |h| h.tracks = u32::MAX.into()),
            ("catalog too large", |h| h.bat_entries = u32::MAX.into()),
            ("catalog too large", |h| h.bat_entries = 0x1fff_ffff.into()),
            ("cannot map", |h| h.nb_sectors = (1 << 63).into()),
            ("cannot map", |h| h.nb_sectors = u64::MAX.into()),
            ("cannot map", |h| h.tracks = 1.into()),
        ];
        for (word, change) in cases {
            let mut header = new_header(10 << 20, 1 << 20).unwrap();
            change(&mut header);
            let error = check(header.as_bytes(), 1 << 20).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
    }

    #[test]
    fn a_wrong_data_offset_is_seen() {
        let mut header = new_header(10 << 20, 1 << 20).unwrap();
        header.data_off = u32::MAX.into();
        let checked = check(header.as_bytes(), 1 << 20).unwrap();
        assert_eq!((checked.data_off_is_wrong, checked.data_start), (true, 1 << 20));
    }
}
