//! One open VHD: which of its parts answers what.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::blocks::Blocks;
use super::geometry::SizeRule;
use super::layout::{DiskKind, Footer};
use super::open::Opened;
use super::{backing, check, resize};
use crate::image::{
    BackingReference, Below, BulkWrite, CheckReport, Extent, ExtentKind, HostPlace, ImageInfo, Placement, Repair,
    Resize, Scratch,
};
use crate::{Control, Error, Image, Limits, OpenEnv, Result, StorageRef};

/// An open image.
pub struct VpcImage {
    pub(super) file: StorageRef,
    pub(super) size: AtomicU64,
    pub(super) footer: RwLock<Footer>,
    /// Header, table and bitmaps; `None` for a fixed disk.
    pub(super) blocks: Option<Blocks>,
    /// How the size was found.
    pub(super) rule: SizeRule,
    writable: bool,
    /// What growing must stay within.
    pub(super) limits: Limits,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
pub(super) fn reading<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}
pub(super) fn writing<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl VpcImage {
    pub(super) fn new(file: StorageRef, opened: Opened, rule: SizeRule, env: &OpenEnv<'_>) -> Self {
        let Opened {
            footer, size, sparse, ..
        } = opened;
        Self {
            size: size.into(),
            blocks: sparse.map(|s| Blocks::new(file.clone(), footer, s, env)),
            file,
            footer: RwLock::new(footer),
            rule,
            writable: env.writable,
            limits: env.limits.clone(),
        }
    }

    pub(super) fn inside(&self, offset: u64, len: u64) -> Result<()> {
        let size = self.virtual_size();
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(()),
            _ => Err(
                Error::invalid(format!("{len} bytes at {offset:#x} end past the virtual size {size}"))
                    .at(self.file.name()),
            ),
        }
    }
    pub(super) fn may_write(&self) -> Result<()> {
        if self.writable {
            Ok(())
        } else {
            Err(Error::denied("the image is open for reading only").at(self.file.name()))
        }
    }
}

impl Image for VpcImage {
    fn format(&self) -> &'static str {
        "vpc"
    }
    fn virtual_size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }
    fn backing(&self) -> Option<BackingReference> {
        let name = reading(&self.blocks.as_ref()?.parent).as_ref()?.first()?.clone();
        Some(BackingReference {
            name,
            format: Some("vpc".into()),
        })
    }
    fn other_backing_names(&self) -> Vec<String> {
        let names = self.blocks.as_ref().and_then(|b| reading(&b.parent).clone());
        names.unwrap_or_default().into_iter().skip(1).collect()
    }
    fn layer_id(&self) -> Option<String> {
        let id = reading(&self.footer).raw.unique_id;
        Some(uuid::Uuid::from_bytes(id).to_string())
    }
    fn check_below(&self, below: &dyn Image) -> Result<()> {
        let Some(blocks) = self.blocks.as_ref().filter(|b| b.is_overlay()) else {
            return Ok(());
        };
        let wanted = uuid::Uuid::from_bytes(reading(&blocks.header).raw.parent_unique_id).to_string();
        let found = below
            .layer_id()
            .unwrap_or_else(|| format!("an image of format '{}'", below.format()));
        if found == wanted {
            return Ok(());
        }
        Err(Error::corrupt(format!(
            "this is not the disk that the overlay {} was made on: expected unique id {wanted}, found {found}",
            self.file.name()
        )))
    }
    fn info(&self) -> Result<ImageInfo> {
        Ok(ImageInfo {
            cluster_size: self.blocks.as_ref().map(Blocks::block_size),
            dirty: Some(false),
            ..ImageInfo::default()
        })
    }
    fn storages(&self) -> Vec<StorageRef> {
        vec![self.file.clone()]
    }

    fn extent(&self, offset: u64, len: u64) -> Result<Extent> {
        self.inside(offset, len)?;
        if let Some(blocks) = &self.blocks {
            return blocks.extent(offset, len);
        }
        let at = Some(HostPlace { file: 0, offset });
        Ok(Extent {
            len,
            kind: ExtentKind::Data { at, direct: true },
        })
    }
    fn reserves_space(&self) -> bool {
        self.blocks.is_none()
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.inside(offset, buf.len() as u64)?;
        match &self.blocks {
            Some(blocks) => blocks.read(offset, buf),
            None => self.file.read_at(offset, buf),
        }
    }
    fn write(&self, offset: u64, buf: &[u8], below: &dyn Below) -> Result<()> {
        self.may_write()?;
        self.inside(offset, buf.len() as u64)?;
        match &self.blocks {
            Some(blocks) => blocks.write(offset, buf, below),
            None => self.file.write_at(offset, buf),
        }
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool, below: &dyn Below) -> Result<()> {
        self.may_write()?;
        self.inside(offset, len)?;
        match &self.blocks {
            Some(blocks) => blocks.write_zeroes(offset, len, unmap, below),
            None => self.file.write_zeroes(offset, len, unmap),
        }
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.may_write()?;
        self.inside(offset, len)?;
        match &self.blocks {
            Some(blocks) => blocks.discard(offset, len),
            None => self.file.discard(offset, len),
        }
    }
    fn bulk(&self) -> Option<&dyn BulkWrite> {
        // Overlays write sectors, not blocks: the plain way is right for them.
        let overlay = self.blocks.as_ref().is_some_and(Blocks::is_overlay);
        (!overlay && self.writable).then_some(self)
    }
    fn resumable(&self) -> bool {
        true
    }
    fn flush(&self) -> Result<()> {
        match &self.blocks {
            Some(blocks) if self.writable => blocks.flush(),
            _ => self.file.flush(),
        }
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
    fn make_empty(&self) -> Result<()> {
        self.may_write()?;
        match &self.blocks {
            Some(blocks) => {
                self.refuse_hidden_part()?;
                blocks.make_empty()
            }
            None => Err(self.cannot("empty")),
        }
    }
    fn check(&self, repair: Repair, control: &Control) -> Result<CheckReport> {
        if repair != Repair::No {
            self.may_write()?;
        }
        check::check(self, repair, control)
    }
}

impl BulkWrite for VpcImage {
    fn unit(&self) -> u64 {
        4096
    }
    fn overwrites(&self) -> bool {
        true
    }
    fn sparse_store(&self) -> bool {
        true
    }
    fn encodes(&self) -> bool {
        false
    }
    fn encode(&self, _data: &[u8], _scratch: &mut Scratch) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }
    fn place(&self, offset: u64, len: u64, _encoded: Option<u64>) -> Result<Placement> {
        self.inside(offset, len)?;
        let place = match &self.blocks {
            Some(blocks) => blocks.place(offset, len)?,
            None => offset,
        };
        Ok(Placement {
            guest: offset,
            at: HostPlace { file: 0, offset: place },
            len,
            encoded: false,
        })
    }
    fn store(&self, placement: &Placement, bytes: &[u8]) -> Result<()> {
        self.inside(placement.guest, bytes.len() as u64)?;
        match &self.blocks {
            // A bitmap stands before each block: a run of blocks is not one run of the file.
            Some(blocks) => blocks.store(placement.guest, bytes),
            None => self.file.write_at(placement.guest, bytes),
        }
    }
}

impl VpcImage {
    pub(super) fn kind(&self) -> DiskKind {
        reading(&self.footer).kind
    }
}
