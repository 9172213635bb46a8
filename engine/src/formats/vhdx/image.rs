//! One open VHDX: which of its parts answers what.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, RwLock};

use super::bits::Bits;
use super::journal::{Journal, id_of_commit};
use super::layout::{Geometry, Header, MIB};
use super::locator::Parent;
use super::metadata::{Disk, LEAVE_ALLOCATED};
use super::open::{Opened, Regions};
use super::write::{DATA_CHANGED, FILE_CHANGED};
use super::{backing, check, resize};
use crate::formats::common::{check_range, lock, shared};
use crate::image::{
    BackingReference, Below, BulkWrite, CheckReport, Extent, HostPlace, ImageInfo, Placement, Repair, Resize, Scratch,
};
use crate::{Control, Error, Image, Limits, OpenEnv, Result, StorageRef};

/// An open image.
pub struct VhdxImage {
    pub(super) file: StorageRef,
    pub(super) header: Header,
    pub(super) geometry: RwLock<Geometry>,
    /// The table's entries.
    pub(super) bat: RwLock<Vec<u64>>,
    pub(super) bits: Bits,
    pub(super) space: Mutex<Space>,
    pub(super) parent: RwLock<Option<Parent>>,
    pub(super) disk: RwLock<Disk>,
    /// The log held something that was not done when the image was opened.
    pub(super) replayed: bool,
    /// Which ids of the header were changed.
    pub(super) started: AtomicU8,
    /// What changes looks the same to the guest.
    content_stays: AtomicBool,
    /// Something was written since the last flush.
    pub(super) unstable: AtomicBool,
    pub(super) writable: bool,
    /// The image is open for a check although its tables contradict themselves: nothing may be built on it.
    suspect: bool,
    /// What growing must stay within.
    pub(super) limits: Limits,
}

/// What writers share; held for the whole of an allocation or an overlay's write.
#[derive(Debug)]
pub(super) struct Space {
    /// Where the next block begins: past the end of the file, whole MiB.
    pub end: u64,
    /// Pages of the table that differ from the file.
    pub dirty: BTreeSet<u64>,
    /// Headers and log.
    pub journal: Journal,
    /// Where table and metadata are.
    pub regions: Regions,
}

impl VhdxImage {
    pub(super) fn new(opened: Opened, env: &OpenEnv<'_>) -> Result<Self> {
        let end = opened.storage.len()?;
        let end = end
            .checked_next_multiple_of(MIB)
            .ok_or_else(|| Error::limit(format!("a file of {end} bytes is too large")))?;
        let image = Self {
            geometry: RwLock::new(opened.disk.geometry),
            bat: RwLock::new(opened.bat),
            bits: Bits::new(env.limits.cache_bytes),
            space: Mutex::new(Space {
                end,
                dirty: BTreeSet::new(),
                journal: Journal::new(opened.headers, &opened.header),
                regions: opened.regions,
            }),
            parent: RwLock::new(opened.disk.parent.clone()),
            disk: RwLock::new(opened.disk),
            replayed: opened.replayed,
            started: AtomicU8::new(0),
            content_stays: AtomicBool::new(false),
            unstable: AtomicBool::new(false),
            writable: env.writable,
            suspect: opened.findings.refuse(),
            file: opened.storage,
            header: opened.header,
            limits: env.limits.clone(),
        };
        if !image.suspect {
            // The last block of a fixed disk may be stored only as far as the guest has it.
            let mut space = lock(&image.space);
            space.end = space.end.max(image.used_end(&space));
        }
        Ok(image)
    }
    /// Tells the headers that the image changes, once. `what` makes the new ids differ from those of another copy that changes.
    pub(super) fn start(&self, what: &[u8]) -> Result<()> {
        let changed = match self.content_stays.load(Ordering::Acquire) {
            true => FILE_CHANGED,
            false => DATA_CHANGED,
        };
        self.note_change(changed, what)
    }
    pub(super) fn geometry(&self) -> Geometry {
        *shared(&self.geometry)
    }
    fn inside(&self, offset: u64, len: u64) -> Result<()> {
        check_range(offset, len, self.virtual_size()).map_err(|e| e.at(self.file.name()))
    }
    pub(super) fn may_write(&self) -> Result<()> {
        if !self.writable {
            return Err(Error::denied("the image is open for reading only").at(self.file.name()));
        }
        if self.suspect {
            return Err(Error::corrupt("the image is damaged: it can be checked, not changed").at(self.file.name()));
        }
        Ok(())
    }
}

impl Image for VhdxImage {
    fn format(&self) -> &'static str {
        "vhdx"
    }
    fn virtual_size(&self) -> u64 {
        self.geometry().size
    }
    fn backing(&self) -> Option<BackingReference> {
        let name = shared(&self.parent).as_ref()?.names().into_iter().next()?;
        Some(BackingReference {
            name,
            format: Some("vhdx".into()),
        })
    }
    fn other_backing_names(&self) -> Vec<String> {
        let names = shared(&self.parent).as_ref().map(Parent::names);
        names.unwrap_or_default().into_iter().skip(1).collect()
    }
    fn layer_id(&self) -> Option<String> {
        let id = lock(&self.space).journal.headers.raw.data_write_guid;
        Some(uuid::Uuid::from_bytes_le(id).to_string())
    }
    fn check_below(&self, below: &dyn Image) -> Result<()> {
        let Some(parent) = shared(&self.parent).clone() else {
            return Ok(());
        };
        let id = backing::id_of_layer(below);
        // The second: a commit was cut off before the disk below got its new id.
        if id.is_some_and(|id| parent.ids.contains(&id) || parent.ids.contains(&id_of_commit(id))) {
            return Ok(());
        }
        let found = id.map_or_else(
            || format!("an image of format '{}'", below.format()),
            |id| id.to_string(),
        );
        let wanted: Vec<_> = parent.ids.iter().map(ToString::to_string).collect();
        Err(Error::corrupt(format!(
            "this is not the disk that the overlay {} was made on, or it was written since: expected data-write id {}, found {found}",
            self.file.name(),
            wanted.join(" or ")
        )))
    }
    fn info(&self) -> Result<ImageInfo> {
        Ok(ImageInfo {
            cluster_size: Some(self.geometry().block),
            dirty: Some(false),
            ..ImageInfo::default()
        })
    }
    fn storages(&self) -> Vec<StorageRef> {
        vec![self.file.clone()]
    }

    fn extent(&self, offset: u64, len: u64) -> Result<Extent> {
        self.inside(offset, len)?;
        self.block_extent(offset, len)
    }
    fn reserves_space(&self) -> bool {
        shared(&self.disk).flags & LEAVE_ALLOCATED != 0
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.inside(offset, buf.len() as u64)?;
        self.read_blocks(offset, buf)
    }
    fn write(&self, offset: u64, buf: &[u8], below: &dyn Below) -> Result<()> {
        self.may_write()?;
        self.inside(offset, buf.len() as u64)?;
        self.start(buf)?;
        self.write_blocks(offset, buf, below)
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool, below: &dyn Below) -> Result<()> {
        self.may_write()?;
        self.inside(offset, len)?;
        self.start(&offset.to_le_bytes())?;
        self.zero_blocks(offset, len, unmap, below)
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.may_write()?;
        self.inside(offset, len)?;
        self.start(&offset.to_le_bytes())?;
        self.discard_blocks(offset, len)
    }
    fn bulk(&self) -> Option<&dyn BulkWrite> {
        // Overlays write sectors, not blocks: the plain way is right for them.
        (!self.geometry().overlay && self.writable).then_some(self)
    }
    fn resumable(&self) -> bool {
        true
    }
    fn flush(&self) -> Result<()> {
        if self.writable {
            self.flush_locked(&mut lock(&self.space))
        } else {
            Ok(())
        }
    }
    fn close(&self) -> Result<()> {
        self.flush()?;
        if self.writable {
            lock(&self.space).journal.settle(self.file.as_ref())?;
        }
        Ok(())
    }
    fn resize(&self, to: &Resize) -> Result<()> {
        self.may_write()?;
        resize::resize(self, to)
    }
    fn set_backing(&self, backing: Option<&BackingReference>) -> Result<()> {
        self.set_backing_over(backing, None)
    }
    fn set_backing_over(&self, backing: Option<&BackingReference>, below: Option<&dyn Image>) -> Result<()> {
        self.may_write()?;
        backing::change(self, backing, below)
    }
    fn follows_below(&self) -> bool {
        shared(&self.parent).is_some()
    }
    fn expect_change(&self, below: &dyn Image) -> Result<()> {
        self.may_write()?;
        backing::expect_change(self, below)
    }
    fn begin_change(&self) -> Result<()> {
        self.may_write()?;
        self.begin_commit()
    }
    fn content_stays(&self, stays: bool) {
        self.content_stays.store(stays, Ordering::Release);
    }
    fn make_empty(&self) -> Result<()> {
        self.may_write()?;
        self.empty()
    }
    fn check(&self, repair: Repair, control: &Control) -> Result<CheckReport> {
        if repair != Repair::No && !self.writable {
            self.may_write()?;
        }
        check::check(self, repair, control)
    }
}

impl BulkWrite for VhdxImage {
    fn unit(&self) -> u64 {
        4096
    }
    fn encodes(&self) -> bool {
        false
    }
    fn overwrites(&self) -> bool {
        true
    }
    fn sparse_store(&self) -> bool {
        true
    }
    fn encode(&self, _data: &[u8], _scratch: &mut Scratch) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }
    fn place(&self, offset: u64, len: u64, _encoded: Option<u64>) -> Result<Placement> {
        self.inside(offset, len)?;
        self.start(&[offset.to_le_bytes(), len.to_le_bytes()].concat())?;
        Ok(Placement {
            guest: offset,
            at: HostPlace {
                file: 0,
                offset: self.place_blocks(offset, len)?,
            },
            len,
            encoded: false,
        })
    }
    fn store(&self, placement: &Placement, bytes: &[u8]) -> Result<()> {
        self.inside(placement.guest, bytes.len() as u64)?;
        self.unstable.store(true, Ordering::Release);
        self.store_blocks(placement.guest, bytes)
    }
}
