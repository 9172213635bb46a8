//! One open VMDK layer: parts that lie one behind the other.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value};

use super::descriptor::{Descriptor, NO_PARENT, local_name};
use super::meta::{cid_of, cid_of_commit};
use super::sparse::{Packing, Run, SparseExtent};
use super::stream::Stream;
use crate::formats::windows::names;
use crate::image::{
    BackingReference, Below, BulkWrite, CheckReport, Extent, ExtentKind, HostPlace, ImageInfo, Repair, Resize,
};
use crate::options::Options;
use crate::{Control, Error, Image, Limits, Result, StorageRef};

/// What holds the bytes of a part.
#[derive(Debug)]
pub(super) enum Body {
    /// The guest's bytes from `offset` of a file on.
    Flat {
        file: usize,
        storage: StorageRef,
        offset: u64,
        writable: bool,
    },
    /// Zeroes.
    Zero,
    Sparse {
        file: usize,
        extent: Box<SparseExtent>,
    },
}

/// A guest range and what holds it.
#[derive(Debug)]
pub(super) struct Part {
    pub start: u64,
    /// Growing changes that of the last one.
    pub len: AtomicU64,
    /// The descriptor's word for its type; empty where the main file is the extent.
    pub word: String,
    pub body: Body,
}

impl Part {
    pub fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.len())
    }
}

/// Where the descriptor's text is in the main file.
#[derive(Debug, Clone, Copy)]
pub(super) struct DescriptorPlace {
    pub offset: u64,
    /// Bytes it may have; `None`: the file is the descriptor.
    pub room: Option<u64>,
}

/// An open VMDK.
#[derive(Debug)]
pub(super) struct VmdkImage {
    /// The main file, then those of the extents.
    pub storages: Vec<StorageRef>,
    pub parts: Vec<Part>,
    pub descriptor: Mutex<Option<(Descriptor, DescriptorPlace)>>,
    /// Whether this session gave the content a new CID.
    pub cid_changed: AtomicBool,
    /// The writer of a streamOptimized image that holds nothing yet.
    pub stream: Option<Mutex<Stream>>,
    /// Bytes of changed tables that are held at most.
    pub dirty_limit: u64,
    /// What growing must stay within.
    pub limits: Limits,
}

impl VmdkImage {
    pub fn descriptor(&self) -> MutexGuard<'_, Option<(Descriptor, DescriptorPlace)>> {
        self.descriptor.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub fn main(&self) -> Result<&StorageRef> {
        self.storages
            .first()
            .ok_or_else(|| Error::invalid("an image without a file"))
    }
    pub fn size(&self) -> u64 {
        self.parts.last().map_or(0, Part::end)
    }
    pub fn inside(&self, offset: u64, len: u64) -> Result<()> {
        let size = self.size();
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(()),
            _ => Err(Error::invalid(format!(
                "{len} bytes at {offset:#x} end past the virtual size {size}"
            ))),
        }
    }
    /// Index of the part that holds a guest byte.
    pub fn part_at(&self, offset: u64) -> usize {
        self.parts.partition_point(|p| p.end() <= offset)
    }
    /// Cuts a range at the borders of parts: part, offset in it, length.
    pub fn pieces(&self, offset: u64, len: u64) -> impl Iterator<Item = (&Part, u64, u64)> {
        let (mut at, end) = (offset, offset.saturating_add(len));
        self.parts.iter().skip(self.part_at(offset)).map_while(move |part| {
            let len = part.end().min(end).checked_sub(at).filter(|l| *l > 0)?;
            let piece = (part, at - part.start, len);
            at += len;
            Some(piece)
        })
    }
    pub fn sparse_extents(&self) -> impl Iterator<Item = &SparseExtent> {
        self.parts.iter().filter_map(|p| match &p.body {
            Body::Sparse { extent, .. } => Some(extent.as_ref()),
            Body::Flat { .. } | Body::Zero => None,
        })
    }

    fn extent_in(part: &Part, at: u64, len: u64) -> Result<Extent> {
        let (kind, len) = match &part.body {
            Body::Zero => (ExtentKind::Zero { at: None }, len),
            Body::Flat { file, offset, .. } => (data(*file, offset.saturating_add(at)), len),
            Body::Sparse { file, extent } => {
                let (run, len) = extent.run(at, len)?;
                let kind = match run {
                    Run::Unallocated => ExtentKind::Unallocated,
                    Run::Zero => ExtentKind::Zero { at: None },
                    Run::Data(place) => data(*file, place),
                    Run::Deflated(_) => ExtentKind::Compressed,
                };
                (kind, len)
            }
        };
        Ok(Extent { len, kind })
    }
}

fn data(file: usize, offset: u64) -> ExtentKind {
    ExtentKind::Data {
        at: Some(HostPlace { file, offset }),
        direct: true,
    }
}

impl Image for VmdkImage {
    fn format(&self) -> &'static str {
        "vmdk"
    }
    fn virtual_size(&self) -> u64 {
        self.size()
    }
    fn backing(&self) -> Option<BackingReference> {
        let descriptor = self.descriptor();
        let (descriptor, _) = descriptor.as_ref()?;
        let name = match (&descriptor.parent_hint, descriptor.parent_cid) {
            (Some(name), _) => local_name(name),
            (None, NO_PARENT) => return None,
            // A delta whose base has no name: it can only be given.
            (None, cid) => format!("cid:{cid:08x}"),
        };
        Some(BackingReference {
            name,
            format: Some("vmdk".to_owned()),
        })
    }
    fn other_backing_names(&self) -> Vec<String> {
        let hint = self.descriptor().as_ref().and_then(|(d, _)| d.parent_hint.clone());
        let mut names = hint.map_or(Vec::new(), |hint| names(&[(&hint, true)]));
        if let Some(BackingReference { name, .. }) = self.backing() {
            names.retain(|other| *other != name);
        }
        names
    }
    fn info(&self) -> Result<ImageInfo> {
        let cluster = self.sparse_extents().next().map(|e| e.grain);
        Ok(ImageInfo {
            cluster_size: cluster,
            dirty: Some(false),
            specific: Some(self.facts()),
            ..ImageInfo::default()
        })
    }
    fn storages(&self) -> Vec<StorageRef> {
        self.storages.clone()
    }
    fn extent(&self, offset: u64, len: u64) -> Result<Extent> {
        self.inside(offset, len)?;
        let mut found: Option<Extent> = None;
        for (part, at, len) in self.pieces(offset, len) {
            let next = Self::extent_in(part, at, len)?;
            match &mut found {
                None => found = Some(next),
                Some(run) if run.kind == next.kind && !matches!(run.kind, ExtentKind::Data { .. }) => {
                    run.len += next.len
                }
                Some(_) => break,
            }
            if next.len < len {
                break;
            }
        }
        found.ok_or_else(|| Error::invalid("an empty range"))
    }
    fn reserves_space(&self) -> bool {
        self.parts.iter().any(|part| matches!(part.body, Body::Flat { .. }))
    }
    fn read(&self, offset: u64, mut buf: &mut [u8]) -> Result<()> {
        self.inside(offset, buf.len() as u64)?;
        for (part, at, len) in self.pieces(offset, buf.len() as u64) {
            let (head, rest) = buf.split_at_mut(usize::try_from(len).unwrap_or(usize::MAX).min(buf.len()));
            match &part.body {
                Body::Zero => head.fill(0),
                Body::Flat { storage, offset, .. } => storage.read_at(offset.saturating_add(at), head)?,
                Body::Sparse { extent, .. } => extent.read(at, head)?,
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
    fn write_compressed(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.write_grain(offset, buf)
    }
    fn bulk(&self) -> Option<&dyn BulkWrite> {
        self.can_bulk().then_some(self)
    }
    fn resumable(&self) -> bool {
        self.stream.is_none()
    }
    fn flush(&self) -> Result<()> {
        self.flush_all()
    }
    fn resize(&self, to: &Resize) -> Result<()> {
        self.grow(to)
    }
    fn set_backing(&self, backing: Option<&BackingReference>) -> Result<()> {
        self.set_backing_over(backing, None)
    }
    fn set_backing_over(&self, backing: Option<&BackingReference>, below: Option<&dyn Image>) -> Result<()> {
        self.change_parent(backing, below)
    }
    fn layer_id(&self) -> Option<String> {
        self.descriptor().as_ref().map(|(d, _)| format!("{:08x}", d.cid))
    }
    fn check_below(&self, below: &dyn Image) -> Result<()> {
        let Some(expected) = self.descriptor().as_ref().map(|(d, _)| d.parent_cid) else {
            return Ok(());
        };
        match cid_of(below).ok() {
            // The second: a commit was cut off before the base got its new CID.
            Some(cid) if cid == expected || cid_of_commit(cid) == expected => Ok(()),
            found => Err(Error::corrupt(format!(
                "the overlay was made over content with CID {expected:08x}, the layer below has {}; it was changed since, or is another",
                found.map_or_else(|| "none".to_owned(), |cid| format!("{cid:08x}"))
            ))),
        }
    }
    fn follows_below(&self) -> bool {
        self.descriptor()
            .as_ref()
            .is_some_and(|(d, _)| d.parent_cid != NO_PARENT)
    }
    fn expect_change(&self, below: &dyn Image) -> Result<()> {
        self.record_parent(cid_of_commit(cid_of(below)?))
    }
    fn begin_change(&self) -> Result<()> {
        self.begin_commit()
    }
    fn content_stays(&self, stays: bool) {
        self.cid_changed.store(stays, Ordering::Release);
    }
    fn made_with(&self) -> Options {
        self.options()
    }
    fn check_compressible(&self) -> Result<()> {
        self.require_deflated()
    }
    fn stand_in_for(&self, old: &dyn Image) -> Result<()> {
        self.take_cid(old)
    }
    fn check(&self, repair: Repair, control: &Control) -> Result<CheckReport> {
        self.check_all(repair, control)
    }
}

impl VmdkImage {
    /// `format-specific` under QEMU's keys and in its order.
    fn facts(&self) -> Map<String, Value> {
        let mut facts = Map::new();
        if let Some((descriptor, _)) = self.descriptor().as_ref() {
            facts.insert("cid".into(), descriptor.cid.into());
            facts.insert("parent-cid".into(), descriptor.parent_cid.into());
            if !descriptor.create_type.is_empty() {
                facts.insert("create-type".into(), descriptor.create_type.clone().into());
            }
        }
        facts.insert(
            "extents".into(),
            self.parts.iter().map(|p| self.extent_facts(p)).collect(),
        );
        facts
    }
    fn extent_facts(&self, part: &Part) -> Value {
        let mut facts = Map::new();
        let file = match &part.body {
            Body::Zero => None,
            Body::Flat { file, .. } | Body::Sparse { file, .. } => self.storages.get(*file),
        };
        if let Body::Sparse { extent, .. } = &part.body
            && extent.packing != Packing::Plain
        {
            facts.insert("compressed".into(), true.into());
        }
        facts.insert("virtual-size".into(), part.len().into());
        facts.insert("filename".into(), file.map_or("", |f| f.name()).into());
        if let Body::Sparse { extent, .. } = &part.body {
            facts.insert("cluster-size".into(), extent.grain.into());
        }
        facts.insert("format".into(), part.word.clone().into());
        Value::Object(facts)
    }
}
