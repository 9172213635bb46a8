//! Growing. A crash at any write leaves the old image or the new one.
//!
//! Flat: the file is lengthened and flushed, then the descriptor says so. Sparse: entries of the tables past the old end are taken out; new
//! tables (zeroes) and, where the directory's sectors are full, a new directory go behind the end of the file and are flushed; the
//! header's sector then makes them true; the descriptor follows.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

use super::entry::{Entry, Grain};
use super::image::{Body, VmdkImage};
use super::layout::{Header, SECTOR};
use super::sparse::{Packing, Run, SparseExtent};
use super::tables::Table;
use crate::formats::common::check_table;
use crate::image::{Preallocation, Resize};
use crate::{Error, Result, StorageRef};

/// Guest bytes of an extent in the split subformats at most.
const SPLIT: u64 = 2 << 30;
/// Bytes of changed tables that are held at most.
const HELD: u64 = 8 << 20;

impl VmdkImage {
    pub fn grow(&self, to: &Resize) -> Result<()> {
        let (old, last) = (self.size(), self.parts.len().saturating_sub(1));
        let size = to
            .virtual_size
            .checked_next_multiple_of(SECTOR)
            .filter(|s| i64::try_from(*s).is_ok());
        let size = size.ok_or_else(|| Error::invalid(format!("{} bytes are too much for VMDK", to.virtual_size)))?;
        if size < old {
            return Err(Error::unsupported("VMDK images cannot shrink"));
        }
        let Some(part) = self.parts.last().filter(|_| size > old) else {
            return Ok(());
        };
        let len = size - part.start;
        self.refuse_long_split(len)?;
        if let Body::Sparse { extent, .. } = &part.body {
            check_table("the grain directory", extent.directory_bytes(len), &self.limits)?;
        }
        self.refuse_double_use(part.start, part.len())?;
        self.flush_all()?;
        match &part.body {
            Body::Zero => return Err(Error::unsupported("an extent of type ZERO cannot grow")),
            Body::Flat { writable: false, .. } => return Err(Error::unsupported("the last extent is read-only")),
            Body::Flat { storage, offset, .. } => grow_flat(storage, *offset, part.len(), len, to.preallocation)?,
            Body::Sparse { extent, .. } => {
                if to.preallocation != Preallocation::Off {
                    return Err(Error::unsupported("sparse VMDK images cannot be preallocated"));
                }
                extent.grow(part.len(), len)?;
            }
        }
        part.len.store(len, Ordering::Release);
        let mut guard = self.descriptor();
        if let Some((descriptor, place)) = guard.as_mut() {
            descriptor.set_extent_len(last, len);
            descriptor.set_cylinders(size);
            self.store_descriptor(descriptor, *place)?;
        }
        self.main()?.flush()
    }

    fn refuse_long_split(&self, len: u64) -> Result<()> {
        let split = |t: &str| t.starts_with("twoGbMaxExtent");
        if len > SPLIT && self.descriptor().as_ref().is_some_and(|(d, _)| split(&d.create_type)) {
            return Err(Error::unsupported(
                "the last extent would exceed 2 GiB; convert the image to grow it further",
            ));
        }
        Ok(())
    }
}

fn grow_flat(storage: &StorageRef, offset: u64, old: u64, new: u64, how: Preallocation) -> Result<()> {
    let (from, to) = (offset.saturating_add(old), offset.saturating_add(new));
    let len = storage.len()?;
    if len > from {
        storage.write_zeroes(from, len.min(to) - from, true)?;
    }
    if len < to {
        storage.set_len(to)?;
    }
    match how {
        Preallocation::Off => {}
        Preallocation::Metadata => return Err(Error::unsupported("a flat extent has no metadata to preallocate")),
        Preallocation::Falloc => storage.allocate(from, to - from)?,
        Preallocation::Full => crate::storage::write_zero_bytes(storage.as_ref(), from, to - from)?,
    }
    storage.flush()
}

/// New places for tables and directories.
struct Room {
    directory: Vec<u64>,
    redundant: Vec<u64>,
    directory_at: u64,
    redundant_at: Option<u64>,
}

impl SparseExtent {
    /// Bytes of a directory for an extent of so many guest bytes.
    fn directory_bytes(&self, len: u64) -> u64 {
        len.div_ceil(self.grain * self.tables().geometry.entries)
            .saturating_mul(4)
    }

    /// Grows from `old` guest bytes to `new`; `old` may be less than the capacity where a descriptor uses a part only.
    fn grow(&self, old: u64, new: u64) -> Result<()> {
        self.refuse_read_only()?;
        if self.packing != Packing::Plain {
            return Err(Error::unsupported("streamOptimized images cannot grow"));
        }
        let Some(header) = &self.header else {
            return Err(Error::unsupported("ESX sparse extents cannot grow"));
        };
        self.clear_tail(old, new)?;
        self.forget_past(old)?;
        if new <= self.capacity() {
            return Ok(());
        }
        let _growth = self.growth();
        let mut header = header.lock().unwrap_or_else(PoisonError::into_inner);
        let mut tables = self.tables_mut();
        let count = new.div_ceil(header.table_covers());
        let room = self.room_for(&tables, count)?;
        let changed = with_room(&header, new, &room);
        self.broken_by(self.file.flush())?;
        self.broken_by(self.file.write_at(0, changed.as_bytes()))?;
        self.broken_by(self.file.flush())?;
        (tables.directory_at, tables.redundant_at) = (room.directory_at, room.redundant_at);
        tables.grow(room.directory, room.redundant);
        header.raw = changed;
        header.capacity = new;
        self.capacity.store(new, Ordering::Release);
        Ok(())
    }

    /// What the last grain has past the old end becomes visible: it must be zeroes.
    fn clear_tail(&self, old: u64, new: u64) -> Result<()> {
        let end = old.next_multiple_of(self.grain).min(new);
        if end > old
            && let (Run::Data(place), len) = self.run_of_grain(old, end - old)?
        {
            self.zero_place(place, len, false)?;
        }
        Ok(())
    }

    /// Takes out what the tables, redundant ones too, say of grains past the old end, in the file as well: another program may have left
    /// something there, or the descriptor shows a part of the extent only.
    fn forget_past(&self, old: u64) -> Result<()> {
        let (entries, count) = (self.tables().geometry.entries, self.tables().count());
        let mut twins = self.tables().of_twins();
        let mut grain = old.div_ceil(self.grain);
        while grain / entries < count {
            let (index, slot) = self.slot(grain);
            let both = [self.table(index)?, self.twin_table(&mut twins, index)?];
            let rest = |table: &Table| {
                let mut rest = table.iter().skip(usize::try_from(slot).unwrap_or(usize::MAX));
                rest.any(|entry| entry.grain() != Grain::Unallocated)
            };
            if both.iter().flatten().any(rest) {
                let _growth = self.growth();
                self.set_run(grain, entries - slot, |_| Entry::UNALLOCATED)?;
            }
            let empty = both
                .iter()
                .map(|table| table.as_ref().err().copied().unwrap_or(1))
                .min();
            grain = index.saturating_add(empty.unwrap_or(1)).saturating_mul(entries);
            if self.tables().dirty_bytes() > HELD {
                self.flush(true)?;
            }
        }
        self.flush(true)
    }
    fn run_of_grain(&self, at: u64, len: u64) -> Result<(Run, u64)> {
        if at / self.grain >= self.capacity().div_ceil(self.grain) {
            return Ok((Run::Unallocated, len));
        }
        self.run(at, len)
    }

    /// Writes directories for `count` tables, in place where their last sector has room, and gives the new tables places.
    fn room_for(&self, tables: &super::tables::Tables, count: u64) -> Result<Room> {
        let (old, twin) = (tables.count(), tables.redundant_at.is_some());
        let table_bytes = tables.geometry.table_bytes().next_multiple_of(SECTOR);
        let copies = if twin { 2 } else { 1 };
        let moves = (count * 4).div_ceil(SECTOR) > (old * 4).div_ceil(SECTOR);
        let directory_bytes = if moves { (count * 4).next_multiple_of(SECTOR) } else { 0 };
        let added = count.saturating_sub(old) * table_bytes;
        let total = copies * (directory_bytes + added);
        let start = self.new_place(total.div_ceil(self.grain))?;
        if total > 0 {
            let end = start + total.next_multiple_of(self.grain);
            self.file.set_len(end)?;
            self.end.store(end, Ordering::Release);
        }
        let with = |places: &[u64], first: u64| -> Vec<u64> {
            places
                .iter()
                .copied()
                .chain((0..count.saturating_sub(old)).map(|n| first + n * table_bytes))
                .collect()
        };
        let first_table = start + copies * directory_bytes;
        let room = Room {
            redundant: if twin {
                with(tables.redundant(), first_table)
            } else {
                Vec::new()
            },
            directory: with(tables.directory(), first_table + (copies - 1) * added),
            redundant_at: tables.redundant_at.map(|at| if moves { start } else { at }),
            directory_at: if moves {
                start + (copies - 1) * directory_bytes
            } else {
                tables.directory_at
            },
        };
        let from = if moves { 0 } else { old };
        if let Some(at) = room.redundant_at {
            self.write_directory(at, from, &room.redundant)?;
        }
        self.write_directory(room.directory_at, from, &room.directory)?;
        Ok(room)
    }

    fn write_directory(&self, at: u64, from: u64, places: &[u64]) -> Result<()> {
        let new = places
            .get(usize::try_from(from).unwrap_or(usize::MAX)..)
            .unwrap_or_default();
        let mut bytes = Vec::with_capacity(new.len() * 4);
        for place in new {
            let sector = u32::try_from(place / SECTOR).map_err(|_| Error::limit("a grain table past 2 TiB"))?;
            bytes.extend_from_slice(&sector.to_le_bytes());
        }
        self.file.write_at(at + from * 4, &bytes)
    }
}

fn with_room(header: &Header, capacity: u64, room: &Room) -> super::layout::RawHeader {
    let mut raw = header.raw;
    raw.capacity = U64::new(capacity / SECTOR);
    raw.directory_offset = U64::new(room.directory_at / SECTOR);
    if let Some(at) = room.redundant_at {
        raw.redundant_offset = U64::new(at / SECTOR);
    }
    raw
}
