//! The sparse extents of ESX on disk: COWD (`vmfsSparse`) and SESparse. Pure bytes.
//!
//! Source: VMware Virtual Disk Format 5.0 ("COWDisk"), the format notes of libvmdk, and QEMU 10.0.2's reader for SESparse.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::layout::{SECTOR, bad, bytes};
use crate::{Error, Result};

/// `COWD`.
pub(super) const COWD_MAGIC: u32 = u32::from_le_bytes(*b"COWD");
/// First eight bytes of a SESparse extent.
pub(super) const SESPARSE_MAGIC: u64 = 0xcafe_babe;
const SESPARSE_VOLATILE_MAGIC: u64 = 0xcafe_cafe;
const SESPARSE_VERSION: u64 = 0x0000_0002_0000_0001;

/// Entries of a COWD grain table.
const COWD_ENTRIES: u64 = 4096;

/// The start of a COWD header; what follows (parent name, generation, geometry) repeats the descriptor.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct RawCowd {
    /// [`COWD_MAGIC`].
    pub magic: U32,
    /// 1.
    pub version: U32,
    /// 3.
    pub flags: U32,
    /// Sectors the guest sees.
    pub capacity: U32,
    /// Sectors of a grain.
    pub grain_size: U32,
    /// First sector of the grain directory: 4.
    pub directory_offset: U32,
    /// Entries of the grain directory.
    pub directory_entries: U32,
    /// First sector behind everything that is used.
    pub next_free: U32,
}

const _: () = assert!(size_of::<RawCowd>() == 32);

/// The first sector of a SESparse extent. All offsets and sizes are sectors.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct RawSeSparse {
    /// [`SESPARSE_MAGIC`].
    pub magic: U64,
    /// 2.1.
    pub version: U64,
    /// Sectors the guest sees.
    pub capacity: U64,
    /// 8.
    pub grain_size: U64,
    /// 64.
    pub table_size: U64,
    /// 0.
    pub flags: U64,
    /// Unused.
    pub reserved: [U64; 4],
    /// 1, 1: where the header that changes is.
    pub volatile_header: [U64; 2],
    /// 2, 2.
    pub journal_header: [U64; 2],
    /// The journal.
    pub journal: [U64; 2],
    /// The grain directory: offset, size.
    pub directory: [U64; 2],
    /// The grain tables: offset, size.
    pub tables: [U64; 2],
    /// Bitmap of free grains.
    pub free_bitmap: [U64; 2],
    /// From grain to table entry.
    pub backmap: [U64; 2],
    /// The grains: offset, size.
    pub grains: [U64; 2],
    /// Zero.
    pub padding: [U64; 38],
}

const _: () = assert!(size_of::<RawSeSparse>() == 512);

/// The part of a SESparse extent's second header that a reader needs.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct RawVolatile {
    /// Its magic.
    pub magic: U64,
    /// Unused here.
    pub free_table: U64,
    /// Unused here.
    pub next_sequence: U64,
    /// Whether the journal holds changes that are not in place yet.
    pub replay_journal: U64,
}

/// Where the parts of an ESX extent are, in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct EsxHeader {
    pub capacity: u64,
    pub grain: u64,
    /// Entries of a grain table.
    pub entries: u64,
    pub directory: u64,
    /// Entries of the grain directory.
    pub tables: u64,
    /// SESparse: where table 0 and grain 0 are.
    pub tables_at: u64,
    pub grains_at: u64,
}

impl RawCowd {
    pub fn checked(&self) -> Result<EsxHeader> {
        if self.magic.get() != COWD_MAGIC {
            return Err(Error::not_this_format("expected the magic COWD"));
        }
        if self.version.get() != 1 {
            return Err(Error::unsupported(format!("COWD version {}; known is 1", self.version)).at("header.version"));
        }
        let grain = u64::from(self.grain_size.get());
        if !grain.is_power_of_two() || grain > 1 << 17 {
            return Err(bad("grain_size", grain, "a power of two of sectors up to 64 MiB"));
        }
        let header = EsxHeader {
            capacity: u64::from(self.capacity.get()) * SECTOR,
            grain: grain * SECTOR,
            entries: COWD_ENTRIES,
            directory: u64::from(self.directory_offset.get()) * SECTOR,
            tables: u64::from(self.directory_entries.get()),
            tables_at: 0,
            grains_at: 0,
        };
        header.with_enough_tables()
    }
}

impl RawSeSparse {
    pub fn checked(&self, volatile: &RawVolatile) -> Result<EsxHeader> {
        if self.magic.get() != SESPARSE_MAGIC {
            return Err(Error::not_this_format("expected the SESparse magic"));
        }
        let version = self.version.get();
        if version != SESPARSE_VERSION {
            return Err(Error::unsupported(format!("SESparse version {version:#x}")).at("header.version"));
        }
        for (field, found, expected) in [
            ("grain_size", self.grain_size.get(), 8),
            ("table_size", self.table_size.get(), 64),
            ("flags", self.flags.get(), 0),
            ("volatile_header", self.volatile_header[0].get(), 1),
        ] {
            if found != expected {
                return Err(bad(field, found, &expected.to_string()));
            }
        }
        if volatile.magic.get() != SESPARSE_VOLATILE_MAGIC {
            return Err(bad("volatile.magic", volatile.magic.get(), "0xcafecafe"));
        }
        if volatile.replay_journal.get() != 0 {
            return Err(Error::unsupported(
                "the SESparse journal holds changes that would have to be replayed",
            ));
        }
        let directory_bytes = bytes("directory_size", self.directory[1].get())?;
        let header = EsxHeader {
            capacity: bytes("capacity", self.capacity.get())?,
            grain: 8 * SECTOR,
            entries: 64 * SECTOR / 8,
            directory: bytes("directory_offset", self.directory[0].get())?,
            tables: directory_bytes / 8,
            tables_at: bytes("tables_offset", self.tables[0].get())?,
            grains_at: bytes("grains_offset", self.grains[0].get())?,
        };
        header.with_enough_tables()
    }
}

impl EsxHeader {
    /// The directory may be longer than needed, never shorter.
    fn with_enough_tables(mut self) -> Result<Self> {
        let needed = self.capacity.div_ceil(self.grain * self.entries);
        if self.tables < needed {
            return Err(bad("directory_entries", self.tables, &format!("at least {needed:#x}")));
        }
        self.tables = needed;
        Ok(self)
    }
}

/// What a SESparse grain directory entry says: the number of a grain table.
pub(super) fn sesparse_table(entry: u64) -> Result<Option<u64>> {
    match (entry, entry >> 32) {
        (0, _) => Ok(None),
        (_, 0x1000_0000) => Ok(Some(entry & 0xffff_ffff)),
        _ => Err(Error::corrupt(format!("grain directory entry {entry:#x}"))),
    }
}

/// What a SESparse grain table entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SeGrain {
    Unallocated,
    Zero,
    /// The number of a grain.
    Data(u64),
    Invalid,
}

pub(super) fn sesparse_grain(entry: u64) -> SeGrain {
    match entry >> 60 {
        0 if entry == 0 => SeGrain::Unallocated,
        1 | 2 => SeGrain::Zero, // Unmapped by the guest, or zeroed by it.
        3 => SeGrain::Data((entry & 0x0fff_0000_0000_0000) >> 48 | (entry & 0x0000_ffff_ffff_ffff) << 12),
        _ => SeGrain::Invalid,
    }
}
