//! The table of internal snapshots in the file: reading it as far as it goes, replacing it.

use std::ops::Range;

use super::super::image::Qcow2;
use super::super::layout::Header;
use super::super::layout::header::MAX_SNAPSHOTS;
use super::super::writer::Writer;
use super::entry::{KNOWN_EXTRA, Snapshot, read_one};
use crate::storage::Storage;
use crate::{Error, ErrorKind, Result};

/// QEMU's bound on the whole table.
const MAX_TABLE: u64 = 64 << 20;

/// The table as far as it can be read.
#[derive(Debug, Default)]
pub(in crate::formats::qcow2) struct SnapshotTable {
    /// The entries before the first damaged one.
    pub list: Vec<Snapshot>,
    /// Why the rest cannot be read.
    pub damage: Option<TableDamage>,
}

/// A table that cannot be read to its end: there are snapshots that nobody knows, and whose clusters nobody can count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::formats::qcow2) struct TableDamage(String);

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
pub(in crate::formats::qcow2) fn read(storage: &dyn Storage, header: &Header) -> Result<SnapshotTable> {
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
fn encode(list: &[Snapshot], virtual_size: u64) -> Vec<u8> {
    list.iter().flat_map(|s| s.encode(virtual_size)).collect()
}

impl Qcow2 {
    /// Writes the snapshot table anew, with all that an entry should have.
    pub fn rewrite_snapshot_table(&self, writer: &mut Writer) -> Result<()> {
        let list = self.read_shared().snapshots.clone();
        self.replace_snapshot_table(writer, list)?;
        self.write_back(writer)?;
        self.host.flush()
    }

    /// Writes a new snapshot table and points the header at it.
    ///
    /// Order: table with its refcounts, flush, header (count and offset in one write), flush, then the old table is free.
    pub(super) fn replace_snapshot_table(&self, writer: &mut Writer, mut list: Vec<Snapshot>) -> Result<()> {
        list.iter_mut().for_each(|s| s.known_extra = KNOWN_EXTRA);
        let (old_at, old_len, virtual_size) = {
            let shared = self.read_shared();
            let len: u64 = shared.snapshots.iter().map(Snapshot::stored_len).sum();
            (shared.header.snapshots_offset, len, shared.header.virtual_size)
        };
        let bytes = encode(&list, virtual_size);
        let at = if bytes.is_empty() {
            0
        } else {
            self.write_new(writer, &bytes)?
        };
        self.stabilise_refcounts(writer)?;
        let mut field = (list.len() as u32).to_be_bytes().to_vec();
        field.extend_from_slice(&at.to_be_bytes());
        self.host.file.write_at(Header::AT_SNAPSHOTS, &field)?;
        self.host.flush()?;
        let mut shared = self.write_shared();
        shared.header.nb_snapshots = list.len() as u32;
        shared.header.snapshots_offset = at;
        shared.snapshots = list;
        drop(shared);
        let mut metadata = self.write_metadata();
        metadata.add(at, bytes.len() as u64);
        if old_len > 0 {
            metadata.remove(old_at, old_len);
            drop(metadata);
            self.free_bytes(writer, old_at, old_len)?;
        }
        Ok(())
    }
}

/// Reads a table of unknown length in steps.
pub(super) struct Reader<'a> {
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
    pub fn take(&mut self, len: usize) -> Result<Vec<u8>> {
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
    pub fn align(&mut self) -> Result<()> {
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
