//! An entry of the table of internal snapshots: of varying length, padded to 8 bytes.

use super::super::layout::extensions::text;
use super::super::layout::header::MAX_L1_BYTES;
use super::super::layout::{Geometry, be32, be64};
use super::table::Reader;
use crate::image::SnapshotInfo;
use crate::{Error, Result};

/// Bytes of an entry before its extra data.
const FIXED: usize = 40;
/// QEMU takes no more extra data.
const MAX_EXTRA: u32 = 1024;
/// The extra data that we know and write: size of the VM state, virtual size, instruction count.
pub(super) const KNOWN_EXTRA: usize = 24;
/// What an entry of version 3 must have of it: size of the VM state, virtual size.
const NEEDED_EXTRA: usize = 16;

/// One internal snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::formats::qcow2) struct Snapshot {
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
    /// Whether an entry of version 3 lacks what each must have.
    pub fn is_incomplete(&self) -> bool {
        self.known_extra < NEEDED_EXTRA
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

/// Reads the next entry.
pub(super) fn read_one(reader: &mut Reader<'_>) -> Result<Snapshot> {
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
