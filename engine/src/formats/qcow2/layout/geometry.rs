//! Sizes that follow from a few header fields, and the arithmetic on guest offsets.

use super::header::Compression;

/// Facts of an image that never change while it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Geometry {
    /// log2 of the cluster size: 9 to 21.
    pub cluster_bits: u32,
    /// Whether L2 entries are 16 bytes with a map of 32 subclusters.
    pub extended_l2: bool,
    /// How compressed clusters are packed.
    pub compression: Compression,
    /// Whether guest data lies in another file, at its own offset.
    pub data_file: bool,
}

impl Geometry {
    /// Bytes of a cluster.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }
    /// Bytes of a cluster as a length in memory (at most 2 MiB).
    pub fn cluster_len(&self) -> usize {
        1 << self.cluster_bits
    }
    /// Subclusters of a cluster: 32, or 1 without extended L2 entries.
    pub fn subclusters(&self) -> u32 {
        if self.extended_l2 { 32 } else { 1 }
    }
    /// Bytes of a subcluster: the unit in which guest data is present or not.
    pub fn subcluster_size(&self) -> u64 {
        self.cluster_size() / u64::from(self.subclusters())
    }
    /// Words of 8 bytes that one L2 entry takes.
    pub fn entry_words(&self) -> usize {
        if self.extended_l2 { 2 } else { 1 }
    }
    /// Words of 8 bytes in one L2 table (one cluster).
    pub fn l2_words(&self) -> usize {
        self.cluster_len() / 8
    }
    /// Entries of one L2 table.
    pub fn l2_entries(&self) -> u64 {
        (self.l2_words() / self.entry_words()) as u64
    }
    /// Guest bytes that one L2 table covers.
    pub fn l2_span(&self) -> u64 {
        self.l2_entries() << self.cluster_bits
    }
    /// L1 entry of a guest offset.
    pub fn l1_index(&self, guest: u64) -> usize {
        usize::try_from(guest / self.l2_span()).unwrap_or(usize::MAX)
    }
    /// L2 entry of a guest offset in its table: below [`l2_entries`](Self::l2_entries).
    pub fn l2_index(&self, guest: u64) -> usize {
        ((guest % self.l2_span()) >> self.cluster_bits) as usize
    }
    /// L1 entries that a virtual size needs.
    pub fn l1_entries(&self, virtual_size: u64) -> u64 {
        virtual_size.div_ceil(self.l2_span())
    }
    /// The part of an offset inside its cluster.
    pub fn in_cluster(&self, offset: u64) -> u64 {
        offset & (self.cluster_size() - 1)
    }
    /// The start of an offset's cluster.
    pub fn cluster_start(&self, offset: u64) -> u64 {
        offset & !(self.cluster_size() - 1)
    }
    /// Clusters that so many bytes take.
    pub fn clusters(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster_size())
    }
    /// Bits of a compressed descriptor that hold the host offset.
    pub fn compressed_offset_bits(&self) -> u32 {
        62 - (self.cluster_bits - 8)
    }
    /// The largest number of additional sectors that a compressed descriptor can hold.
    pub fn max_compressed_sectors(&self) -> u64 {
        (1 << (self.cluster_bits - 8)) - 1
    }
}
