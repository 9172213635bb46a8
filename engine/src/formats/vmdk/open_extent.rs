//! Opening sparse extents: header, footer, directory.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Mutex, RwLock};

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::entry::{EntryKind, Geometry};
use super::esx::{COWD_MAGIC, EsxHeader, RawCowd, RawSeSparse, RawVolatile, sesparse_table};
use super::inflate::LastGrain;
use super::layout::{Header, RawHeader, RawMarker, SECTOR, marker};
use super::metadata::{Metadata, Overlap, Role};
use super::reserved::Reserved;
use super::sparse::{Packing, SparseExtent};
use super::tables::{Tables, read_inside};
use crate::storage::{read_padded, read_vec};
use crate::{Error, Limits, OpenEnv, Result, StorageRef};

/// Overlaps that a check tells at most.
const TOLD: usize = 100;

pub(super) fn read_header(file: &StorageRef) -> Result<Header> {
    let mut raw = RawHeader::new_zeroed();
    read_padded(file.as_ref(), 0, raw.as_mut_bytes())?;
    if file.len()? < SECTOR {
        return Err(Error::not_this_format("the file is too short for a sparse extent"));
    }
    raw.checked()
}

pub(super) fn open_hosted(file: &StorageRef, header: Header, env: &OpenEnv<'_>) -> Result<SparseExtent> {
    let least = header.overhead;
    if file.len()?.div_ceil(SECTOR) * SECTOR < least {
        // Metadata is missing: what it would have named is lost.
        return Err(Error::corrupt(format!(
            "File truncated, expecting at least {least} bytes"
        )));
    }
    let directory_at = match header.directory {
        Some(at) => at,
        None => footer(file, &header)?,
    };
    let count = header.tables();
    let floor = header
        .descriptor
        .map_or(SECTOR, |(o, l)| o.saturating_add(l))
        .max(SECTOR);
    if count > 0 && directory_at < SECTOR {
        return Err(Error::corrupt("the grain directory lies in the header").at("header.directory_offset"));
    }
    let directory = read_directory(file, directory_at, count, env.limits)?;
    let redundant = header
        .redundant
        .map_or(Ok(Vec::new()), |at| read_directory(file, at, count, env.limits));
    // A reader does not need the redundant directory, so it does not mind a bad one.
    let redundant = if env.writable && !env.for_check {
        redundant?
    } else {
        redundant.unwrap_or_default()
    };
    let redundant_at = header.redundant.filter(|_| !redundant.is_empty());
    let packing = if header.compressed {
        Packing::Deflated {
            markers: header.markers,
        }
    } else {
        Packing::Plain
    };
    if header.compressed && header.grain > env.limits.decompressed_bytes {
        return Err(Error::limit(format!("compressed grains of {} bytes", header.grain)));
    }
    let kind = EntryKind::Sectors {
        zero_grains: header.zero_grains,
    };
    let mut tables = Tables::new(geometry(kind, header.entries, floor, env.limits), directory, redundant);
    tables.directory_at = directory_at;
    tables.redundant_at = redundant_at;
    let version_3 = "VMDK version 3 must be read only (changed block tracking would be wrong afterwards)";
    let read_only = (header.version == 3 && !header.compressed).then_some(version_3);
    let (reserved, tangled) = if env.for_check {
        sort_out(&header, &mut tables, file.len()?)
    } else if env.writable {
        (refuse_unsound(&header, &tables, file.len()?)?, Vec::new())
    } else {
        (Reserved::default(), Vec::new())
    };
    let mut extent = sparse(file, packing, header.capacity, header.grain, tables)?;
    extent.reserved = reserved;
    extent.zero_grains = header.zero_grains;
    extent.read_only = read_only.or((!tangled.is_empty()).then_some("its grain tables lie over other metadata"));
    extent.tangled = tangled;
    extent.header = Some(Mutex::new(header));
    Ok(extent)
}

/// Descriptor, directories and tables are written each for itself: a byte of one must not be one of another as well. A redundant table
/// past the end would make the file as long as its place says.
fn refuse_unsound(header: &Header, tables: &Tables, file_end: u64) -> Result<Reserved> {
    let metadata = Metadata::new(Some(header), tables);
    if let Some(overlap) = metadata.overlaps().next() {
        return Err(Error::corrupt(format!(
            "{overlap}; a check tells whether it can be repaired"
        )));
    }
    if let Some((index, place)) = outside(tables, file_end).next() {
        return Err(Error::corrupt(format!(
            "redundant grain table {index} at {place:#x} ends past the end of the file at {file_end:#x}; check can repair it"
        )));
    }
    Ok(Reserved::new(&metadata))
}

/// For a check: redundant tables that have no place of their own are not used, and what else is at fault is told.
fn sort_out(header: &Header, tables: &mut Tables, file_end: u64) -> (Reserved, Vec<Overlap>) {
    let metadata = Metadata::new(Some(header), tables);
    let twin = |place: (u64, Role)| match place.1 {
        Role::Twin(index) => Some((index, place.0)),
        _ => None,
    };
    let both = metadata.overlaps().flat_map(|o| [twin(o.first), twin(o.second)]);
    let lost = both.flatten().chain(outside(tables, file_end)).collect();
    tables.lose_twins(lost);
    let metadata = Metadata::new(Some(header), tables);
    (Reserved::new(&metadata), metadata.overlaps().take(TOLD).collect())
}

/// Redundant tables that the file ends before.
fn outside(tables: &Tables, file_end: u64) -> impl Iterator<Item = (u32, u64)> {
    let bytes = tables.geometry.table_bytes();
    let all = (0..).zip(tables.redundant().iter().copied());
    all.filter(move |(_, place)| *place != 0 && place.saturating_add(bytes) > file_end)
}

fn sparse(file: &StorageRef, packing: Packing, capacity: u64, grain: u64, tables: Tables) -> Result<SparseExtent> {
    Ok(SparseExtent {
        end: AtomicU64::new(file.len()?.checked_next_multiple_of(grain).unwrap_or(u64::MAX)),
        file: file.clone(),
        packing,
        capacity: AtomicU64::new(capacity),
        grain,
        zero_grains: false,
        read_only: None,
        header: None,
        reserved: Reserved::default(),
        tables: RwLock::new(tables),
        growth: Mutex::new(()),
        broken: AtomicBool::new(false),
        looked: AtomicBool::new(false),
        tangled: Vec::new(),
        last: LastGrain::default(),
    })
}

fn geometry(kind: EntryKind, entries: u64, floor: u64, limits: &Limits) -> Geometry {
    // A batch of tables that is read at once must fit.
    let kept = usize::try_from(limits.cache_bytes / (entries * 8))
        .unwrap_or(0)
        .max(160);
    Geometry {
        kind,
        entries,
        floor,
        kept,
    }
}

/// Where the footer says the grain directory is.
fn footer(file: &StorageRef, header: &Header) -> Result<u64> {
    let corrupt = |what: &str| Error::corrupt(what).at("footer");
    let at = file
        .len()?
        .checked_sub(3 * SECTOR)
        .ok_or_else(|| corrupt("the file is too short for one"))?;
    let raw = read_vec(file.as_ref(), at, 3 * 512)?;
    let (first, rest) = raw.split_at(512);
    let (middle, last) = rest.split_at(512);
    let marker_of = |sector| RawMarker::read_from_prefix(sector).map(|(m, _)| (m.size.get(), m.kind.get()));
    if marker_of(first) != Ok((0, marker::FOOTER)) || marker_of(last) != Ok((0, marker::END_OF_STREAM)) {
        return Err(corrupt(
            "expected a footer and an end-of-stream marker in the last three sectors",
        ));
    }
    let (raw, _) = RawHeader::read_from_prefix(middle).map_err(|_| corrupt("too short"))?;
    let footer = raw.checked().map_err(|e| corrupt(e.what()))?;
    if !header.same_extent(&footer) {
        return Err(corrupt("it contradicts the header"));
    }
    footer
        .directory
        .ok_or_else(|| corrupt("it does not say where the grain directory is"))
}

/// Reads a directory of 32-bit sector numbers as bytes of the file.
fn read_directory(file: &StorageRef, at: u64, count: u64, limits: &Limits) -> Result<Vec<u64>> {
    let raw = read_table(file, at, count.saturating_mul(4), limits)?;
    let sectors = <[U32]>::ref_from_bytes(&raw).map_err(|_| Error::corrupt("a grain directory of odd length"))?;
    Ok(sectors.iter().map(|s| u64::from(s.get()) * SECTOR).collect())
}

fn read_table(file: &StorageRef, at: u64, bytes: u64, limits: &Limits) -> Result<Vec<u8>> {
    if bytes > limits.table_bytes {
        let limit = limits.table_bytes;
        return Err(
            Error::limit(format!("L1 size too big: {bytes} bytes exceed the limit of {limit}")).at("grain directory"),
        );
    }
    let len = usize::try_from(bytes).map_err(|_| Error::limit("a grain directory past the address space"))?;
    read_inside(file.as_ref(), at, len, "grain directory")
}

pub(super) fn open_esx(file: &StorageRef, env: &OpenEnv<'_>) -> Result<SparseExtent> {
    let mut head = [0; 1024];
    read_padded(file.as_ref(), 0, &mut head)?;
    let cowd = RawCowd::read_from_prefix(&head)
        .map_err(|_| Error::corrupt("no header"))?
        .0;
    let (header, kind) = if cowd.magic.get() == COWD_MAGIC {
        (cowd.checked()?, EntryKind::Sectors { zero_grains: false })
    } else {
        let (raw, rest) = RawSeSparse::read_from_prefix(&head).map_err(|_| Error::corrupt("no header"))?;
        let volatile = RawVolatile::read_from_prefix(rest)
            .map_err(|_| Error::corrupt("no header"))?
            .0;
        let header = raw.checked(&volatile)?;
        (
            header,
            EntryKind::SeSparse {
                grains_at: header.grains_at,
                grain: header.grain,
            },
        )
    };
    let directory = match kind {
        EntryKind::Sectors { .. } => read_directory(file, header.directory, header.tables, env.limits)?,
        EntryKind::SeSparse { .. } => read_sesparse_directory(file, &header, env.limits)?,
    };
    let tables = Tables::new(
        geometry(kind, header.entries, SECTOR, env.limits),
        directory,
        Vec::new(),
    );
    let mut extent = sparse(file, Packing::Plain, header.capacity, header.grain, tables)?;
    extent.read_only = Some("ESX sparse extents are read-only here");
    Ok(extent)
}

fn read_sesparse_directory(file: &StorageRef, header: &EsxHeader, limits: &Limits) -> Result<Vec<u64>> {
    let raw = read_table(file, header.directory, header.tables.saturating_mul(8), limits)?;
    let entries = <[U64]>::ref_from_bytes(&raw).map_err(|_| Error::corrupt("a grain directory of odd length"))?;
    let table_bytes = header.entries * 8;
    let place = |entry: &U64| match sesparse_table(entry.get())? {
        None => Ok(0),
        Some(n) => Ok(header.tables_at.saturating_add(n.saturating_mul(table_bytes))),
    };
    entries.iter().map(place).collect()
}
