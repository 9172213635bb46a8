//! One open VDI layer: reading, and what it says about itself.

use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use serde_json::{Map, Value};

use super::layout::{Entry, Header, Kind};
use super::map::BlockMap;
use crate::image::{
    BackingReference, Below, BulkWrite, CheckReport, Extent, ExtentKind, HostPlace, ImageInfo, Repair, Resize,
};
use crate::{Control, Error, Image, Limits, Result, StorageRef};

/// Header and map; what is dirty reaches the file in `flush`.
#[derive(Debug)]
pub(super) struct Meta {
    pub header: Header,
    pub map: BlockMap,
    pub header_dirty: bool,
}

/// An open VDI.
#[derive(Debug)]
pub(super) struct VdiImage {
    pub file: StorageRef,
    pub meta: RwLock<Meta>,
    /// Held while blocks are added: their order in the file is the order of the map's changes.
    pub growth: Mutex<()>,
    /// What growing must stay within.
    pub limits: Limits,
}

/// A guest range inside one block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub block: u64,
    /// Bytes from the block's start.
    pub within: u64,
    pub len: usize,
}

impl VdiImage {
    pub fn meta(&self) -> RwLockReadGuard<'_, Meta> {
        self.meta.read().unwrap_or_else(PoisonError::into_inner)
    }
    pub fn meta_mut(&self) -> RwLockWriteGuard<'_, Meta> {
        self.meta.write().unwrap_or_else(PoisonError::into_inner)
    }
    pub fn growth(&self) -> MutexGuard<'_, ()> {
        self.growth.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub fn is_overlay(&self) -> bool {
        matches!(self.meta().header.kind, Kind::Overlay { .. })
    }

    /// Refuses a range past the virtual size; gives the block size.
    pub fn inside(&self, offset: u64, len: u64) -> Result<u64> {
        let header = self.meta().header;
        match offset.checked_add(len) {
            Some(end) if end <= header.size => Ok(header.block),
            _ => Err(Error::invalid(format!(
                "{len} bytes at {offset:#x} end past the virtual size {}",
                header.size
            ))),
        }
    }
    /// The entry of a block and, for one in the file, where its guest bytes are.
    pub fn lookup(&self, block: u64) -> (Entry, u64) {
        let meta = self.meta();
        match meta.map.get(block) {
            Entry::Block(index) => (Entry::Block(index), meta.header.place(u64::from(index))),
            other => (other, 0),
        }
    }
    /// Cuts a range at block borders.
    pub fn parts(block: u64, offset: u64, len: usize) -> impl Iterator<Item = Part> {
        let (mut at, mut left) = (offset, len);
        std::iter::from_fn(move || {
            let within = at % block;
            let len = usize::try_from(block - within).unwrap_or(usize::MAX).min(left);
            let part = Part {
                block: at / block,
                within,
                len,
            };
            at += len as u64;
            left -= len;
            (len > 0).then_some(part)
        })
    }
}

fn kind_at(header: &Header, entry: Entry, within: u64) -> ExtentKind {
    match entry {
        Entry::Block(index) => {
            let at = Some(HostPlace {
                file: 0,
                offset: header.place(u64::from(index)) + within,
            });
            ExtentKind::Data { at, direct: true }
        }
        Entry::Free if matches!(header.kind, Kind::Overlay { .. }) => ExtentKind::Unallocated,
        Entry::Free | Entry::Zero => ExtentKind::Zero { at: None },
    }
}

/// Whether a block goes on where the one before ended: the same kind, and for data the next place without bytes between.
fn continues(header: &Header, before: Entry, next: Entry) -> bool {
    match (before, next) {
        (Entry::Block(a), Entry::Block(b)) => header.extra == 0 && a.checked_add(1) == Some(b),
        (Entry::Block(_), _) | (_, Entry::Block(_)) => false,
        (a, b) => a == b || !matches!(header.kind, Kind::Overlay { .. }),
    }
}

impl Image for VdiImage {
    fn format(&self) -> &'static str {
        "vdi"
    }
    fn virtual_size(&self) -> u64 {
        self.meta().header.size
    }
    fn backing(&self) -> Option<BackingReference> {
        let header = self.meta().header;
        matches!(header.kind, Kind::Overlay { .. }).then(|| BackingReference {
            name: format!("uuid:{}", uuid_text(&header.raw.uuid_link)),
            format: Some("vdi".to_owned()),
        })
    }
    fn info(&self) -> Result<ImageInfo> {
        let header = self.meta().header;
        let specific = match header.kind {
            Kind::Overlay { undo } => Some(overlay_facts(&header, undo)),
            Kind::Dynamic | Kind::Static => None,
        };
        Ok(ImageInfo {
            cluster_size: Some(header.block),
            dirty: Some(false),
            specific,
            ..ImageInfo::default()
        })
    }
    fn storages(&self) -> Vec<StorageRef> {
        vec![self.file.clone()]
    }
    fn extent(&self, offset: u64, len: u64) -> Result<Extent> {
        let block_size = self.inside(offset, len)?;
        let meta = self.meta();
        let (mut block, within) = (offset / block_size, offset % block_size);
        let mut entry = meta.map.get(block);
        let kind = kind_at(&meta.header, entry, within);
        let mut run = block_size - within;
        while run < len {
            block += 1;
            let next = meta.map.get(block);
            if !continues(&meta.header, entry, next) {
                break;
            }
            run += block_size;
            entry = next;
        }
        Ok(Extent {
            len: run.min(len),
            kind,
        })
    }
    fn reserves_space(&self) -> bool {
        self.meta().header.kind == Kind::Static
    }
    fn read(&self, offset: u64, mut buf: &mut [u8]) -> Result<()> {
        let block = self.inside(offset, buf.len() as u64)?;
        for part in Self::parts(block, offset, buf.len()) {
            let (head, rest) = buf.split_at_mut(part.len);
            match self.lookup(part.block) {
                (Entry::Block(_), place) => self.file.read_at(place + part.within, head)?,
                (Entry::Free | Entry::Zero, _) => head.fill(0),
            }
            buf = rest;
        }
        Ok(())
    }

    fn write(&self, offset: u64, buf: &[u8], below: &dyn Below) -> Result<()> {
        self.write_data(offset, buf, below)
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool, below: &dyn Below) -> Result<()> {
        self.zero(offset, len, unmap, below)
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.discard_data(offset, len)
    }
    fn bulk(&self) -> Option<&dyn BulkWrite> {
        (self.meta().header.extra == 0).then_some(self)
    }
    fn resumable(&self) -> bool {
        true
    }
    fn flush(&self) -> Result<()> {
        self.flush_all()
    }
    fn resize(&self, to: &Resize) -> Result<()> {
        self.grow(to)
    }
    fn layer_id(&self) -> Option<String> {
        let raw = self.meta().header.raw;
        Some(format!(
            "{} {}",
            uuid_text(&raw.uuid_image),
            uuid_text(&raw.uuid_modify)
        ))
    }
    /// The layer below must be the one named. Its modification UUID is not compared: tools other than VirtualBox do not keep it.
    fn check_below(&self, below: &dyn Image) -> Result<()> {
        let expected = uuid_text(&self.meta().header.raw.uuid_link);
        match below.layer_id() {
            Some(id) if below.format() == "vdi" && id.split(' ').next() != Some(&expected) => Err(Error::corrupt(
                format!("expected the layer below to be {expected}, found {id}"),
            )),
            _ => Ok(()),
        }
    }
    fn check(&self, repair: Repair, control: &Control) -> Result<CheckReport> {
        self.check_all(repair, control)
    }
}

fn overlay_facts(header: &Header, undo: bool) -> Map<String, Value> {
    let mut facts = Map::new();
    facts.insert("image-type".into(), if undo { "undo" } else { "differencing" }.into());
    facts.insert("uuid".into(), uuid_text(&header.raw.uuid_image).into());
    facts.insert("parent-uuid".into(), uuid_text(&header.raw.uuid_link).into());
    facts.insert(
        "parent-modification-uuid".into(),
        uuid_text(&header.raw.uuid_parent_modify).into(),
    );
    facts
}

/// A UUID as VirtualBox prints it: the first three fields are little-endian in the file.
fn uuid_text(bytes: &[u8; 16]) -> String {
    uuid::Uuid::from_bytes_le(*bytes).to_string()
}
