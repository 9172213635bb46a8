//! Internal snapshots: an L1 table of their own that shares L2 tables and clusters with the active one.
//!
//! Refcounts and copied flags change in many places, which no order can make look like one change. So the image is marked dirty around it: after
//! a crash the next writable open counts anew. The step that makes a snapshot appear, become active or vanish is always one header write.

mod entry;
mod sharing;
mod table;

use std::sync::{Arc, Mutex, RwLock};

use self::entry::KNOWN_EXTRA;
pub(super) use self::entry::Snapshot;
pub(super) use self::table::{SnapshotTable, TableDamage, read};
use super::cache::L2Cache;
use super::codec::Codec;
use super::grow::refuse_too_large;
use super::host::Host;
use super::image::{Qcow2, Shared};
use super::layout::header::MAX_SNAPSHOTS;
use super::layout::{Extensions, Header, L1Entry, words_to_be};
use super::open::read_table;
use super::writer::Writer;
use crate::image::{SnapshotInfo, Snapshots};
use crate::{Error, Image, Result};

impl Qcow2 {
    /// Clusters of a data file are not counted, so none could be kept for a snapshot: a later write would change it.
    fn refuse_data_file(&self) -> Result<()> {
        match self.geometry.data_file {
            true => Err(Error::unsupported(
                "an image with an external data file cannot have internal snapshots",
            )),
            false => Ok(()),
        }
    }

    fn find_snapshot(&self, selector: &str) -> Result<(usize, Snapshot)> {
        let shared = self.read_shared();
        let list = &shared.snapshots;
        let by_id = list.iter().position(|s| s.id == selector);
        let found = by_id.or_else(|| list.iter().position(|s| s.name == selector));
        found.and_then(|i| list.get(i).map(|s| (i, s.clone()))).ok_or_else(|| {
            let name = selector.escape_debug();
            match &shared.snapshot_damage {
                None => Error::invalid(format!("there is no snapshot \"{name}\"")),
                Some(damage) => Error::corrupt(format!("no snapshot \"{name}\" can be found; {}", damage.text())),
            }
        })
    }

    pub fn snapshot_l1(&self, snapshot: &Snapshot) -> Result<Vec<u64>> {
        snapshot.check(&self.geometry)?;
        read_table(
            self.host.file.as_ref(),
            &format!("L1 table of snapshot {}", snapshot.id.escape_debug()),
            snapshot.l1_offset,
            snapshot.l1_bytes(),
            self.limits.table_bytes,
        )
    }

    fn new_snapshot(&self, name: &str, when: (u64, u32)) -> Result<Snapshot> {
        let shared = self.read_shared();
        if shared.snapshots.len() >= MAX_SNAPSHOTS as usize {
            return Err(Error::limit(format!("an image has at most {MAX_SNAPSHOTS} snapshots")));
        }
        if name.len() > usize::from(u16::MAX) || name.contains('\0') {
            return Err(Error::invalid("a snapshot name has at most 65535 bytes and no NUL"));
        }
        if shared.header.refcount_order == 0 && shared.l1.iter().any(|raw| *raw != 0) {
            return Err(Error::unsupported("refcounts of 1 bit have no room for snapshots"));
        }
        let last = shared.snapshots.iter().filter_map(|s| s.id.parse::<u64>().ok()).max();
        Ok(Snapshot {
            l1_size: shared.header.l1_size,
            id: last.unwrap_or(0).saturating_add(1).to_string(),
            name: name.to_owned(),
            date_sec: u32::try_from(when.0).unwrap_or(u32::MAX),
            date_nsec: when.1,
            virtual_size: Some(shared.header.virtual_size),
            // Outside of a running machine no instructions were counted; qemu-img stores that as 0.
            icount: Some(0),
            known_extra: KNOWN_EXTRA,
            ..Snapshot::default()
        })
    }

    fn take_snapshot(&self, writer: &mut Writer, mut snapshot: Snapshot) -> Result<Snapshot> {
        let l1: Vec<u64> = self.read_shared().l1.iter().map(|raw| self.unshared(*raw)).collect();
        self.count_up(writer, &l1)?;
        if !l1.is_empty() {
            snapshot.l1_offset = self.write_new(writer, &words_to_be(&l1))?;
        }
        self.refresh_flags(writer)?;
        self.write_back(writer)?;
        let mut list = self.read_shared().snapshots.clone();
        list.push(snapshot.clone());
        self.write_metadata().add(snapshot.l1_offset, snapshot.l1_bytes());
        self.replace_snapshot_table(writer, list)?;
        Ok(snapshot)
    }

    /// An L1 entry without its copied flag.
    fn unshared(&self, raw: u64) -> u64 {
        match L1Entry::decode(raw, &self.geometry) {
            Ok(L1Entry::Table { at, .. }) => L1Entry::Table { at, copied: false }.encode(),
            _ => 0,
        }
    }

    /// What a snapshot's entry says of its disk is as little to be trusted as a header: nothing is changed for a size that no image can have.
    fn refuse_disk(&self, snapshot: &Snapshot, size: u64, old: u64) -> Result<()> {
        snapshot.check(&self.geometry)?;
        if size == old {
            return Ok(());
        }
        let refusal = if !size.is_multiple_of(512) {
            Err(Error::corrupt("the size is not a multiple of 512"))
        } else if size > self.limits.virtual_size {
            Err(Error::limit("the size is too large"))
        } else {
            refuse_too_large(&self.geometry, size, &self.limits)
        };
        refusal.map_err(|error| {
            let what = format!(
                "snapshot \"{}\" has a disk of {size} bytes",
                snapshot.name.escape_debug()
            );
            Error::new(error.kind(), what).because(error)
        })
    }

    fn go_back(&self, writer: &mut Writer, snapshot: &Snapshot) -> Result<()> {
        let (old_l1, old_at, size, needed) = {
            let shared = self.read_shared();
            let size = snapshot.virtual_size.unwrap_or(shared.header.virtual_size);
            (
                shared.l1.clone(),
                shared.header.l1_offset,
                size,
                self.geometry.l1_entries(size),
            )
        };
        let mut l1: Vec<u64> = self
            .snapshot_l1(snapshot)?
            .iter()
            .map(|raw| self.unshared(*raw))
            .collect();
        let entries = (l1.len() as u64).max(needed).max(old_l1.len() as u64);
        let l1_size = u32::try_from(entries).map_err(|_| Error::limit(format!("an L1 table of {entries} entries")))?;
        l1.resize(l1_size as usize, 0);
        self.count_up(writer, &l1)?;
        let at = self.write_new(writer, &words_to_be(&l1))?;
        self.stabilise_refcounts(writer)?;
        self.note_write(writer, 0, u64::MAX)?;
        self.change_header(writer, |s| {
            s.header.l1_offset = at;
            s.header.l1_size = l1_size;
            s.header.virtual_size = size;
        })?;
        self.host.flush()?;
        {
            let mut shared = self.write_shared();
            shared.l1 = l1;
            shared.l2.clear();
        }
        self.count_down(writer, &old_l1)?;
        if !old_l1.is_empty() {
            self.free_bytes(writer, old_at, old_l1.len() as u64 * 8)?;
        }
        self.refresh_flags(writer)?;
        self.write_back(writer)?;
        self.reload(writer)
    }
}

impl Snapshots for Qcow2 {
    fn list(&self) -> Result<Vec<SnapshotInfo>> {
        let shared = self.read_shared();
        let size = shared.header.virtual_size;
        Ok(shared.snapshots.iter().map(|s| s.info(size)).collect())
    }

    fn create(&self, name: &str, when: (u64, u32)) -> Result<SnapshotInfo> {
        self.refuse_data_file()?;
        let snapshot = self.new_snapshot(name, when)?;
        let size = snapshot.virtual_size.unwrap_or(0);
        let mut taken = None;
        let done = self.marked(&[], |writer| {
            taken = Some(self.take_snapshot(writer, snapshot.clone())?);
            Ok(())
        });
        self.closed_when_failed(done)?;
        Ok(taken.unwrap_or(snapshot).info(size))
    }

    fn apply(&self, selector: &str) -> Result<()> {
        self.refuse_data_file()?;
        let (_, snapshot) = self.find_snapshot(selector)?;
        let (old, version) = {
            let header = &self.read_shared().header;
            (header.virtual_size, header.version)
        };
        let size = snapshot.virtual_size.unwrap_or(old);
        if version < 3 && size != old {
            return Err(Error::unsupported(
                "a version 2 image cannot go back to a snapshot of another size",
            ));
        }
        self.refuse_disk(&snapshot, size, old)?;
        let done = self.marked(std::slice::from_ref(&snapshot), |writer| {
            self.hold_all_bitmaps(writer, size)?;
            self.go_back(writer, &snapshot)?;
            self.fit_bitmaps(writer);
            self.note_write(writer, 0, size)?;
            self.save_bitmaps(writer)
        });
        self.closed_when_failed(done)
    }

    fn delete(&self, selector: &str) -> Result<()> {
        self.refuse_data_file()?;
        let (index, snapshot) = self.find_snapshot(selector)?;
        self.read_metadata().refuse_conflicts()?;
        let l1 = self.snapshot_l1(&snapshot)?;
        let done = self.marked(std::slice::from_ref(&snapshot), |writer| {
            let mut list = self.read_shared().snapshots.clone();
            list.remove(index);
            self.replace_snapshot_table(writer, list)?;
            self.count_down(writer, &l1)?;
            self.write_metadata().remove(snapshot.l1_offset, snapshot.l1_bytes());
            if snapshot.l1_size > 0 {
                self.free_bytes(writer, snapshot.l1_offset, snapshot.l1_bytes())?;
            }
            self.refresh_flags(writer)
        });
        self.closed_when_failed(done)
    }

    fn open(&self, selector: &str) -> Result<Box<dyn Image>> {
        if let Some(writer) = &self.writer {
            let mut writer = writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            self.write_back(&mut writer)?;
        }
        let (_, snapshot) = self.find_snapshot(selector)?;
        let l1 = self.snapshot_l1(&snapshot)?;
        let shared = self.read_shared();
        let virtual_size = snapshot.virtual_size.unwrap_or(shared.header.virtual_size);
        if (l1.len() as u64) < self.geometry.l1_entries(virtual_size) {
            return Err(Error::corrupt(format!(
                "snapshot \"{}\" has {} L1 entries, too few for {virtual_size} bytes",
                selector.escape_debug(),
                l1.len()
            )));
        }
        let header = Header {
            virtual_size,
            l1_size: snapshot.l1_size,
            l1_offset: snapshot.l1_offset,
            nb_snapshots: 0,
            ..shared.header.clone()
        };
        Ok(Box::new(Self {
            geometry: self.geometry,
            host: Arc::new(Host::new(self.host.file.clone(), self.host.data.clone())),
            codec: Codec::new(self.geometry.compression),
            encryption: self.encryption.clone(),
            limits: self.limits.clone(),
            over_base: self.over_base,
            writer: None,
            metadata: self.metadata.clone(),
            unpacked: Mutex::default(),
            notices: Vec::new(),
            shared: RwLock::new(Shared {
                header,
                extensions: Extensions::default(),
                backing: shared.backing.clone(),
                snapshots: Vec::new(),
                snapshot_damage: None,
                l1,
                l2: L2Cache::new(self.limits.cache_bytes / 2, self.geometry.cluster_size()),
            }),
        }))
    }
}
