//! The blocks of a dynamic or differencing disk: where they are, and reading them.
//!
//! Each block is stored as a bitmap, padded to whole sectors, and its data. In a differencing disk a set bit (most significant
//! first) means that the sector is here, a clear one that it is below. In a dynamic disk the bitmap is ignored when it is read, as QEMU and
//! Windows do; a block that is written gets all its bits, for those who do not.

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};

use super::bitmaps::Bitmaps;
use super::image::reading;
use super::layout::{Footer, Header, SECTOR, UNUSED};
use super::open::Sparse;
use crate::image::{Extent, ExtentKind, HostPlace};
use crate::{Error, OpenEnv, Result, StorageRef};

/// What writers share; held for the whole of an allocation or an overlay's write.
#[derive(Debug)]
pub(super) struct Space {
    /// Where the next block begins; the footer is there now.
    pub end: u64,
    /// Sectors of the table that differ from the file.
    pub dirty: BTreeSet<u64>,
    /// As it is written behind each new block.
    pub footer: Footer,
}

/// Table and bitmaps of an open image.
#[derive(Debug)]
pub struct Blocks {
    pub(super) file: StorageRef,
    pub(super) header: RwLock<Header>,
    /// Sector of each block's bitmap.
    pub(super) table: RwLock<Vec<u32>>,
    pub(super) space: Mutex<Space>,
    /// See [`Sparse::hidden_end`].
    pub(super) hidden_end: AtomicU64,
    pub(super) bitmaps: Bitmaps,
    /// Blocks of a dynamic disk whose bitmap says that every sector is there.
    pub(super) whole: RwLock<HashSet<usize>>,
    /// Something was written since the last flush.
    pub(super) unstable: AtomicBool,
    /// Names of the disk below, the best first; `None` for a dynamic disk.
    pub(super) parent: RwLock<Option<Vec<String>>>,
    /// Entries must be checked before each use: the image is open for a check although they are wrong.
    suspect: bool,
    block_size: u64,
    pub(super) bitmap_size: u64,
}

/// The part of a guest range that lies in one block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    /// Number of the block.
    pub block: usize,
    /// First byte in it.
    pub from: u64,
    /// Bytes.
    pub len: usize,
}

impl Blocks {
    pub(super) fn new(file: StorageRef, footer: Footer, sparse: Sparse, env: &OpenEnv<'_>) -> Self {
        let Sparse {
            header,
            table,
            end,
            hidden_end,
            parent,
        } = sparse;
        Self {
            bitmaps: Bitmaps::new(header.bitmap_size, env.limits.cache_bytes),
            file,
            block_size: header.block_size,
            bitmap_size: header.bitmap_size,
            header: RwLock::new(header),
            table: RwLock::new(table),
            space: Mutex::new(Space {
                end,
                dirty: BTreeSet::new(),
                footer,
            }),
            hidden_end: hidden_end.into(),
            whole: RwLock::default(),
            unstable: AtomicBool::new(false),
            parent: RwLock::new(parent),
            suspect: env.for_check,
        }
    }
    /// Guest bytes of a block.
    pub fn block_size(&self) -> u64 {
        self.block_size
    }
    pub(super) fn is_overlay(&self) -> bool {
        reading(&self.parent).is_some()
    }
    /// Cuts the range at the first block's end. The range was checked against the virtual size, and the table holds all of that.
    pub(super) fn piece(&self, offset: u64, len: u64) -> Result<Piece> {
        let from = offset % self.block_size;
        let fit = |n: u64| usize::try_from(n).map_err(|_| Error::invalid("offset past the address space"));
        Ok(Piece {
            block: fit(offset / self.block_size)?,
            from,
            len: fit(len.min(self.block_size - from))?,
        })
    }
    /// Place of a block's bitmap in the file.
    pub(super) fn place_of(&self, block: usize) -> Result<Option<u64>> {
        let entry = reading(&self.table).get(block).copied().unwrap_or(UNUSED);
        if entry == UNUSED {
            return Ok(None);
        }
        let place = u64::from(entry) * SECTOR;
        if self.suspect && place + self.bitmap_size + self.block_size > self.file.len()? {
            return Err(Error::corrupt(format!(
                "block {block} at {place:#x} ends past the end of the file"
            )));
        }
        Ok(Some(place))
    }

    /// What a range begins with.
    pub fn extent(&self, offset: u64, len: u64) -> Result<Extent> {
        let piece = self.piece(offset, len)?;
        let Some(place) = self.place_of(piece.block)? else {
            let len = self.unused_run(piece.block, offset, len);
            return Ok(Extent {
                len,
                kind: self.absent(),
            });
        };
        let data = |len: u64, from: u64| Extent {
            len,
            kind: ExtentKind::Data {
                at: Some(HostPlace {
                    file: 0,
                    offset: place + self.bitmap_size + from,
                }),
                direct: true,
            },
        };
        if !self.is_overlay() {
            return Ok(data(piece.len as u64, piece.from));
        }
        let bits = self.bitmaps.get(self.file.as_ref(), piece.block, place)?;
        let run = bits.run(piece.from, piece.len as u64);
        if run.present {
            return Ok(data(run.len, piece.from));
        }
        Ok(Extent {
            len: run.len,
            kind: ExtentKind::Unallocated,
        })
    }

    /// Bytes from `offset` on that lie in blocks without a place, at most `len`.
    fn unused_run(&self, block: usize, offset: u64, len: u64) -> u64 {
        let table = reading(&self.table);
        let rest = table.get(block..).unwrap_or_default();
        match rest.iter().position(|entry| *entry != UNUSED) {
            Some(blocks) => len.min((block + blocks) as u64 * self.block_size - offset),
            None => len,
        }
    }
    /// What a block without a place is: for an overlay what is below, else zeroes.
    fn absent(&self) -> ExtentKind {
        if self.is_overlay() {
            ExtentKind::Unallocated
        } else {
            ExtentKind::Zero { at: None }
        }
    }

    /// Reads what this layer has; the rest as zeroes.
    pub fn read(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<()> {
        while !buf.is_empty() {
            let extent = self.extent(offset, buf.len() as u64)?;
            let len = usize::try_from(extent.len).unwrap_or(usize::MAX).min(buf.len());
            let (head, rest) = buf.split_at_mut(len);
            match extent.kind {
                ExtentKind::Data { at: Some(place), .. } => self.file.read_at(place.offset, head)?,
                _ => head.fill(0),
            }
            offset += len as u64;
            buf = rest;
        }
        Ok(())
    }

    pub(super) fn touched(&self) {
        self.unstable.store(true, Ordering::Release);
    }
}
