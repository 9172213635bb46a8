//! QCOW version 1 on disk: big-endian header, L1 and L2 tables of 64-bit entries. Source: QEMU's block/qcow.c and libqcow's description.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{Error, Result};

/// First bytes of every image, shared with qcow2.
pub(super) const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Places are at multiples of this, those of compressed clusters apart.
pub(super) const SECTOR: u64 = 512;
/// Longest backing file name.
pub(super) const MAX_NAME: u64 = 1023;

/// The header as stored.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawHeader {
    /// `QFI\xfb`.
    pub magic: [u8; 4],
    /// 1.
    pub version: U32,
    /// Where the backing file's name is; 0 for none.
    pub backing_offset: U64,
    /// Bytes of that name.
    pub backing_size: U32,
    /// Modification time; nobody uses it.
    pub mtime: U32,
    /// Virtual size in bytes.
    pub size: U64,
    /// Cluster size as a power of two, 9 to 16.
    pub cluster_bits: u8,
    /// Entries of an L2 table as a power of two, 6 to 13.
    pub l2_bits: u8,
    /// Not used.
    pub padding: U16,
    /// 0 for none, 1 for AES-128-CBC.
    pub crypt_method: U32,
    /// Where the L1 table is.
    pub l1_table_offset: U64,
}

/// Bytes of [`RawHeader`].
pub(super) const HEADER_LEN: usize = size_of::<RawHeader>();
const _: () = assert!(HEADER_LEN == 48);

/// A header whose numbers are good.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    /// Cluster size as a power of two.
    pub cluster_bits: u32,
    /// Entries of an L2 table.
    pub l2_entries: u64,
    /// Virtual size in bytes: whole sectors.
    pub size: u64,
    /// Where the L1 table is.
    pub l1_offset: u64,
    /// Its entries.
    pub l1_entries: u64,
    /// Place and length of the backing file's name.
    pub backing: Option<(u64, u64)>,
    /// Whether guest data is encrypted.
    pub encrypted: bool,
}

/// Checks a header, with QEMU's bounds.
///
/// # Errors
/// `NotThisFormat`, `Unsupported`, `Corrupt` with the field's name.
pub(super) fn check(bytes: &[u8]) -> Result<Header> {
    let short = |_| Error::not_this_format("shorter than a qcow header");
    let raw = RawHeader::read_from_prefix(bytes).map_err(short)?.0;
    if raw.magic != MAGIC {
        return Err(Error::not_this_format("no qcow magic at offset 0"));
    }
    if raw.version.get() != 1 {
        return Err(Error::not_this_format(format!(
            "qcow version {} where 1 was expected",
            raw.version
        )));
    }
    let size = raw.size.get();
    if size <= 1 {
        return Err(Error::corrupt("image size is too small (must be at least 2 bytes)"));
    }
    if !(9..=16).contains(&raw.cluster_bits) {
        return Err(Error::corrupt(format!(
            "cluster size must be between 512 and 64k, not 2^{}",
            raw.cluster_bits
        )));
    }
    if !(6..=13).contains(&raw.l2_bits) {
        return Err(Error::corrupt(format!(
            "L2 table size must be between 512 and 64k, not 2^{} entries",
            raw.l2_bits
        )));
    }
    let shift = u32::from(raw.cluster_bits) + u32::from(raw.l2_bits);
    if size > i64::MAX as u64 {
        return Err(Error::corrupt(format!("image size {size:#x} is too large")));
    }
    Ok(Header {
        cluster_bits: raw.cluster_bits.into(),
        l2_entries: 1 << raw.l2_bits,
        size: size & !(SECTOR - 1),
        l1_offset: l1_offset(&raw)?,
        l1_entries: size.div_ceil(1 << shift),
        backing: backing(&raw)?,
        encrypted: encrypted(&raw)?,
    })
}

fn l1_offset(raw: &RawHeader) -> Result<u64> {
    match raw.l1_table_offset.get() {
        at if at < HEADER_LEN as u64 => Err(Error::corrupt(format!("L1 table at {at:#x} lies in the header"))),
        at => Ok(at),
    }
}

fn backing(raw: &RawHeader) -> Result<Option<(u64, u64)>> {
    let (at, len) = (raw.backing_offset.get(), u64::from(raw.backing_size.get()));
    if at == 0 {
        return Ok(None);
    }
    if len > MAX_NAME || at < HEADER_LEN as u64 {
        return Err(Error::corrupt(format!(
            "backing file name of {len} bytes at {at:#x} is too long or lies in the header"
        )));
    }
    Ok((len > 0).then_some((at, len)))
}

fn encrypted(raw: &RawHeader) -> Result<bool> {
    match raw.crypt_method.get() {
        0 => Ok(false),
        1 => Ok(true),
        n => Err(Error::corrupt(format!(
            "invalid encryption method {n} in the qcow header"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn valid() -> RawHeader {
        RawHeader {
            magic: MAGIC,
            version: 1.into(),
            backing_offset: 0.into(),
            backing_size: 0.into(),
            mtime: 0.into(),
            size: (10 << 20).into(),
            cluster_bits: 12,
            l2_bits: 9,
            padding: 0.into(),
            crypt_method: 0.into(),
            l1_table_offset: 48.into(),
        }
    }

    type Change = fn(&mut RawHeader);

    #[test]
    fn every_bad_field_is_refused_by_name() {
        let cases: &[(&str, Change)] = &[
            ("cluster size", |h| h.cluster_bits = 8),
            ("cluster size", |h| h.cluster_bits = 17),
            ("cluster size", |h| h.cluster_bits = 31),
            ("cluster size", |h| h.cluster_bits = 255),
            ("L2 table size", |h| h.l2_bits = 5),
            ("L2 table size", |h| h.l2_bits = 14),
            ("L2 table size", |h| h.l2_bits = 27),
            ("L2 table size", |h| h.l2_bits = 255),
            ("image size", |h| h.size = 0.into()),
            ("image size", |h| h.size = 1.into()),
            ("image size", |h| h.size = 0xeeee_eeee_eeee_eeee.into()),
            ("image size", |h| h.size = u64::MAX.into()),
            ("L1 table", |h| h.l1_table_offset = 0.into()),
            ("encryption method", |h| h.crypt_method = 2.into()),
            ("backing file name", |h| {
                h.backing_offset = 48.into();
                h.backing_size = 1024.into();
            }),
            ("backing file name", |h| {
                h.backing_offset = 48.into();
                h.backing_size = 0x7fff_ffff.into();
            }),
            ("backing file name", |h| {
                h.backing_offset = 4.into();
                h.backing_size = 5.into();
            }),
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
    fn a_qcow2_header_is_not_this_format() {
        let mut header = valid();
        header.version = 2.into();
        assert_eq!(check(header.as_bytes()).unwrap_err().kind(), ErrorKind::NotThisFormat);
    }
}
