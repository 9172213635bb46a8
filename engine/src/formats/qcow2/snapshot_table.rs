//! The table of internal snapshots: entries of varying length, each padded to 8 bytes.

use std::ops::Range;

use super::layout::extensions::text;
use super::layout::header::{MAX_L1_BYTES, MAX_SNAPSHOTS};
use super::layout::{Geometry, Header, be32, be64};
use crate::image::SnapshotInfo;
use crate::storage::Storage;
use crate::{Error, ErrorKind, Result};

/// Bytes of an entry before its extra data.
const FIXED: usize = 40;
/// QEMU takes no more extra data.
const MAX_EXTRA: u32 = 1024;
/// QEMU's bound on the whole table.
const MAX_TABLE: u64 = 64 << 20;
/// The extra data that we know and write: size of the VM state, virtual size, instruction count.
pub(super) const KNOWN_EXTRA: usize = 24;

/// One internal snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Snapshot {
    pub l1_offset: u64,
    pub l1_size: u32,
    pub id: String,
    pub name: String,
    pub date_sec: u32,
    pub date_nsec: u32,
    pub vm_clock_nsec: u64,
    pub vm_state_size: u64,
    /// Virtual size at that time; `None` in entries too old to say: then it is the image's.
    pub virtual_size: Option<u64>,
    pub icount: Option<u64>,
    /// Bytes of extra data that we know, as found: 0 to 24. We write 24.
    pub known_extra: usize,
    /// Extra data past what we know, kept as it is.
    pub unknown_extra: Vec<u8>,
}

impl Snapshot {
    /// For lists.
    pub fn info(&self, virtual_size: u64) -> SnapshotInfo {
        SnapshotInfo {
            id: self.id.clone(),
            name: self.name.clone(),
            vm_state_size: self.vm_state_size,
            virtual_size: self.virtual_size.unwrap_or(virtual_size),
            date_sec: u64::from(self.date_sec),
            date_nsec: self.date_nsec,
            vm_clock_nsec: self.vm_clock_nsec,
            icount: self.icount,
        }
    }
    /// Bytes of its entry in the table, as read or written.
    pub fn stored_len(&self) -> u64 {
        ((FIXED + self.extra_len() + self.id.len() + self.name.len()) as u64).next_multiple_of(8)
    }
    fn extra_len(&self) -> usize {
        self.known_extra + self.unknown_extra.len()
    }
    /// Bytes of its L1 table.
    pub fn l1_bytes(&self) -> u64 {
        u64::from(self.l1_size) * 8
    }

    /// Whether its L1 table can be where the entry says. Damage here is no reason to refuse the image, only the snapshot.
    ///
    /// # Errors
    /// `LimitExceeded` for a table too large, `Corrupt` for a place where none can be.
    pub fn check(&self, geometry: &Geometry) -> Result<()> {
        let (id, name) = (self.id.escape_debug(), self.name.escape_debug());
        if self.l1_bytes() > MAX_L1_BYTES {
            return Err(Error::limit(format!(
                "snapshot {id} ({name}) l1_size={:#x}: L1 table is too large; snapshot table entry corrupted",
                self.l1_size
            )));
        }
        if self.l1_size > 0 && (self.l1_offset == 0 || geometry.in_cluster(self.l1_offset) != 0) {
            return Err(Error::corrupt(format!(
                "snapshot {id} ({name}) l1_offset={:#x}: L1 table is not cluster aligned; snapshot table entry corrupted",
                self.l1_offset
            )));
        }
        Ok(())
    }

    /// The entry as bytes, padded.
    pub fn encode(&self, virtual_size: u64) -> Vec<u8> {
        let mut out = Vec::new();
        let extra = KNOWN_EXTRA + self.unknown_extra.len();
        out.extend_from_slice(&self.l1_offset.to_be_bytes());
        out.extend_from_slice(&self.l1_size.to_be_bytes());
        out.extend_from_slice(&(self.id.len() as u16).to_be_bytes());
        out.extend_from_slice(&(self.name.len() as u16).to_be_bytes());
        out.extend_from_slice(&self.date_sec.to_be_bytes());
        out.extend_from_slice(&self.date_nsec.to_be_bytes());
        out.extend_from_slice(&self.vm_clock_nsec.to_be_bytes());
        out.extend_from_slice(&u32::try_from(self.vm_state_size).unwrap_or(0).to_be_bytes());
        out.extend_from_slice(&(extra as u32).to_be_bytes());
        out.extend_from_slice(&self.vm_state_size.to_be_bytes());
        out.extend_from_slice(&self.virtual_size.unwrap_or(virtual_size).to_be_bytes());
        out.extend_from_slice(&self.icount.unwrap_or(u64::MAX).to_be_bytes());
        out.extend_from_slice(&self.unknown_extra);
        out.extend_from_slice(self.id.as_bytes());
        out.extend_from_slice(self.name.as_bytes());
        out.resize(out.len().next_multiple_of(8), 0);
        out
    }
}

/// The table as far as it can be read.
#[derive(Debug, Default)]
pub(super) struct SnapshotTable {
    /// The entries before the first damaged one.
    pub list: Vec<Snapshot>,
    /// Why the rest cannot be read.
    pub damage: Option<TableDamage>,
}

/// A table that cannot be read to its end: there are snapshots that nobody knows, and whose clusters nobody can count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TableDamage(String);

impl TableDamage {
    /// What is damaged.
    pub fn text(&self) -> &str {
        &self.0
    }
    /// Why the image cannot be written.
    pub fn refusal(&self) -> Error {
        Error::corrupt(format!(
            "{}; clusters of unknown snapshots cannot be told from free ones, so the image can be read and copied, but not written",
            self.0
        ))
    }
}

/// Reads the snapshot table that the header names, up to the first entry that is damaged.
///
/// # Errors
/// `Io` when the file cannot be read.
pub(super) fn read(storage: &dyn Storage, header: &Header) -> Result<SnapshotTable> {
    let mut table = SnapshotTable::default();
    let mut reader = Reader::new(storage, header.snapshots_offset)?;
    for number in 0..header.nb_snapshots.min(MAX_SNAPSHOTS) {
        let place = reader.position();
        match read_one(&mut reader) {
            Ok(snapshot) => table.list.push(snapshot),
            Err(error) if error.kind() == ErrorKind::Io => return Err(error),
            Err(error) => {
                let what = format!("snapshot {number} at {place:#x} is damaged: {}", error.what());
                table.damage = Some(TableDamage(what));
                break;
            }
        }
    }
    Ok(table)
}

/// The bytes of a whole table.
pub(super) fn encode(list: &[Snapshot], virtual_size: u64) -> Vec<u8> {
    list.iter().flat_map(|s| s.encode(virtual_size)).collect()
}

fn read_one(reader: &mut Reader<'_>) -> Result<Snapshot> {
    let fixed = reader.take(FIXED)?;
    let half = |at: usize| {
        fixed
            .get(at..at + 2)
            .map_or(0, |b| usize::from(b[0]) << 8 | usize::from(b[1]))
    };
    let (id_len, name_len) = (half(12), half(14));
    let extra_len = be32(&fixed, 36)?;
    if extra_len > MAX_EXTRA {
        return Err(Error::limit(format!("{extra_len} bytes of extra data are too many")));
    }
    let extra = reader.take(extra_len as usize)?;
    let id = text("id", &reader.take(id_len)?)?;
    let name = text("name", &reader.take(name_len)?)?;
    reader.align()?;
    let extra_word = |at: usize| extra.get(at..at + 8).and_then(|_| be64(&extra, at).ok());
    Ok(Snapshot {
        l1_offset: be64(&fixed, 0)?,
        l1_size: be32(&fixed, 8)?,
        id,
        name,
        date_sec: be32(&fixed, 16)?,
        date_nsec: be32(&fixed, 20)?,
        vm_clock_nsec: be64(&fixed, 24)?,
        vm_state_size: extra_word(0).unwrap_or(u64::from(be32(&fixed, 32)?)),
        virtual_size: extra_word(8),
        icount: extra_word(16).filter(|n| *n != u64::MAX),
        known_extra: extra.len().min(KNOWN_EXTRA),
        unknown_extra: extra.get(KNOWN_EXTRA..).unwrap_or_default().to_vec(),
    })
}

/// Reads a table of unknown length in steps.
struct Reader<'a> {
    storage: &'a dyn Storage,
    start: u64,
    file_end: u64,
    buffer: Vec<u8>,
    /// Bytes of the table before the buffer, and bytes of the buffer that are used up.
    before: u64,
    used: usize,
}

impl<'a> Reader<'a> {
    const STEP: u64 = 64 << 10;

    fn new(storage: &'a dyn Storage, start: u64) -> Result<Self> {
        Ok(Self {
            storage,
            start,
            file_end: storage.len()?,
            buffer: Vec::new(),
            before: 0,
            used: 0,
        })
    }
    fn position(&self) -> u64 {
        self.start + self.before + self.used as u64
    }
    fn take(&mut self, len: usize) -> Result<Vec<u8>> {
        let window: Range<usize> = self.used..self.used + len;
        if let Some(part) = self.buffer.get(window) {
            self.used += len;
            return Ok(part.to_vec());
        }
        self.before += self.used as u64;
        let at = self.start + self.before;
        let step = Self::STEP.max(len as u64).min(self.file_end.saturating_sub(at));
        if step < len as u64 {
            return Err(Error::corrupt(format!(
                "the snapshot table ends past the end of the file at {:#x}",
                self.file_end
            )));
        }
        if self.before + step > MAX_TABLE {
            return Err(Error::limit("the snapshot table is longer than 64 MiB"));
        }
        self.buffer = vec![0; step as usize];
        self.storage.read_at(at, &mut self.buffer)?;
        self.used = len;
        Ok(self.buffer.get(..len).unwrap_or_default().to_vec())
    }
    /// Goes on to the next multiple of 8; the file may end before it.
    fn align(&mut self) -> Result<()> {
        let position = self.before + self.used as u64;
        let skip = position.next_multiple_of(8) - position;
        let there = self.file_end.saturating_sub(self.position()).min(skip);
        self.take(there as usize).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;

    #[test]
    fn a_table_round_trips_with_unknown_extra_data() {
        let one = Snapshot {
            l1_offset: 0x40000,
            l1_size: 1,
            id: "1".into(),
            name: "before the update".into(),
            date_sec: 1,
            date_nsec: 2,
            vm_clock_nsec: 3,
            vm_state_size: 5 << 32,
            virtual_size: Some(1 << 20),
            icount: Some(7),
            known_extra: KNOWN_EXTRA,
            unknown_extra: vec![9; 8],
        };
        let two = Snapshot {
            id: "2".into(),
            virtual_size: Some(512),
            known_extra: KNOWN_EXTRA,
            ..Snapshot::default()
        };
        let list = vec![one, two];
        let storage = MemoryStorage::new("m", encode(&list, 0));
        let header = Header {
            nb_snapshots: 2,
            ..Header::default()
        };
        let table = read(&storage, &header).unwrap();
        assert_eq!((table.list, table.damage), (list.clone(), None));
        let more = Header {
            nb_snapshots: 3,
            ..Header::default()
        };
        let table = read(&storage, &more).unwrap();
        assert_eq!(table.list, list);
        assert!(table.damage.is_some());
    }
}
