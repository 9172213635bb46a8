//! Table entries: raw words in, meaning out. Nobody else tests their bits.

use std::ops::Range;

use super::geometry::Geometry;
use super::header::MAX_HOST_OFFSET;
use crate::{Error, Result};

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// An entry of the L1 table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum L1Entry {
    /// No L2 table: the whole span is unallocated.
    Unallocated,
    /// An L2 table.
    Table {
        /// Its host offset, a multiple of the cluster size.
        at: u64,
        /// Its refcount is exactly 1: it may be changed in place.
        copied: bool,
    },
}

impl L1Entry {
    /// # Errors
    /// `Corrupt` for reserved bits and for a table that is not at the start of a cluster.
    pub fn decode(raw: u64, geometry: &Geometry) -> Result<Self> {
        let at = raw & OFFSET;
        if raw & !(COPIED | OFFSET) != 0 {
            return Err(Error::corrupt(format!("reserved bits are set in L1 entry {raw:#x}")));
        }
        if at == 0 {
            return Ok(Self::Unallocated);
        }
        if geometry.in_cluster(at) != 0 {
            return Err(Error::corrupt(format!("an L2 table cannot be at {at:#x}")));
        }
        Ok(Self::Table {
            at,
            copied: raw & COPIED != 0,
        })
    }

    /// The raw word.
    pub fn encode(self) -> u64 {
        match self {
            Self::Unallocated => 0,
            Self::Table { at, copied } => at | if copied { COPIED } else { 0 },
        }
    }
}

/// Which subclusters of a cluster have data and which read as zeroes; neither: unallocated. Bit 0 is the first one.
///
/// A cluster without extended L2 entries is one subcluster, for which all 32 bits are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in super::super) struct Subclusters {
    /// These hold data.
    pub data: u32,
    /// These read as zeroes.
    pub zero: u32,
}

impl Subclusters {
    /// All unallocated.
    pub const NONE: Self = Self { data: 0, zero: 0 };
    /// All data.
    pub const DATA: Self = Self {
        data: u32::MAX,
        zero: 0,
    };
    /// All zero.
    pub const ZERO: Self = Self {
        data: 0,
        zero: u32::MAX,
    };
}

/// An entry of an L2 table: one cluster of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum L2Entry {
    /// Stored as is, or not stored.
    Standard {
        /// The host cluster, if there is one: also for clusters that read as zeroes and for reserved ones.
        at: Option<u64>,
        /// Its refcount is exactly 1.
        copied: bool,
        /// What its parts are.
        subs: Subclusters,
    },
    /// Stored compressed.
    Compressed {
        /// First byte.
        at: u64,
        /// Bytes up to the end of the last 512-byte sector.
        len: u64,
    },
}

impl L2Entry {
    /// Nothing here.
    pub const UNALLOCATED: Self = Self::Standard {
        at: None,
        copied: false,
        subs: Subclusters::NONE,
    };
    /// Reads as zeroes, no space.
    pub const ZERO: Self = Self::Standard {
        at: None,
        copied: false,
        subs: Subclusters::ZERO,
    };

    /// Data in a cluster of its own.
    pub fn data(at: u64) -> Self {
        Self::Standard {
            at: Some(at),
            copied: true,
            subs: Subclusters::DATA,
        }
    }

    /// Decodes the entry `index` of a table of host words.
    ///
    /// # Errors
    /// `Corrupt` for reserved bits, unaligned clusters and contradicting maps.
    pub fn decode(table: &[u64], index: usize, geometry: &Geometry, version: u32) -> Result<Self> {
        let first = index.saturating_mul(geometry.entry_words());
        let raw = table.get(first).copied().unwrap_or(0);
        if !geometry.extended_l2 {
            // The three shapes that nearly all entries have.
            if raw == 0 {
                return Ok(Self::UNALLOCATED);
            }
            return Self::decode_plain(raw, geometry, version);
        }
        let map = table.get(first.saturating_add(1)).copied().unwrap_or(0);
        Self::decode_extended(raw, map, geometry)
    }

    /// The clusters of the image file that it uses, by number.
    pub fn clusters(self, geometry: &Geometry) -> Range<u64> {
        let bits = geometry.cluster_bits;
        match self {
            Self::Standard { at: Some(at), .. } if !geometry.data_file => at >> bits..(at >> bits) + 1,
            Self::Compressed { at, len } => at >> bits..((at + len - 1) >> bits) + 1,
            Self::Standard { .. } => 0..0,
        }
    }

    /// # Errors
    /// `Corrupt` for an entry that names another place in a data file than that of its guest cluster at `guest`.
    pub fn refuse_elsewhere(self, guest: u64, geometry: &Geometry) -> Result<()> {
        match self {
            Self::Standard { at: Some(at), .. } if geometry.data_file && at != guest => Err(Error::corrupt(format!(
                "the guest cluster at {guest:#x} is said to be at {at:#x} of the data file, and can only be at its own offset"
            ))),
            _ => Ok(()),
        }
    }

    /// How many entries of a table without maps of subclusters go on as the one at `index` began: the same flags, and the same lack of a
    /// place or the place that follows. At least 1.
    pub fn alike(table: &[u64], index: usize, placed: bool, geometry: &Geometry) -> u64 {
        let rest = table.get(index..).unwrap_or_default();
        let Some((first, next)) = rest.split_first() else {
            return 1;
        };
        let step = if placed { geometry.cluster_size() } else { 0 };
        let mut expected = *first;
        let count = next.iter().take_while(|raw| {
            expected = expected.wrapping_add(step);
            **raw == expected && (expected ^ first) & !OFFSET == 0
        });
        1 + count.count() as u64
    }

    /// Whether an entry has a copied flag that says nothing: a compressed cluster is never changed in place.
    pub fn has_needless_flag(words: &[u64]) -> bool {
        words
            .first()
            .is_some_and(|raw| raw & (COPIED | COMPRESSED) == COPIED | COMPRESSED)
    }

    /// Takes out of an entry that cannot be decoded or used what it does not need: the copied flag of a compressed cluster, or a place of
    /// which the guest sees no data: zeroes that had space, or subclusters of which none holds data. False, and nothing changed, where
    /// there is nothing such.
    pub fn drop_needless(words: &mut [u64], geometry: &Geometry, version: u32) -> bool {
        let flag = Self::has_needless_flag(words);
        let map = words.get(1).copied().unwrap_or(0);
        let Some(raw) = words.first_mut() else { return false };
        if *raw & COMPRESSED != 0 {
            *raw &= !COPIED;
            return flag;
        }
        let needless = match geometry.extended_l2 {
            true => map as u32 == 0,
            false => version >= 3 && *raw & ZERO != 0,
        };
        if needless {
            *raw = if geometry.extended_l2 { 0 } else { ZERO };
        }
        needless
    }

    fn decode_plain(raw: u64, geometry: &Geometry, version: u32) -> Result<Self> {
        if raw & COMPRESSED != 0 {
            return Self::decode_compressed(raw, geometry);
        }
        let zero = raw & ZERO != 0;
        if zero && version < 3 {
            return Err(Error::corrupt(format!(
                "zero flag in an L2 entry of version 2: {raw:#x}"
            )));
        }
        let at = Self::host_of(raw, raw & !(COPIED | OFFSET | ZERO), geometry)?;
        if zero && at.is_none() {
            // In a data file too: only data is at offset 0.
            return Ok(Self::ZERO);
        }
        let subs = match (zero, at) {
            (true, _) => Subclusters::ZERO,
            (false, Some(_)) => Subclusters::DATA,
            // An external data file may have guest data at offset 0; its entries tell by the copied flag.
            (false, None) if geometry.data_file && raw & COPIED != 0 => Subclusters::DATA,
            (false, None) => Subclusters::NONE,
        };
        Ok(Self::standard(raw, at, subs, geometry))
    }

    fn decode_extended(raw: u64, map: u64, geometry: &Geometry) -> Result<Self> {
        if raw & COMPRESSED != 0 {
            if map != 0 {
                return Err(Error::corrupt(format!(
                    "a compressed cluster has a subcluster map {map:#x}"
                )));
            }
            return Self::decode_compressed(raw, geometry);
        }
        let at = Self::host_of(raw, raw & !(COPIED | OFFSET), geometry)?;
        let subs = Subclusters {
            data: map as u32,
            zero: (map >> 32) as u32,
        };
        if subs.data & subs.zero != 0 {
            return Err(Error::corrupt(format!(
                "subclusters are both data and zero in map {map:#x}"
            )));
        }
        if subs.data != 0 && at.is_none() && !(geometry.data_file && raw & COPIED != 0) {
            return Err(Error::corrupt(format!(
                "subclusters {map:#x} have data, but no cluster"
            )));
        }
        Ok(Self::standard(raw, at, subs, geometry))
    }

    fn standard(raw: u64, at: Option<u64>, subs: Subclusters, geometry: &Geometry) -> Self {
        let copied = raw & COPIED != 0;
        // Offset 0 of a data file is a place like any other.
        let at = at.or((geometry.data_file && copied).then_some(0));
        Self::Standard { at, copied, subs }
    }

    fn host_of(raw: u64, reserved: u64, geometry: &Geometry) -> Result<Option<u64>> {
        let at = raw & OFFSET;
        if reserved != 0 {
            return Err(Error::corrupt(format!("reserved bits are set in L2 entry {raw:#x}")));
        }
        if geometry.in_cluster(at) != 0 {
            return Err(Error::corrupt(format!("a cluster cannot be at {at:#x}")));
        }
        Ok((at != 0).then_some(at))
    }

    fn decode_compressed(raw: u64, geometry: &Geometry) -> Result<Self> {
        let bits = geometry.compressed_offset_bits();
        let at = raw & ((1 << bits) - 1);
        let sectors = (raw >> bits & geometry.max_compressed_sectors()) + 1;
        if geometry.data_file {
            return Err(Error::corrupt(
                "compressed cluster in an image with an external data file",
            ));
        }
        if at == 0 || at > MAX_HOST_OFFSET {
            return Err(Error::corrupt(format!("a compressed cluster cannot be at {at:#x}")));
        }
        Ok(Self::Compressed {
            at,
            len: sectors * 512 - at % 512,
        })
    }

    /// Puts the entry into a table of host words.
    pub fn encode(self, table: &mut [u64], index: usize, geometry: &Geometry) {
        let first = index.saturating_mul(geometry.entry_words());
        let (word, map) = self.words(geometry);
        if let Some(slot) = table.get_mut(first) {
            *slot = word;
        }
        if geometry.extended_l2
            && let Some(slot) = table.get_mut(first.saturating_add(1))
        {
            *slot = map;
        }
    }

    fn words(self, geometry: &Geometry) -> (u64, u64) {
        match self {
            Self::Compressed { at, len } => {
                let sectors = (at % 512 + len).div_ceil(512) - 1;
                (COMPRESSED | sectors << geometry.compressed_offset_bits() | at, 0)
            }
            Self::Standard { at, copied, subs } => {
                let host = at.unwrap_or(0) | if copied && at.is_some() { COPIED } else { 0 };
                if geometry.extended_l2 {
                    (host, u64::from(subs.zero) << 32 | u64::from(subs.data))
                } else {
                    (host | if subs.zero != 0 { ZERO } else { 0 }, 0)
                }
            }
        }
    }

    /// Whether the cluster shows what is below, wholly, and has no space.
    pub fn is_unallocated(self) -> bool {
        self == Self::UNALLOCATED
    }
}

/// An entry of the refcount table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct RefTableEntry;

impl RefTableEntry {
    /// Offset of the refcount block, `None` where all its refcounts are 0.
    ///
    /// # Errors
    /// `Corrupt` for reserved bits and unaligned blocks.
    pub fn decode(raw: u64, geometry: &Geometry) -> Result<Option<u64>> {
        if raw == 0 {
            return Ok(None);
        }
        if raw & 511 != 0 || raw > MAX_HOST_OFFSET || geometry.in_cluster(raw) != 0 {
            return Err(Error::corrupt(format!("a refcount block cannot be at {raw:#x}")));
        }
        Ok(Some(raw))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::header::Compression;
    use super::*;

    fn geometry(cluster_bits: u32, extended_l2: bool) -> Geometry {
        Geometry {
            cluster_bits,
            extended_l2,
            compression: Compression::Zlib,
            data_file: false,
        }
    }

    proptest! {
        #[test]
        fn what_decodes_encodes_to_the_same_words(bits in 9u32..=21, extended: bool, raw: u64, map: u64) {
            let geometry = geometry(bits, extended && bits >= 14);
            let table = [raw, map];
            if let Ok(entry) = L2Entry::decode(&table, 0, &geometry, 3) {
                let mut again = if geometry.extended_l2 { [0, 0] } else { [0, map] };
                entry.encode(&mut again, 0, &geometry);
                // The copied flag without a cluster of its own says nothing and is dropped.
                let has_cluster = matches!(entry, L2Entry::Standard { at: Some(_), .. });
                prop_assert_eq!(again[0], if has_cluster { raw } else { raw & !COPIED });
                prop_assert_eq!(again[1], map);
            }
            if let Ok(entry) = L1Entry::decode(raw, &geometry) {
                let kept = if entry == L1Entry::Unallocated { 0 } else { raw };
                prop_assert_eq!(entry.encode(), kept);
            }
        }
    }

    #[test]
    fn a_compressed_descriptor_has_the_offset_below_and_the_sectors_above() {
        // 64 KiB clusters: 54 bits of offset, 8 bits of additional sectors.
        let raw = COMPRESSED | 2 << 54 | 0x50010;
        let entry = L2Entry::decode(&[raw], 0, &geometry(16, false), 3).unwrap();
        assert_eq!(
            entry,
            L2Entry::Compressed {
                at: 0x50010,
                len: 3 * 512 - 16
            }
        );
    }

    #[test]
    fn a_zero_flag_in_version_2_is_corrupt() {
        assert!(L2Entry::decode(&[ZERO], 0, &geometry(16, false), 2).is_err());
        assert_eq!(
            L2Entry::decode(&[ZERO], 0, &geometry(16, false), 3).unwrap(),
            L2Entry::ZERO
        );
    }
}
