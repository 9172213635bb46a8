//! The header: cluster 0, first field to the last one we know.

use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::{Error, Result};

/// "QFI\xfb"
pub(in super::super) const MAGIC: u32 = 0x5146_49fb;
/// Bytes of a version 2 header.
pub(in super::super) const V2_LEN: usize = 72;
/// Bytes of a version 3 header without additional fields.
pub(in super::super) const V3_LEN: usize = 104;
/// Bytes of the header that we write for version 3: with the compression type.
pub(in super::super) const WRITTEN_LEN: usize = 112;
/// QEMU takes no longer backing file name.
pub(in super::super) const MAX_BACKING_NAME: u32 = 1023;
/// QEMU's bound on the L1 table, in bytes.
pub(in super::super) const MAX_L1_BYTES: u64 = 32 << 20;
/// QEMU's bound on the refcount table, in bytes.
pub(in super::super) const MAX_REFTABLE_BYTES: u64 = 8 << 20;
/// QEMU's bound on the number of snapshots.
pub(in super::super) const MAX_SNAPSHOTS: u32 = 65_536;
/// Host offsets have 56 bits.
pub(in super::super) const MAX_HOST_OFFSET: u64 = (1 << 56) - 1;

/// The fields of both versions.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawV2 {
    /// `MAGIC`
    magic: U32,
    /// 2 or 3
    version: U32,
    /// Offset of the backing file name (not terminated), 0 for none; inside the first cluster.
    backing_offset: U64,
    /// Its length in bytes, at most 1023.
    backing_size: U32,
    /// log2 of the cluster size: 9 to 21.
    cluster_bits: U32,
    /// Virtual size in bytes.
    size: U64,
    /// 0 none, 1 AES, 2 LUKS.
    crypt_method: U32,
    /// Entries of the active L1 table.
    l1_size: U32,
    /// Its offset; a multiple of the cluster size.
    l1_offset: U64,
    /// Offset of the refcount table; a multiple of the cluster size.
    reftable_offset: U64,
    /// Its length in clusters.
    reftable_clusters: U32,
    /// Internal snapshots.
    nb_snapshots: U32,
    /// Offset of the snapshot table; a multiple of the cluster size.
    snapshots_offset: U64,
}

/// What version 3 adds.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawV3 {
    /// Features that a program must know to open the image.
    incompatible: U64,
    /// Features that it may ignore.
    compatible: U64,
    /// Features whose data is stale once somebody wrote who does not know them.
    autoclear: U64,
    /// log2 of the refcount width in bits: 0 to 6.
    refcount_order: U32,
    /// Bytes of the header: at least 104, a multiple of 8.
    header_length: U32,
}

const _: () = assert!(size_of::<RawV2>() == V2_LEN && size_of::<RawV2>() + size_of::<RawV3>() == V3_LEN);

/// Bits of `incompatible_features`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in super::super) struct Incompatible(pub u64);

impl Incompatible {
    pub const DIRTY: u64 = 1;
    pub const CORRUPT: u64 = 2;
    pub const DATA_FILE: u64 = 4;
    pub const COMPRESSION: u64 = 8;
    pub const EXTENDED_L2: u64 = 16;
    const KNOWN: u64 = 31;

    pub fn has(self, bit: u64) -> bool {
        self.0 & bit != 0
    }
    /// Bits that nobody here knows.
    pub fn unknown(self) -> u64 {
        self.0 & !Self::KNOWN
    }
}

/// Bits of `compatible_features`.
pub(in super::super) struct Compatible;

impl Compatible {
    pub const LAZY_REFCOUNTS: u64 = 1;
}

/// Bits of `autoclear_features`.
pub(in super::super) struct Autoclear;

impl Autoclear {
    pub const BITMAPS: u64 = 1;
    pub const RAW_DATA_FILE: u64 = 2;
    pub const KNOWN: u64 = 3;
}

/// How compressed clusters are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in super::super) enum Compression {
    /// Raw deflate.
    #[default]
    Zlib,
    /// One zstd frame.
    Zstd,
}

impl Compression {
    /// QEMU's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
        }
    }
}

/// How guest data is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in super::super) enum Crypt {
    #[default]
    None,
    Aes,
    Luks,
}

/// A header whose fields are good each for itself; what they point to is checked by who reads it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in super::super) struct Header {
    pub version: u32,
    /// Where the backing file name stands: offset and length; 0, 0 for none.
    pub backing_offset: u64,
    pub backing_size: u32,
    pub cluster_bits: u32,
    pub virtual_size: u64,
    pub crypt: Crypt,
    pub l1_size: u32,
    pub l1_offset: u64,
    pub reftable_offset: u64,
    pub reftable_clusters: u32,
    pub nb_snapshots: u32,
    pub snapshots_offset: u64,
    pub incompatible: Incompatible,
    pub compatible: u64,
    pub autoclear: u64,
    pub refcount_order: u32,
    /// As found; what we write is [`Header::encode`]'s length.
    pub header_length: u32,
    pub compression: Compression,
    /// Fields past the ones we know, kept as they are.
    pub unknown: Vec<u8>,
}

/// Whether these bytes begin like a qcow2 image of a version we know.
pub(in super::super) fn looks_like(head: &[u8]) -> bool {
    matches!(RawV2::read_from_prefix(head), Ok((raw, _)) if raw.magic.get() == MAGIC && matches!(raw.version.get(), 2 | 3))
}

impl Header {
    /// Byte offsets of fields that are written alone.
    pub const AT_L1: u64 = 36;
    pub const AT_REFTABLE: u64 = 48;
    pub const AT_SNAPSHOTS: u64 = 60;

    /// Reads and checks the header at the start of `bytes`: the file's first bytes, as many as there are up to one cluster of 2 MiB.
    ///
    /// # Errors
    /// `NotThisFormat` without the magic; `Unsupported` for other versions; `Corrupt` for fields out of their bounds.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let (raw, rest) =
            RawV2::read_from_prefix(bytes).map_err(|_| Error::not_this_format("the file is too short for a header"))?;
        if raw.magic.get() != MAGIC {
            return Err(Error::not_this_format("expected the magic 51 46 49 fb at 0x0"));
        }
        let mut header = Self {
            version: raw.version.get(),
            backing_offset: raw.backing_offset.get(),
            backing_size: raw.backing_size.get(),
            cluster_bits: raw.cluster_bits.get(),
            virtual_size: raw.size.get(),
            crypt: Crypt::None,
            l1_size: raw.l1_size.get(),
            l1_offset: raw.l1_offset.get(),
            reftable_offset: raw.reftable_offset.get(),
            reftable_clusters: raw.reftable_clusters.get(),
            nb_snapshots: raw.nb_snapshots.get(),
            snapshots_offset: raw.snapshots_offset.get(),
            refcount_order: 4,
            header_length: V2_LEN as u32,
            ..Self::default()
        };
        header.check_both(raw.crypt_method.get())?;
        if header.version == 3 {
            header.parse_v3(bytes, rest)?;
        }
        header.check_backing()?;
        Ok(header)
    }

    fn check_both(&mut self, crypt: u32) -> Result<()> {
        if !matches!(self.version, 2 | 3) {
            return Err(Error::unsupported(format!(
                "qcow2 version {} is not known; known are 2 and 3",
                self.version
            )));
        }
        if !(9..=21).contains(&self.cluster_bits) {
            return Err(Error::corrupt(format!(
                "expected a cluster size of 2^9 to 2^21 bytes, found 2^{}",
                self.cluster_bits
            )));
        }
        self.crypt = match crypt {
            0 => Crypt::None,
            1 => Crypt::Aes,
            2 => Crypt::Luks,
            other => return Err(Error::unsupported(format!("encryption method {other} is not known"))),
        };
        self.check_tables()
    }

    fn check_tables(&self) -> Result<()> {
        let l1_bytes = u64::from(self.l1_size) * 8;
        if l1_bytes > MAX_L1_BYTES {
            return Err(Error::limit(format!(
                "an L1 table of {} entries is too large",
                self.l1_size
            )));
        }
        let reftable_bytes = u64::from(self.reftable_clusters) << self.cluster_bits;
        if self.reftable_clusters == 0 {
            return Err(Error::corrupt("the image has no refcount table"));
        }
        if reftable_bytes > MAX_REFTABLE_BYTES {
            return Err(Error::limit(format!(
                "a refcount table of {} clusters is too large",
                self.reftable_clusters
            )));
        }
        if self.nb_snapshots > MAX_SNAPSHOTS {
            return Err(Error::limit(format!("{} snapshots are too many", self.nb_snapshots)));
        }
        self.check_offset("L1 table", self.l1_offset, self.l1_size > 0)?;
        self.check_offset("refcount table", self.reftable_offset, true)?;
        self.check_offset("snapshot table", self.snapshots_offset, self.nb_snapshots > 0)
    }

    fn check_offset(&self, what: &str, offset: u64, used: bool) -> Result<()> {
        if !used {
            return Ok(());
        }
        if offset == 0 || offset > MAX_HOST_OFFSET || !offset.is_multiple_of(1 << self.cluster_bits) {
            return Err(Error::corrupt(format!("the {what} cannot be at {offset:#x}")));
        }
        Ok(())
    }

    fn parse_v3(&mut self, bytes: &[u8], rest: &[u8]) -> Result<()> {
        let (raw, _) =
            RawV3::read_from_prefix(rest).map_err(|_| Error::corrupt("the file ends inside the version 3 header"))?;
        self.incompatible = Incompatible(raw.incompatible.get());
        self.compatible = raw.compatible.get();
        self.autoclear = raw.autoclear.get();
        self.refcount_order = raw.refcount_order.get();
        self.header_length = raw.header_length.get();
        if self.refcount_order > 6 {
            return Err(Error::corrupt(format!(
                "expected refcounts of 2^0 to 2^6 bits, found 2^{}",
                self.refcount_order
            )));
        }
        let len = self.header_length;
        if (len as usize) < V3_LEN || !len.is_multiple_of(8) || len > 1 << self.cluster_bits {
            return Err(Error::corrupt(format!(
                "expected a header of 104 bytes to one cluster, in steps of 8, found {len}"
            )));
        }
        let extra = bytes
            .get(V3_LEN..len as usize)
            .ok_or_else(|| Error::corrupt(format!("the file ends inside the header of {len} bytes")))?;
        self.parse_compression(extra.first().copied())?;
        self.unknown = extra.get(8..).unwrap_or_default().to_vec();
        Ok(())
    }

    fn parse_compression(&mut self, kind: Option<u8>) -> Result<()> {
        let flagged = self.incompatible.has(Incompatible::COMPRESSION);
        self.compression = match kind.unwrap_or(0) {
            0 => Compression::Zlib,
            1 => Compression::Zstd,
            other => return Err(Error::unsupported(format!("compression type {other} is not known"))),
        };
        if flagged != (self.compression != Compression::Zlib) {
            return Err(Error::corrupt(format!(
                "the compression type bit is {}, but the type is {}",
                if flagged { "set" } else { "not set" },
                self.compression.name()
            )));
        }
        if self.incompatible.has(Incompatible::EXTENDED_L2) && self.cluster_bits < 14 {
            return Err(Error::corrupt("extended L2 entries need clusters of at least 16 KiB"));
        }
        Ok(())
    }

    fn check_backing(&self) -> Result<()> {
        let (offset, size) = (self.backing_offset, self.backing_size);
        if offset == 0 {
            return Ok(());
        }
        let end = offset.checked_add(u64::from(size));
        if offset < u64::from(self.header_length) || end.is_none_or(|e| e > 1 << self.cluster_bits) {
            return Err(Error::corrupt(format!(
                "the backing file name of {size} bytes cannot be at {offset:#x}"
            )));
        }
        if size == 0 || size > MAX_BACKING_NAME {
            return Err(Error::corrupt(format!(
                "expected a backing file name of 1 to {MAX_BACKING_NAME} bytes, found {size}"
            )));
        }
        Ok(())
    }

    /// The header as bytes: 72 for version 2, 112 and the unknown fields for version 3.
    pub fn encode(&self) -> Vec<u8> {
        let crypt = match self.crypt {
            Crypt::None => 0,
            Crypt::Aes => 1,
            Crypt::Luks => 2,
        };
        let raw = RawV2 {
            magic: MAGIC.into(),
            version: self.version.into(),
            backing_offset: self.backing_offset.into(),
            backing_size: self.backing_size.into(),
            cluster_bits: self.cluster_bits.into(),
            size: self.virtual_size.into(),
            crypt_method: crypt.into(),
            l1_size: self.l1_size.into(),
            l1_offset: self.l1_offset.into(),
            reftable_offset: self.reftable_offset.into(),
            reftable_clusters: self.reftable_clusters.into(),
            nb_snapshots: self.nb_snapshots.into(),
            snapshots_offset: self.snapshots_offset.into(),
        };
        let mut bytes = raw.as_bytes().to_vec();
        if self.version >= 3 {
            let raw = RawV3 {
                incompatible: self.incompatible.0.into(),
                compatible: self.compatible.into(),
                autoclear: self.autoclear.into(),
                refcount_order: self.refcount_order.into(),
                header_length: ((WRITTEN_LEN + self.unknown.len()) as u32).into(),
            };
            bytes.extend_from_slice(raw.as_bytes());
            bytes.extend_from_slice(&[u8::from(self.compression == Compression::Zstd), 0, 0, 0, 0, 0, 0, 0]);
            bytes.extend_from_slice(&self.unknown);
        }
        bytes
    }

    /// Bits of one refcount.
    pub fn refcount_bits(&self) -> u32 {
        1 << self.refcount_order
    }
}

/// The sentence about incompatible features that nobody here knows: their names where the image has them, the other bits as one number.
pub(in super::super) fn unknown_features(bits: u64, name_of: impl Fn(u32) -> Option<String>) -> Error {
    let (mut list, mut nameless) = (Vec::new(), 0u64);
    for bit in (0..64).filter(|b| bits & (1 << b) != 0) {
        match name_of(bit) {
            Some(name) => list.push(name.escape_debug().to_string()),
            None => nameless |= 1 << bit,
        }
    }
    if nameless != 0 {
        list.push(format!("Unknown incompatible feature: {nameless:x}"));
    }
    Error::unsupported(format!("unsupported qcow2 feature(s): {}", list.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> Header {
        Header {
            version: 3,
            cluster_bits: 16,
            virtual_size: 1 << 30,
            l1_size: 2,
            l1_offset: 0x30000,
            reftable_offset: 0x10000,
            reftable_clusters: 1,
            refcount_order: 4,
            header_length: 112,
            ..Header::default()
        }
    }

    #[test]
    fn encoding_and_parsing_give_the_same_header() {
        let mut header = fresh();
        assert_eq!(Header::parse(&header.encode()).unwrap(), header);
        header.compression = Compression::Zstd;
        header.incompatible = Incompatible(Incompatible::COMPRESSION | Incompatible::EXTENDED_L2);
        header.unknown = vec![7; 16];
        header.header_length = 128;
        assert_eq!(Header::parse(&header.encode()).unwrap(), header);
        let old = Header {
            version: 2,
            header_length: 72,
            ..fresh()
        };
        assert_eq!(Header::parse(&old.encode()).unwrap(), old);
    }

    #[test]
    fn every_short_header_is_an_error() {
        let bytes = fresh().encode();
        for len in 0..bytes.len() {
            assert!(Header::parse(&bytes[..len]).is_err(), "{len} bytes");
        }
    }
}
