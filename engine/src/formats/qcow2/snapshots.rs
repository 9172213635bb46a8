//! Internal snapshots: an L1 table of their own that shares L2 tables and clusters with the active one.
//!
//! Refcounts and copied flags change in many places, which no order can make look like one change. So the image is marked dirty around it: after
//! a crash the next writable open counts anew. The step that makes a snapshot appear, become active or vanish is always one header write.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use super::cache::L2Cache;
use super::codec::Codec;
use super::host::Host;
use super::image::{Qcow2, Shared};
use super::layout::header::MAX_SNAPSHOTS;
use super::layout::{Extensions, Header, Incompatible, L1Entry, L2Entry, words_from_be, words_to_be};
use super::open::read_table;
use super::snapshot_table::{self, KNOWN_EXTRA, Snapshot};
use super::writer::{Release, Writer};
use crate::image::{Repair, SnapshotInfo, Snapshots};
use crate::{Control, Error, Image, Result};

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

    /// Runs a change of many refcounts and flags, marked by the dirty bit; when it fails, everything is counted anew. Damage in the active
    /// tables and in those of the given L1 tables is told before: an image that cannot be counted could never lose the mark again.
    pub fn marked(&self, involved: &[Vec<u64>], change: impl FnOnce(&mut Writer) -> Result<()>) -> Result<()> {
        let mut writer = self.quiet_writer()?;
        let active = self.read_shared().l1.clone();
        for l1 in std::iter::once(&active).chain(involved) {
            self.references(l1, |clusters| writer.refcounts.require_used(clusters))?;
        }
        let marks = self.read_shared().header.version >= 3;
        if marks {
            self.change_header(&writer, |s| s.header.incompatible.0 |= Incompatible::DIRTY)?;
            self.host.flush()?;
        }
        let done = change(&mut writer).and_then(|()| {
            self.write_back(&mut writer)?;
            self.host.flush()
        });
        if let Err(error) = done {
            writer.released.clear();
            self.restore_after_failure(&mut writer)?;
            return Err(error);
        }
        if marks {
            self.change_header(&writer, |s| s.header.incompatible.0 &= !Incompatible::DIRTY)?;
            self.host.flush()?;
        }
        Ok(())
    }

    fn quiet_writer(&self) -> Result<MutexGuard<'_, Writer>> {
        let mut writer = self.lock_writer()?;
        self.prepare(&mut writer)?;
        self.write_back(&mut writer)?;
        self.host.flush()?;
        Ok(writer)
    }

    fn restore_after_failure(&self, writer: &mut Writer) -> Result<()> {
        writer.l1_dirty.clear();
        let l1 = {
            let header = &self.read_shared().header;
            let bytes = u64::from(header.l1_size) * 8;
            read_table(self.host.file.as_ref(), "L1 table", header.l1_offset, bytes, u64::MAX)?
        };
        self.write_shared().l1 = l1;
        self.reload(writer)?;
        self.repair_image(writer, Repair::All, &Control::default()).map(|_| ())
    }

    /// Every host cluster that an L1 table's tree uses, with repetitions, tables included.
    fn references(&self, l1: &[u64], mut each: impl FnMut(Range<u64>) -> Result<()>) -> Result<()> {
        let bits = self.geometry.cluster_bits;
        let version = self.read_shared().header.version;
        for raw in l1 {
            let L1Entry::Table { at, .. } = L1Entry::decode(*raw, &self.geometry)? else {
                continue;
            };
            let bytes = crate::storage::read_vec(self.host.file.as_ref(), at, self.geometry.cluster_len())?;
            let table = words_from_be(&bytes);
            // After the reading: the caller may let go of the table's cluster.
            each(at >> bits..(at >> bits) + 1)?;
            let mut run: Range<u64> = 0..0;
            for index in 0..self.geometry.l2_entries() as usize {
                let clusters = match L2Entry::decode(&table, index, &self.geometry, version)? {
                    L2Entry::Standard { at: Some(at), .. } if !self.geometry.data_file => at >> bits..(at >> bits) + 1,
                    L2Entry::Compressed { at, len } => at >> bits..((at + len - 1) >> bits) + 1,
                    L2Entry::Standard { .. } => continue,
                };
                if clusters.start == run.end {
                    run.end = clusters.end;
                    continue;
                }
                each(std::mem::replace(&mut run, clusters))?;
            }
            each(run)?;
        }
        Ok(())
    }

    fn count_up(&self, writer: &mut Writer, l1: &[u64]) -> Result<()> {
        self.references(l1, |clusters| writer.refcounts.increment(clusters))
    }

    fn count_down(&self, writer: &mut Writer, l1: &[u64]) -> Result<()> {
        self.references(l1, |clusters| {
            self.free_now(
                writer,
                &Release {
                    clusters,
                    discard: true,
                },
            )
        })
    }

    /// Makes the copied flags of the active tables say what the refcounts say.
    pub fn refresh_flags(&self, writer: &mut Writer) -> Result<()> {
        let bits = self.geometry.cluster_bits;
        let count = self.read_shared().l1.len();
        for index in 0..count {
            let raw = self.read_shared().l1.get(index).copied().unwrap_or(0);
            let L1Entry::Table { at, copied } = L1Entry::decode(raw, &self.geometry)? else {
                continue;
            };
            let alone = writer.refcounts.get(at >> bits)? == 1;
            if alone != copied {
                self.set_l1(writer, index, L1Entry::Table { at, copied: alone });
            }
            if !self.geometry.data_file {
                self.refresh_table_flags(writer, index)?;
            }
            self.write_back_if_full(writer)?;
        }
        Ok(())
    }

    fn refresh_table_flags(&self, writer: &mut Writer, index: usize) -> Result<()> {
        let guest = index as u64 * self.geometry.l2_span();
        for (n, entry) in (0..).zip(self.entries(guest, self.geometry.l2_entries())?) {
            let L2Entry::Standard {
                at: Some(at),
                copied,
                subs,
            } = entry
            else {
                continue;
            };
            let alone = writer.refcounts.get(at >> self.geometry.cluster_bits)? == 1;
            if alone != copied {
                let new = L2Entry::Standard {
                    at: Some(at),
                    copied: alone,
                    subs,
                };
                self.set_linked_entry(guest + n * self.geometry.cluster_size(), new)?;
            }
        }
        Ok(())
    }

    /// Sets a flag in a table that stays where it is, whoever shares it.
    fn set_linked_entry(&self, guest: u64, entry: L2Entry) -> Result<()> {
        let index = self.geometry.l1_index(guest);
        let mut shared = self.write_shared();
        let table = self.table(&shared, index)?.unwrap_or_default();
        let raw = shared.l1.get(index).copied().unwrap_or(0);
        let L1Entry::Table { at, .. } = L1Entry::decode(raw, &self.geometry)? else {
            return Ok(());
        };
        let (slot, step) = (self.geometry.l2_index(guest), self.geometry.entry_words());
        let words = shared
            .l2
            .change(index, at, true, || table)
            .touch(slot * step..(slot + 1) * step);
        entry.encode(words, slot, &self.geometry);
        Ok(())
    }

    /// Writes a new snapshot table and points the header at it.
    ///
    /// Order: table with its refcounts, flush, header (count and offset in one write), flush, then the old table is free.
    fn replace_snapshot_table(&self, writer: &mut Writer, mut list: Vec<Snapshot>) -> Result<()> {
        list.iter_mut().for_each(|s| s.known_extra = KNOWN_EXTRA);
        let (old_at, old_len, virtual_size) = {
            let shared = self.read_shared();
            let len: u64 = shared.snapshots.iter().map(Snapshot::stored_len).sum();
            (shared.header.snapshots_offset, len, shared.header.virtual_size)
        };
        let bytes = snapshot_table::encode(&list, virtual_size);
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

    fn free_bytes(&self, writer: &mut Writer, at: u64, len: u64) -> Result<()> {
        let first = at >> self.geometry.cluster_bits;
        let clusters = first..first + self.geometry.clusters(len);
        self.free_now(
            writer,
            &Release {
                clusters,
                discard: true,
            },
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
        if shared.header.refcount_order == 0 {
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
        l1.resize(usize::try_from(entries).unwrap_or(usize::MAX), 0);
        self.count_up(writer, &l1)?;
        let at = self.write_new(writer, &words_to_be(&l1))?;
        self.stabilise_refcounts(writer)?;
        self.change_header(writer, |s| {
            s.header.l1_offset = at;
            s.header.l1_size = entries as u32;
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
        let l1 = self.snapshot_l1(&snapshot)?;
        let done = self.marked(&[l1], |writer| {
            self.hold_all_bitmaps(writer)?;
            self.go_back(writer, &snapshot)?;
            self.note_write(writer, 0, size)?;
            self.resize_bitmaps(writer, size)
        });
        self.closed_when_failed(done)
    }

    fn delete(&self, selector: &str) -> Result<()> {
        self.refuse_data_file()?;
        let (index, snapshot) = self.find_snapshot(selector)?;
        self.read_metadata().refuse_conflicts()?;
        let l1 = self.snapshot_l1(&snapshot)?;
        let done = self.marked(std::slice::from_ref(&l1), |writer| {
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
