//! QED on disk, after QEMU's docs/interop/qed_spec: little-endian header, tables of 64-bit offsets.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{Error, Result};

/// First bytes of every image.
pub(super) const MAGIC: [u8; 4] = *b"QED\0";
/// Feature: there is a backing file name.
pub(super) const BACKING_FILE: u64 = 1;
/// Feature: the image was not closed properly; tables must be checked before the image is changed.
pub(super) const NEED_CHECK: u64 = 2;
/// Feature: the backing file is raw and is not to be probed.
pub(super) const BACKING_IS_RAW: u64 = 4;
const KNOWN: u64 = BACKING_FILE | NEED_CHECK | BACKING_IS_RAW;
/// Longest backing file name that QEMU takes.
pub(super) const MAX_NAME: u64 = 1023;

/// The header as stored.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawHeader {
    /// `QED\0`.
    pub magic: [u8; 4],
    /// Bytes of a cluster: a power of two from 4 KiB to 64 MiB.
    pub cluster_size: U32,
    /// Clusters of an L1 or L2 table: a power of two from 1 to 16.
    pub table_size: U32,
    /// Clusters of the header.
    pub header_size: U32,
    /// Features that a program must know to open the image.
    pub features: U64,
    /// Features that a program need not know.
    pub compat_features: U64,
    /// Features that a program clears when it does not know them and changes the image.
    pub autoclear_features: U64,
    /// Where the L1 table is.
    pub l1_table_offset: U64,
    /// Virtual size in bytes, a multiple of 512.
    pub image_size: U64,
    /// Where the backing file's name is, from the start of the file; inside the header's clusters.
    pub backing_offset: U32,
    /// Bytes of the name, without a terminator.
    pub backing_size: U32,
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
    /// Bytes of the header's clusters.
    pub header_bytes: u64,
    /// Bytes of a table.
    pub table_bytes: u64,
    /// Virtual size.
    pub size: u64,
}

impl Header {
    /// Entries of a table.
    pub fn entries(&self) -> u64 {
        self.table_bytes / 8
    }
    /// Largest virtual size the tables can map.
    pub fn max_size(&self) -> u64 {
        max_size(self.cluster, self.table_bytes)
    }
    /// Whether a feature is set.
    pub fn has(&self, feature: u64) -> bool {
        self.raw.features.get() & feature != 0
    }
    /// Entries of L1 that the virtual size needs.
    pub fn l1_entries(&self) -> u64 {
        self.size.div_ceil(self.cluster.saturating_mul(self.entries()))
    }
}

/// Largest virtual size for clusters and tables of these sizes; sizes past 2^63 are of no use.
pub(super) fn max_size(cluster: u64, table_bytes: u64) -> u64 {
    let entries = u128::from(table_bytes / 8);
    let bytes = entries * entries * u128::from(cluster);
    u64::try_from(bytes).unwrap_or(u64::MAX).min(i64::MAX as u64 & !511)
}

/// Whether a cluster size is one of the format's.
pub(super) fn cluster_size_is_valid(bytes: u64) -> bool {
    bytes.is_power_of_two() && (4096..=64 << 20).contains(&bytes)
}

/// Whether a table can have this many clusters.
pub(super) fn table_size_is_valid(clusters: u64) -> bool {
    clusters.is_power_of_two() && clusters <= 16
}

/// Checks a header against the rules of the specification and the length of the file.
///
/// # Errors
/// `NotThisFormat`, `Unsupported` for unknown features, `Corrupt` with the field's name.
pub(super) fn check(bytes: &[u8], file_len: u64) -> Result<Header> {
    let raw = RawHeader::read_from_prefix(bytes).map_err(|_| Error::not_this_format("shorter than a QED header"))?;
    let raw = raw.0;
    if raw.magic != MAGIC {
        return Err(Error::not_this_format("no QED magic at offset 0"));
    }
    let unknown = raw.features.get() & !KNOWN;
    if unknown != 0 {
        return Err(Error::unsupported(format!("unsupported QED features: {unknown:#x}")));
    }
    let (cluster, table) = (u64::from(raw.cluster_size.get()), u64::from(raw.table_size.get()));
    if !cluster_size_is_valid(cluster) {
        return Err(Error::corrupt(format!("QED cluster size {cluster} is invalid")));
    }
    if !table_size_is_valid(table) {
        return Err(Error::corrupt(format!("QED table size {table} is invalid")));
    }
    let header_bytes = u64::from(raw.header_size.get()) * cluster;
    if header_bytes == 0 || header_bytes > u64::from(u32::MAX) {
        return Err(Error::corrupt(format!(
            "QED header size of {} clusters is invalid",
            raw.header_size
        )));
    }
    let header = Header {
        raw,
        cluster,
        header_bytes,
        table_bytes: table * cluster,
        size: raw.image_size.get(),
    };
    if !header.size.is_multiple_of(512) || header.size > header.max_size() {
        return Err(Error::corrupt(format!("QED image size {:#x} is invalid", header.size)));
    }
    let l1 = raw.l1_table_offset.get();
    let l1_end = l1.checked_add(header.table_bytes);
    if l1 % cluster != 0 || l1 < header_bytes || l1_end.is_none_or(|e| e > file_len) {
        return Err(Error::corrupt(format!("QED table offset {l1:#x} is invalid")));
    }
    check_backing(&header)?;
    Ok(header)
}

fn check_backing(header: &Header) -> Result<()> {
    if !header.has(BACKING_FILE) {
        return Ok(());
    }
    let (at, len) = (
        u64::from(header.raw.backing_offset.get()),
        u64::from(header.raw.backing_size.get()),
    );
    if at < HEADER_LEN as u64 || at + len > header.header_bytes || len > MAX_NAME {
        return Err(Error::corrupt(format!(
            "QED backing file name of {len} bytes at {at:#x} is invalid"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn valid() -> RawHeader {
        RawHeader {
            magic: MAGIC,
            cluster_size: 65536.into(),
            table_size: 4.into(),
            header_size: 1.into(),
            features: 0.into(),
            compat_features: 0.into(),
            autoclear_features: 0.into(),
            l1_table_offset: 65536.into(),
            image_size: (10 << 20).into(),
            backing_offset: 0.into(),
            backing_size: 0.into(),
        }
    }

    type Change = fn(&mut RawHeader);

    #[test]
    fn every_bad_field_is_refused_by_name() {
        let corrupt: &[(&str, Change)] = &[
            ("cluster size", |h| h.cluster_size = 0.into()),
            ("cluster size", |h| h.cluster_size = 3.into()),
            ("cluster size", |h| h.cluster_size = 2048.into()),
            ("cluster size", |h| h.cluster_size = u32::MAX.into()),
            ("table size", |h| h.table_size = 0.into()),
            ("table size", |h| h.table_size = 3.into()),
            ("table size", |h| h.table_size = 32.into()),
            ("header size", |h| h.header_size = 0.into()),
            ("header size", |h| h.header_size = u32::MAX.into()),
            ("table offset", |h| h.l1_table_offset = 65537.into()),
            ("table offset", |h| h.l1_table_offset = 0.into()),
            ("table offset", |h| h.l1_table_offset = u64::MAX.into()),
            ("image size", |h| h.image_size = u64::MAX.into()),
            ("image size", |h| h.image_size = 511.into()),
            ("backing", |h| {
                h.features = BACKING_FILE.into();
                h.backing_offset = u32::MAX.into();
                h.backing_size = 1.into();
            }),
            ("backing", |h| {
                h.features = BACKING_FILE.into();
                h.backing_offset = 64.into();
                h.backing_size = u32::MAX.into();
            }),
            ("backing", |h| {
                h.features = BACKING_FILE.into();
                h.backing_offset = 4.into();
                h.backing_size = 1.into();
            }),
        ];
        for (word, change) in corrupt {
            let mut header = valid();
            change(&mut header);
            let error = check(header.as_bytes(), 320 << 10).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            assert!(error.to_string().contains(word), "{word}: {error}");
        }
        let mut header = valid();
        header.features = 8.into();
        let error = check(header.as_bytes(), 320 << 10).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn a_good_header_passes() {
        let header = check(valid().as_bytes(), 320 << 10).unwrap();
        assert_eq!((header.entries(), header.l1_entries()), (32768, 1));
    }
}
