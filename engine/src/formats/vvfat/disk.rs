//! The disk that shows a folder: its parts in order, each made up or read from a file.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use super::build::{Builder, needed};
use super::geometry::{FolderOptions, Geometry, SECTOR};
use super::tree;
use crate::formats::common::lock;
use crate::storage::{ReadOnlyStorage, StorageExtent};
use crate::{Error, Result};

/// A part of the disk that is not all zero.
#[derive(Debug)]
pub(super) struct Part {
    pub start: u64,
    pub len: u64,
    pub content: Content,
}

#[derive(Debug)]
pub(super) enum Content {
    Bytes(Arc<Vec<u8>>),
    /// Path of a file beneath the folder.
    File(String),
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
