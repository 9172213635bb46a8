//! Giving everything in a folder its clusters, and the tables that say so.

use std::sync::Arc;

use super::disk::{Content, Part};
use super::geometry::{FatType, Geometry, SECTOR};
use super::names::{self, ENTRY, Facts, ShortNames};
use super::sectors::{boot_sector, info_sector, partition_table};
use super::tree::{Entry, Kind};
use crate::{Error, Result};

/// Clusters that follow each other: a file or a folder.
#[derive(Debug, Clone, Copy)]
struct Chain {
    first: u64,
    count: u64,
}

/// Bytes of a folder's entries at most: the long names, and two entries for the folder itself.
fn folder_bytes(entries: &[Entry]) -> u64 {
    let one = |e: &Entry| (e.name.encode_utf16().count().div_ceil(13) as u64 + 1) * ENTRY as u64;
    entries.iter().map(one).sum::<u64>() + 2 * ENTRY as u64
}

/// Bytes that everything takes in whole clusters, at most.
pub(super) fn needed(entries: &[Entry], cluster: u64) -> u64 {
    let whole = |bytes: u64| bytes.next_multiple_of(cluster);
    let one = |e: &Entry| match &e.kind {
        Kind::File { size } => whole(u64::from(*size)),
        Kind::Folder(below) => needed(below, cluster),
    };
    whole(folder_bytes(entries)) + entries.iter().map(one).sum::<u64>()
}

/// Gives everything its clusters.
pub(super) struct Builder {
    geometry: Geometry,
    label: String,
    next: u64,
    chains: Vec<Chain>,
    parts: Vec<Part>,
}

impl Builder {
    pub(super) fn new(geometry: Geometry, label: &str) -> Self {
        Self {
            geometry,
            label: label.to_ascii_uppercase(),
            next: 2,
            chains: Vec::new(),
            parts: Vec::new(),
        }
    }

    fn add(&mut self, start: u64, content: Content, len: u64) {
        if len > 0 {
            self.parts.push(Part { start, len, content });
        }
    }

    /// Takes clusters for `bytes` bytes; the first one, 0 for none.
    fn take(&mut self, bytes: u64) -> Result<u64> {
        let count = bytes.div_ceil(self.geometry.cluster());
        if count == 0 {
            return Ok(0);
        }
        let first = self.next;
        if first - 2 + count > self.geometry.clusters {
            return Err(Error::limit("the folder does not fit on the disk"));
        }
        self.next += count;
        self.chains.push(Chain { first, count });
        Ok(first)
    }

    fn place(&self, cluster: u64) -> u64 {
        (self.geometry.data_at() + (cluster - 2) * self.geometry.cluster_sectors) * SECTOR
    }

    pub(super) fn root(&mut self, entries: &[Entry]) -> Result<()> {
        let label = names::label_entry(&self.label, 0).to_vec();
        if self.geometry.fat == FatType::Fat32 {
            let cluster = self.take(folder_bytes(entries).max(1))?;
            let bytes = self.folder(entries, label, 0)?;
            let (start, len) = (self.place(cluster), bytes.len() as u64);
            self.add(start, Content::Bytes(bytes.into()), len);
            return Ok(());
        }
        let bytes = self.folder(entries, label, 0)?;
        let room = self.geometry.root_entries * ENTRY as u64;
        if bytes.len() as u64 > room {
            return Err(Error::limit(
                "the folder has more names than the root of FAT12 or FAT16: take FAT32",
            ));
        }
        let len = bytes.len() as u64;
        self.add(self.geometry.root_at() * SECTOR, Content::Bytes(bytes.into()), len);
        Ok(())
    }

    /// The bytes of a folder, after everything in it has its clusters. `own` is the folder's first cluster, 0 for the root.
    fn folder(&mut self, entries: &[Entry], mut bytes: Vec<u8>, own: u64) -> Result<Vec<u8>> {
        let mut shorts = ShortNames::default();
        for entry in entries {
            let (cluster, size) = match &entry.kind {
                Kind::File { size } => (self.file(entry, *size)?, *size),
                Kind::Folder(below) => (self.subfolder(entry, below, own)?, 0),
            };
            let facts = Facts {
                is_folder: matches!(entry.kind, Kind::Folder(_)),
                cluster: narrow(cluster)?,
                size,
                mtime: entry.mtime,
            };
            let (short, long) = shorts.make(&entry.name)?;
            bytes.extend(names::entries(&entry.name, &short, long, &facts)?);
        }
        Ok(bytes)
    }

    fn file(&mut self, entry: &Entry, size: u32) -> Result<u64> {
        let cluster = self.take(size.into())?;
        if cluster > 0 {
            self.add(self.place(cluster), Content::File(entry.path.clone()), size.into());
        }
        Ok(cluster)
    }

    fn subfolder(&mut self, entry: &Entry, below: &[Entry], parent: u64) -> Result<u64> {
        let cluster = self.take(folder_bytes(below))?;
        let facts = |cluster| {
            Ok::<_, Error>(Facts {
                is_folder: true,
                cluster: narrow(cluster)?,
                size: 0,
                mtime: entry.mtime,
            })
        };
        let mut bytes = names::short_entry(b".          ", 0x10, &facts(cluster)?).to_vec();
        bytes.extend(names::short_entry(b"..         ", 0x10, &facts(parent)?));
        let bytes = self.folder(below, bytes, cluster)?;
        let (start, len) = (self.place(cluster), bytes.len() as u64);
        self.add(start, Content::Bytes(bytes.into()), len);
        Ok(cluster)
    }

    /// Adds boot sectors and tables; all parts in order.
    pub(super) fn finish(mut self) -> Result<Vec<Part>> {
        let geometry = self.geometry;
        if !geometry.floppy {
            self.add(0, Content::Bytes(partition_table(&geometry).into()), SECTOR);
        }
        let boot = Arc::new(boot_sector(&geometry, &self.label));
        let starts = if geometry.fat == FatType::Fat32 {
            &[0, 6][..]
        } else {
            &[0]
        };
        for start in starts {
            let at = (geometry.start + start) * SECTOR;
            self.add(at, Content::Bytes(boot.clone()), SECTOR);
            if geometry.fat == FatType::Fat32 {
                self.add(
                    at + SECTOR,
                    Content::Bytes(info_sector(&geometry, self.next).into()),
                    SECTOR,
                );
            }
        }
        let table = Arc::new(self.table()?);
        for copy in 0..2 {
            let at = (geometry.fat_at() + copy * geometry.fat_sectors) * SECTOR;
            let len = table.len() as u64;
            self.add(at, Content::Bytes(table.clone()), len);
        }
        self.parts.sort_by_key(|p| p.start);
        Ok(self.parts)
    }

    /// The used start of the table: each cluster names the next one of its chain.
    fn table(&self) -> Result<Vec<u8>> {
        let media = if self.geometry.floppy { 0xf0 } else { 0xf8 };
        let mut entries = vec![0x0fff_ff00 | media, 0x0fff_ffff];
        for chain in &self.chains {
            let last = chain.first + chain.count - 1;
            for cluster in chain.first..last {
                entries.push(narrow(cluster + 1)?);
            }
            entries.push(0x0fff_ffff);
        }
        Ok(match self.geometry.fat {
            FatType::Fat32 => entries.iter().flat_map(|e| e.to_le_bytes()).collect(),
            FatType::Fat16 => entries
                .iter()
                .flat_map(|e| [e.to_le_bytes()[0], e.to_le_bytes()[1]])
                .collect(),
            FatType::Fat12 => entries.chunks(2).flat_map(packed).collect(),
        })
    }
}

/// Two entries of 12 bits in three bytes.
fn packed(pair: &[u32]) -> [u8; 3] {
    let entry = |n: usize| pair.get(n).copied().unwrap_or(0) & 0xfff;
    let [a, b, c, _] = (entry(0) | entry(1) << 12).to_le_bytes();
    [a, b, c]
}

fn narrow(n: u64) -> Result<u32> {
    u32::try_from(n).map_err(|_| Error::limit("the disk has too many clusters"))
}
