//! Back to version 2, which knows no zero clusters.
//!
//! A table may be shared by the active image and internal snapshots, so each is changed where it stands, for all its users at once. Order
//! for each table: new clusters with their refcounts, flush, the table, flush, then what its entries used before is given back. The image is
//! marked dirty around it, as around a snapshot.

use std::collections::BTreeMap;

use super::image::Qcow2;
use super::layout::extensions::ExtensionKind;
use super::layout::{Autoclear, Compression, Incompatible, L1Entry, L2Entry, Subclusters, words_from_be, words_to_be};
use super::releases::Release;
use super::snapshots::Snapshot;
use super::writer::Writer;
use crate::storage::read_vec;
use crate::{Control, Error, Result};

/// An L2 table.
#[derive(Debug, Clone, Copy)]
struct Table {
    /// Guest offset of its first cluster.
    guest: u64,
    /// How many L1 entries, of the active image and of snapshots, name it.
    users: u64,
}

impl Qcow2 {
    /// Makes the image one of version 2.
    ///
    /// # Errors
    /// `Unsupported` when it holds what version 2 has no place for.
    pub fn downgrade(&self, control: &Control) -> Result<()> {
        self.refuse_downgrade(None, None)?;
        self.read_metadata().refuse_conflicts()?;
        let snapshots = self.read_shared().snapshots.clone();
        let done = self.marked(&snapshots, |writer| self.expand_zeroes(writer, &snapshots, control));
        self.closed_when_failed(done)?;
        let writer = self.settled()?;
        self.change_header(&writer, |shared| {
            shared.header.version = 2;
            shared.header.compatible = 0;
            shared.header.autoclear = 0;
            shared.header.incompatible = Incompatible::default();
            shared.header.unknown = Vec::new();
            shared.extensions.replace(ExtensionKind::FEATURE_NAMES, None);
        })?;
        self.host.flush()
    }

    /// # Errors
    /// `Unsupported` when the image holds what version 2 has no place for, also after its refcounts got another width (log2 of bits) and the
    /// disk another size.
    pub fn refuse_downgrade(&self, width: Option<u32>, virtual_size: Option<u64>) -> Result<()> {
        let shared = self.read_shared();
        let header = &shared.header;
        let width = width.unwrap_or(header.refcount_order);
        let virtual_size = virtual_size.unwrap_or(header.virtual_size);
        let bitmaps = shared.extensions.bitmaps().is_some() && header.autoclear & Autoclear::BITMAPS != 0;
        let differs = |size: Option<u64>| size.is_some_and(|size| size != virtual_size);
        let snapshots = shared.snapshots.iter();
        let hindrance = [
            (self.geometry.data_file, "cannot downgrade an image with a data file"),
            (width != 4, "compat=0.10 requires refcount_bits=16"),
            (
                self.geometry.extended_l2,
                "cannot downgrade an image with incompatible features 0x10 set",
            ),
            (
                header.compression != Compression::Zlib,
                "cannot downgrade an image with zstd compression",
            ),
            // A snapshot of version 2 is as large as the image, and has 32 bits for the size of its VM state.
            (
                snapshots
                    .clone()
                    .any(|s| s.vm_state_size > u64::from(u32::MAX) || differs(s.virtual_size)),
                "internal snapshots prevent downgrade of image",
            ),
            (bitmaps, "cannot downgrade an image with dirty bitmaps"),
        ];
        match hindrance.iter().find(|(there, _)| *there) {
            Some((_, what)) => Err(Error::unsupported(*what)),
            None => Ok(()),
        }
    }

    /// Gives the L1 tables of the active image and of snapshots, one after the other: many of them are more than memory holds.
    fn each_l1_table(&self, snapshots: &[Snapshot], mut each: impl FnMut(&[u64]) -> Result<()>) -> Result<()> {
        let active = self.read_shared().l1.clone();
        each(&active)?;
        drop(active);
        snapshots
            .iter()
            .try_for_each(|snapshot| each(&self.snapshot_l1(snapshot)?))
    }

    /// Replaces zero clusters by stored zeroes; without a layer below by nothing.
    fn expand_zeroes(&self, writer: &mut Writer, snapshots: &[Snapshot], control: &Control) -> Result<()> {
        let span = self.geometry.l2_span();
        let active = self.read_shared().l1.len() as u64;
        let entries: u64 = snapshots.iter().map(|s| u64::from(s.l1_size)).sum();
        control.set_total(span.saturating_mul(active + entries));
        let mut tables = self.tables_of(snapshots)?;
        self.each_l1_table(snapshots, |l1| {
            for raw in l1 {
                control.check_cancelled()?;
                if let L1Entry::Table { at, .. } = L1Entry::decode(*raw, &self.geometry)?
                    && let Some(table) = tables.remove(&at)
                {
                    self.expand_table(writer, at, table)?;
                }
                control.advance(span);
            }
            Ok(())
        })?;
        self.write_shared().l2.clear();
        self.refresh_flags(writer)
    }

    /// Every L2 table, by its place.
    fn tables_of(&self, snapshots: &[Snapshot]) -> Result<BTreeMap<u64, Table>> {
        let mut tables = BTreeMap::new();
        self.each_l1_table(snapshots, |l1| {
            for (index, raw) in (0u64..).zip(l1) {
                let L1Entry::Table { at, .. } = L1Entry::decode(*raw, &self.geometry)? else {
                    continue;
                };
                let guest = index.saturating_mul(self.geometry.l2_span());
                let table = tables.entry(at).or_insert(Table { guest, users: 0 });
                if table.guest != guest {
                    return Err(Error::corrupt(format!(
                        "the L2 table at {at:#x} stands for guest offsets {:#x} and {guest:#x}; run a check",
                        table.guest
                    )));
                }
                table.users += 1;
            }
            Ok(())
        })?;
        Ok(tables)
    }

    fn expand_table(&self, writer: &mut Writer, at: u64, table: Table) -> Result<()> {
        let mut words = words_from_be(&read_vec(self.host.file.as_ref(), at, self.geometry.cluster_len())?);
        let backed = self.has_base();
        let version = self.read_shared().header.version;
        let (mut freed, mut changed) = (Vec::new(), false);
        for index in 0..self.geometry.l2_entries() as usize {
            let L2Entry::Standard { at: old, subs, .. } = L2Entry::decode(&words, index, &self.geometry, version)?
            else {
                continue;
            };
            if subs != Subclusters::ZERO {
                continue;
            }
            let guest = table.guest + index as u64 * self.geometry.cluster_size();
            let new = match backed {
                true => Some(self.stored_zeroes(writer, guest, old, table.users)?),
                false => None,
            };
            freed.extend(old.filter(|_| new != old));
            let entry = match new {
                Some(at) => L2Entry::Standard {
                    at: Some(at),
                    copied: false,
                    subs: Subclusters::DATA,
                },
                None => L2Entry::UNALLOCATED,
            };
            entry.encode(&mut words, index, &self.geometry);
            changed = true;
        }
        if !changed {
            return Ok(());
        }
        self.stabilise_refcounts(writer)?;
        self.host.file.write_at(at, &words_to_be(&words))?;
        self.host.flush()?;
        self.forget(writer, &freed, table.users)
    }

    /// Zeroes for one guest cluster in a cluster that only this table names, for each of its users.
    fn stored_zeroes(&self, writer: &mut Writer, guest: u64, old: Option<u64>, users: u64) -> Result<u64> {
        let bits = self.geometry.cluster_bits;
        // Another table may have the same cluster as data: only where all references are ours it may be written.
        let at = match old {
            Some(at) if writer.refcounts.get(at >> bits)? == users => {
                self.read_metadata().refuse_data(at, 1)?;
                at
            }
            _ => {
                let new = writer.refcounts.allocate(1)?;
                for _ in 1..users {
                    writer.refcounts.increment(new.clone())?;
                }
                writer.refcounts.no_longer_fresh(new.end << bits);
                new.start << bits
            }
        };
        match self.encryption {
            None => self.host.file.write_zeroes(at, self.geometry.cluster_size(), false)?,
            Some(_) => self.write_data(guest, at, &vec![0; self.geometry.cluster_len()])?,
        }
        Ok(at)
    }

    /// Lets go of clusters that the entries of a table with so many users named.
    fn forget(&self, writer: &mut Writer, places: &[u64], users: u64) -> Result<()> {
        for at in places {
            let cluster = at >> self.geometry.cluster_bits;
            let release = Release {
                times: users,
                ..Release::once(cluster..cluster + 1)
            };
            self.free_now(writer, &release)?;
        }
        Ok(())
    }
}
