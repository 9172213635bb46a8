//! An open qcow2 image: what it holds, and which lock guards what.
//!
//! Two locks. `shared` guards what readers need (L1, L2 tables, header); it is held while a range is looked up, never while guest data is
//! read or written. `writer` guards what only writers need (refcounts, what is not yet written); whoever changes anything holds it for the whole
//! operation and takes `shared` for writing only while tables in memory change. Order: `writer`, then `shared`, then `metadata`.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::cache::L2Cache;
use super::codec::Codec;
use super::crypt::Encryption;
use super::host::Host;
use super::layout::{Crypt, Extensions, Geometry, Header};
use super::metadata::MetadataMap;
use super::snapshots::{Snapshot, TableDamage};
use super::writer::Writer;
use crate::image::{
    BackingReference, Below, Bitmaps, BulkWrite, CheckReport, Extent, ImageInfo, KeySlots, Repair, Resize, Snapshots,
};
use crate::options::Options;
use crate::{Control, Error, Image, Limits, Result, StorageRef};

/// An open image.
pub(super) struct Qcow2 {
    pub geometry: Geometry,
    pub host: Arc<Host>,
    pub codec: Codec,
    /// `None`: guest data is stored as it is.
    pub encryption: Option<Arc<Encryption>>,
    pub limits: Limits,
    /// The caller put it over another layer, whatever the header says.
    pub over_base: bool,
    /// `None`: opened for reading.
    pub writer: Option<Mutex<Writer>>,
    pub shared: RwLock<Shared>,
    pub metadata: Arc<RwLock<MetadataMap>>,
    /// The last compressed cluster that was read in part: its place and its bytes.
    pub unpacked: Mutex<Option<(u64, Vec<u8>)>>,
    /// What opening it found and repaired.
    pub notices: Vec<String>,
}

/// What readers need.
pub(super) struct Shared {
    pub header: Header,
    pub extensions: Extensions,
    pub backing: Option<BackingReference>,
    pub snapshots: Vec<Snapshot>,
    /// Why there may be more snapshots than those.
    pub snapshot_damage: Option<TableDamage>,
    /// The active L1 table, raw.
    pub l1: Vec<u64>,
    pub l2: L2Cache,
}

impl Qcow2 {
    pub fn read_shared(&self) -> RwLockReadGuard<'_, Shared> {
        self.shared.read().unwrap_or_else(PoisonError::into_inner)
    }
    pub fn write_shared(&self) -> RwLockWriteGuard<'_, Shared> {
        self.shared.write().unwrap_or_else(PoisonError::into_inner)
    }
    pub fn read_metadata(&self) -> RwLockReadGuard<'_, MetadataMap> {
        self.metadata.read().unwrap_or_else(PoisonError::into_inner)
    }
    pub fn write_metadata(&self) -> RwLockWriteGuard<'_, MetadataMap> {
        self.metadata.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a layer lies below, which shows where nothing is allocated.
    pub fn has_base(&self) -> bool {
        self.over_base || self.read_shared().backing.is_some()
    }

    /// Takes the right to change the image.
    ///
    /// # Errors
    /// `Denied` when it is open for reading; `Io` after a failed flush.
    pub fn lock_writer(&self) -> Result<MutexGuard<'_, Writer>> {
        let Some(writer) = &self.writer else {
            return Err(Error::denied("the image is open for reading only").at(self.host.file.name()));
        };
        self.host.refuse_failed()?;
        Ok(writer.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Saves what bitmaps hold when a change of the image as a whole failed or was refused, so that they stay usable.
    pub fn closed_when_failed<T>(&self, done: Result<T>) -> Result<T> {
        done.inspect_err(|_| {
            let _ = self.finish();
        })
    }

    /// # Errors
    /// `InvalidArgument` for a range past the virtual size.
    pub fn refuse_outside(&self, offset: u64, len: u64) -> Result<()> {
        let size = self.virtual_size();
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(()),
            _ => Err(
                Error::invalid(format!("{len} bytes at {offset:#x} end past the virtual size {size}"))
                    .at(self.host.file.name()),
            ),
        }
    }
}

impl Image for Qcow2 {
    fn format(&self) -> &'static str {
        "qcow2"
    }
    fn notices(&self) -> &[String] {
        &self.notices
    }
    fn virtual_size(&self) -> u64 {
        self.read_shared().header.virtual_size
    }
    fn backing(&self) -> Option<BackingReference> {
        self.read_shared().backing.clone()
    }
    fn subcluster_size(&self) -> Option<u64> {
        self.geometry.extended_l2.then(|| self.geometry.subcluster_size())
    }
    fn info(&self) -> Result<ImageInfo> {
        self.describe()
    }
    fn made_with(&self) -> Options {
        self.made_with_options()
    }
    fn check_compressible(&self) -> Result<()> {
        match self.geometry.data_file {
            true => Err(Error::unsupported(
                "an external data file cannot hold compressed clusters",
            )),
            false => Ok(()),
        }
    }
    fn storages(&self) -> Vec<StorageRef> {
        std::iter::once(&self.host.file)
            .chain(&self.host.data)
            .cloned()
            .collect()
    }
    fn extent(&self, offset: u64, len: u64) -> Result<Extent> {
        self.refuse_outside(offset, len)?;
        self.find_extent(offset, len)
    }
    fn reserves_space(&self) -> bool {
        self.claims_more_than_it_occupies().unwrap_or(false)
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.refuse_outside(offset, buf.len() as u64)?;
        self.read_own(offset, buf)
    }
    fn write(&self, offset: u64, buf: &[u8], below: &dyn Below) -> Result<()> {
        self.refuse_outside(offset, buf.len() as u64)?;
        self.write_plain(offset, buf, below)
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool, below: &dyn Below) -> Result<()> {
        self.refuse_outside(offset, len)?;
        self.zero_range(offset, len, unmap, below)
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.refuse_outside(offset, len)?;
        self.discard_range(offset, len)
    }
    fn write_compressed(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.refuse_outside(offset, buf.len() as u64)?;
        self.write_packed(offset, buf)
    }
    fn bulk(&self) -> Option<&dyn BulkWrite> {
        self.writer.is_some().then_some(self as &dyn BulkWrite)
    }
    fn resumable(&self) -> bool {
        self.writer.is_some()
    }
    fn flush(&self) -> Result<()> {
        if self.writer.is_none() {
            return Ok(());
        }
        let mut writer = self.lock_writer()?;
        self.write_back(&mut writer)?;
        self.host.flush()
    }
    fn resize(&self, to: &Resize) -> Result<()> {
        self.change_size(to)
    }
    fn resize_room(&self, virtual_size: u64) -> Result<u64> {
        self.room_to_resize(virtual_size)
    }
    fn set_backing(&self, backing: Option<&BackingReference>) -> Result<()> {
        self.change_backing(backing)
    }
    fn make_empty(&self) -> Result<()> {
        self.forget_all()
    }
    fn forget(&self, ranges: &[Range<u64>]) -> Result<()> {
        self.forget_ranges(ranges)
    }
    fn amend(&self, options: &Options, force: bool, control: &Control) -> Result<()> {
        self.closed_when_failed(self.change_options(options, force, control))
    }
    fn missing_key(&self) -> Option<Error> {
        let error = self.encryption.as_ref()?.missing_key()?;
        Some(error.at(self.host.file.name()))
    }
    fn key_slots(&self) -> Option<&dyn KeySlots> {
        let luks = self.read_shared().header.crypt == Crypt::Luks;
        luks.then_some(self as &dyn KeySlots)
    }
    fn snapshots(&self) -> Option<&dyn Snapshots> {
        Some(self)
    }
    fn bitmaps(&self) -> Option<&dyn Bitmaps> {
        Some(self)
    }
    fn check(&self, repair: Repair, control: &Control) -> Result<CheckReport> {
        self.check_image(repair, control)
    }
    fn close(&self) -> Result<()> {
        if self.writer.is_none() {
            return Ok(());
        }
        self.finish()
    }
}
