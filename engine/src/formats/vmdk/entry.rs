//! Entries of grain tables: what they say and how they are stored.

use super::esx::{SeGrain, sesparse_grain};
use super::layout::SECTOR;

/// How the entries of grain tables are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EntryKind {
    /// 32-bit sector numbers; with `zero_grains` 1 means zeroes.
    Sectors { zero_grains: bool },
    /// 64-bit SESparse entries over grains of this many bytes that start there.
    SeSparse { grains_at: u64, grain: u64 },
}

impl EntryKind {
    pub fn bytes(self) -> u64 {
        match self {
            Self::Sectors { .. } => 4,
            Self::SeSparse { .. } => 8,
        }
    }
}

/// Where a grain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Grain {
    /// Not in this extent.
    Unallocated,
    /// Zeroes.
    Zero,
    /// At this byte of the file.
    At(u64),
    /// The entry makes no sense.
    Invalid,
}

/// A decoded entry: small, since tables of huge disks are many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry(u64);

impl Entry {
    pub const UNALLOCATED: Self = Self(0);
    pub const ZERO: Self = Self(1);
    const INVALID: Self = Self(u64::MAX);

    /// A grain at a byte of the file.
    pub fn at(offset: u64) -> Self {
        Self(offset)
    }
    pub fn grain(self) -> Grain {
        match self {
            Self::UNALLOCATED => Grain::Unallocated,
            Self::ZERO => Grain::Zero,
            Self::INVALID => Grain::Invalid,
            Self(offset) => Grain::At(offset),
        }
    }
}

/// How tables of an extent are found and read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Geometry {
    pub kind: EntryKind,
    /// Entries of a table.
    pub entries: u64,
    /// No grain starts before this byte.
    pub floor: u64,
    /// Tables kept at most, changed ones not counted.
    pub kept: usize,
}

impl Geometry {
    /// Bytes of a table in the file.
    pub fn table_bytes(&self) -> u64 {
        self.entries * self.kind.bytes()
    }
    pub fn decode(&self, raw: &[u8]) -> Entry {
        let low = |b: &[u8]| b.iter().rev().fold(0u64, |v, b| v << 8 | u64::from(*b));
        let placed = |offset: u64| {
            if offset < self.floor {
                Entry::INVALID
            } else {
                Entry(offset)
            }
        };
        match (self.kind, low(raw)) {
            (_, 0) => Entry::UNALLOCATED,
            (EntryKind::Sectors { zero_grains: true }, 1) => Entry::ZERO,
            (EntryKind::Sectors { .. }, sector) => placed(sector * SECTOR),
            (EntryKind::SeSparse { grains_at, grain }, entry) => match sesparse_grain(entry) {
                SeGrain::Unallocated => Entry::UNALLOCATED,
                SeGrain::Zero => Entry::ZERO,
                SeGrain::Invalid => Entry::INVALID,
                SeGrain::Data(n) => n
                    .checked_mul(grain)
                    .and_then(|o| o.checked_add(grains_at))
                    .map_or(Entry::INVALID, placed),
            },
        }
    }
    /// The stored form of 32-bit entries.
    pub fn encode(&self, table: &[Entry]) -> Vec<u8> {
        let sector = |e: &Entry| match e.grain() {
            Grain::Unallocated => 0,
            Grain::Zero => 1,
            Grain::At(offset) => u32::try_from(offset / SECTOR).unwrap_or(u32::MAX), // Checked when it was allocated.
            Grain::Invalid => u32::MAX,
        };
        table.iter().flat_map(|e| sector(e).to_le_bytes()).collect()
    }
}
