//! The disk that shows a folder: its parts in order, each made up or read from a file.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use super::geometry::{FatType, FolderOptions, Geometry, SECTOR};
use super::names::{self, ENTRY, Facts, ShortNames, put};
use super::tree::{self, Entry, Kind};
use crate::formats::common::lock;
use crate::storage::{ReadOnlyStorage, StorageExtent};
use crate::{Error, Result};

/// Serial number of the volume, as QEMU's.
const SERIAL: u32 = 0xfabe_1afd;

/// A part of the disk that is not all zero.
#[derive(Debug)]
struct Part {
    start: u64,
    len: u64,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Bytes(Arc<Vec<u8>>),
    /// Path of a file beneath the folder.
    File(String),
}

/// Clusters that follow each other: a file or a folder.
#[derive(Debug, Clone, Copy)]
struct Chain {
    first: u64,
    count: u64,
}

/// A read-only storage that shows a folder as a FAT disk.
#[derive(Debug)]
pub struct FolderDisk {
    name: String,
    root: OwnedFd,
    len: u64,
    /// In rising order.
    parts: Vec<Part>,
    open: Mutex<Option<(usize, Arc<File>)>>,
}

impl FolderDisk {
    /// Shows the open folder `root`, known as `name`. Reads the names and sizes of everything in it now; file contents later.
    ///
    /// # Errors
    /// `InvalidArgument` for options that make no sense, `LimitExceeded` for more than the disk holds, `Unsupported` for what FAT
    /// cannot show, `Io`.
    pub fn new(root: OwnedFd, name: &str, options: &FolderOptions) -> Result<Self> {
        if options.label.len() > 11 || !options.label.is_ascii() {
            return Err(Error::invalid("a volume label has at most 11 characters of ASCII"));
        }
        let mut left = options.entries;
        let entries = tree::read(&root, "", 0, &mut left)?;
        let geometry = Geometry::choose(options, |cluster| needed(&entries, cluster))?;
        let mut builder = Builder::new(geometry, &options.label);
        builder.root(&entries)?;
        Ok(Self {
            name: format!("{}{name}", super::SCHEME),
            root,
            len: geometry.total * SECTOR,
            parts: builder.finish()?,
            open: Mutex::new(None),
        })
    }

    /// Number of the first part that ends after `offset`.
    fn part_at(&self, offset: u64) -> usize {
        self.parts.partition_point(|p| p.start + p.len <= offset)
    }

    fn read_file(&self, number: usize, path: &str, offset: u64, buf: &mut [u8]) -> Result<()> {
        let kept = lock(&self.open)
            .as_ref()
            .filter(|(n, _)| *n == number)
            .map(|(_, f)| f.clone());
        let file = match kept {
            Some(file) => file,
            None => {
                let file = Arc::new(tree::open_file(&self.root, path)?);
                *lock(&self.open) = Some((number, file.clone()));
                file
            }
        };
        file.read_exact_at(buf, offset).map_err(|e| {
            Error::io(format!("cannot read \"{}\": it became shorter", path.escape_debug()), e).at(&self.name)
        })
    }
}

impl ReadOnlyStorage for FolderDisk {
    fn name(&self) -> &str {
        &self.name
    }
    fn len(&self) -> Result<u64> {
        Ok(self.len)
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|e| *e <= self.len);
        let Some(end) = end else {
            return Err(Error::corrupt(format!("{} bytes at {offset:#x} end past the disk", buf.len())).at(&self.name));
        };
        buf.fill(0);
        for (number, part) in self.parts.iter().enumerate().skip(self.part_at(offset)) {
            if part.start >= end {
                break;
            }
            let (from, to) = (part.start.max(offset), (part.start + part.len).min(end));
            let index = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
            let Some(out) = buf.get_mut(index(from - offset)..index(to - offset)) else {
                continue;
            };
            match &part.content {
                Content::File(path) => self.read_file(number, path, from - part.start, out)?,
                Content::Bytes(bytes) => {
                    if let Some(bytes) = bytes.get(index(from - part.start)..index(to - part.start)) {
                        out.copy_from_slice(bytes);
                    }
                }
            }
        }
        Ok(())
    }
    fn extent(&self, offset: u64, len: u64) -> Result<StorageExtent> {
        if offset >= self.len || len == 0 {
            return Err(Error::corrupt(format!("{offset:#x} lies past the end of the disk")).at(&self.name));
        }
        let len = len.min(self.len - offset);
        Ok(match self.parts.get(self.part_at(offset)) {
            Some(part) if part.start <= offset => StorageExtent {
                len: len.min(part.start + part.len - offset),
                data: true,
            },
            Some(part) => StorageExtent {
                len: len.min(part.start - offset),
                data: false,
            },
            None => StorageExtent { len, data: false },
        })
    }
    fn allocated(&self) -> Result<u64> {
        Ok(self.parts.iter().map(|p| p.len).sum())
    }
    fn why_read_only(&self) -> &'static str {
        "a folder shown as a FAT disk is read-only"
    }
}

/// Bytes of a folder's entries at most: the long names, and two entries for the folder itself.
fn folder_bytes(entries: &[Entry]) -> u64 {
    let one = |e: &Entry| (e.name.encode_utf16().count().div_ceil(13) as u64 + 1) * ENTRY as u64;
    entries.iter().map(one).sum::<u64>() + 2 * ENTRY as u64
}

/// Bytes that everything takes in whole clusters, at most.
fn needed(entries: &[Entry], cluster: u64) -> u64 {
    let whole = |bytes: u64| bytes.next_multiple_of(cluster);
    let one = |e: &Entry| match &e.kind {
        Kind::File { size } => whole(u64::from(*size)),
        Kind::Folder(below) => needed(below, cluster),
    };
    whole(folder_bytes(entries)) + entries.iter().map(one).sum::<u64>()
}

/// Gives everything its clusters.
struct Builder {
    geometry: Geometry,
    label: String,
    next: u64,
    chains: Vec<Chain>,
    parts: Vec<Part>,
}

impl Builder {
    fn new(geometry: Geometry, label: &str) -> Self {
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

    fn root(&mut self, entries: &[Entry]) -> Result<()> {
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
    fn finish(mut self) -> Result<Vec<Part>> {
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

/// Low bytes of a number, for fields that were checked to hold it.
fn low(n: u64) -> [u8; 4] {
    u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes()
}

/// A partition table with one active partition.
fn partition_table(geometry: &Geometry) -> Vec<u8> {
    let mut sector = vec![0; 512];
    let kind = match geometry.fat {
        FatType::Fat12 => 0x01,
        FatType::Fat16 => 0x0e,
        FatType::Fat32 => 0x0c,
    };
    put(&mut sector, 440, &0xbe1a_fdfau32.to_le_bytes());
    put(&mut sector, 446, &[0x80, 1, 1, 0, kind, 0xfe, 0xff, 0xff]);
    put(&mut sector, 454, &low(geometry.start));
    put(&mut sector, 458, &low(geometry.volume()));
    put(&mut sector, 510, &[0x55, 0xaa]);
    sector
}

fn boot_sector(geometry: &Geometry, label: &str) -> Vec<u8> {
    let mut sector = vec![0; 512];
    let volume = geometry.volume();
    let small = if volume < 0x1_0000 { volume } else { 0 };
    let low16 = |n: u64| [low(n)[0], low(n)[1]];
    let is32 = geometry.fat == FatType::Fat32;
    let (track, heads) = match (geometry.floppy, geometry.total) {
        (true, 2880) => (18, 2),
        (true, _) => (36, 2),
        (false, _) => (63, 16),
    };
    let media = if geometry.floppy { 0xf0 } else { 0xf8 };
    put(&mut sector, 0, &[0xeb, if is32 { 0x58 } else { 0x3c }, 0x90]);
    put(&mut sector, 3, b"MSWIN4.1");
    put(&mut sector, 11, &low16(SECTOR));
    put(&mut sector, 13, &low(geometry.cluster_sectors)[..1]);
    put(&mut sector, 14, &low16(geometry.reserved));
    put(&mut sector, 16, &[2]);
    put(&mut sector, 17, &low16(geometry.root_entries));
    put(&mut sector, 19, &low16(small));
    put(&mut sector, 21, &[media]);
    put(
        &mut sector,
        22,
        &if is32 { [0, 0] } else { low16(geometry.fat_sectors) },
    );
    put(&mut sector, 24, &low16(track));
    put(&mut sector, 26, &low16(heads));
    put(&mut sector, 28, &low(geometry.start));
    put(&mut sector, 32, &low(if small == 0 { volume } else { 0 }));
    let extended = if is32 {
        put(&mut sector, 36, &low(geometry.fat_sectors));
        put(&mut sector, 44, &low(2)); // cluster of the root folder
        put(&mut sector, 48, &low16(1)); // information sector
        put(&mut sector, 50, &low16(6)); // copy of the boot sector
        64
    } else {
        36
    };
    put(
        &mut sector,
        extended,
        &[if geometry.floppy { 0 } else { 0x80 }, 0, 0x29],
    );
    put(&mut sector, extended + 3, &SERIAL.to_le_bytes());
    put(&mut sector, extended + 7, format!("{label:<11}").as_bytes());
    let kind: &[u8] = match geometry.fat {
        FatType::Fat12 => b"FAT12   ",
        FatType::Fat16 => b"FAT16   ",
        FatType::Fat32 => b"FAT32   ",
    };
    put(&mut sector, extended + 18, kind);
    put(&mut sector, 510, &[0x55, 0xaa]);
    sector
}

/// FAT32's information sector: free clusters and the next free one.
fn info_sector(geometry: &Geometry, next: u64) -> Vec<u8> {
    let mut sector = vec![0; 512];
    put(&mut sector, 0, b"RRaA");
    put(&mut sector, 484, b"rrAa");
    put(&mut sector, 488, &low(geometry.clusters + 2 - next));
    put(&mut sector, 492, &low(next));
    put(&mut sector, 510, &[0x55, 0xaa]);
    sector
}
