//! vvfat: a folder of the host as a read-only FAT12, FAT16 or FAT32 disk with long names.
//!
//! The disk is made up by [`FolderDisk`], a storage: an open gate that may open a folder makes one and answers with format `vvfat`.
//! Tables and folders are made when it is opened, file contents are read when they are asked for, beneath the folder and without
//! following links. Links, devices and sockets are left out. Refused: everything that is not a `FolderDisk` (`NotThisFormat`),
//! writing (`Unsupported`), files of 4 GiB and more, more than the disk holds (`LimitExceeded`).

mod build;
mod disk;
mod geometry;
mod names;
mod sectors;
mod tree;

pub use disk::FolderDisk;
pub use geometry::{FatType, FolderOptions};

use crate::formats::common::{READ_ONLY, check_range};
use crate::formats::{Capabilities, Confidence, FormatDriver, Probe};
use crate::image::{BackingReference, Extent, ExtentKind, HostPlace, ImageInfo};
use crate::options::Options;
use crate::{Error, Image, OpenEnv, Result, StorageRef};

/// What the names of folder disks start with.
const SCHEME: &str = "fat:";

/// The driver.
pub struct Vvfat;

impl FormatDriver for Vvfat {
    fn name(&self) -> &'static str {
        "vvfat"
    }
    fn description(&self) -> &'static str {
        "a folder as a FAT disk"
    }
    fn capabilities(&self) -> &'static Capabilities {
        &READ_ONLY
    }
    fn detect(&self, _probe: &Probe<'_>) -> Confidence {
        0
    }
    fn open(&self, storage: StorageRef, _options: &Options, env: &OpenEnv<'_>) -> Result<Box<dyn Image>> {
        if !storage.name().starts_with(SCHEME) || !storage.is_read_only() {
            return Err(Error::not_this_format("a folder is expected (fat:FOLDER)"));
        }
        if env.writable {
            return Err(Error::unsupported("a folder shown as a FAT disk cannot be written"));
        }
        let size = storage.len()?;
        Ok(Box::new(VvfatImage { disk: storage, size }))
    }
}

struct VvfatImage {
    disk: StorageRef,
    size: u64,
}

impl Image for VvfatImage {
    fn format(&self) -> &'static str {
        "vvfat"
    }
    fn virtual_size(&self) -> u64 {
        self.size
    }
    fn backing(&self) -> Option<BackingReference> {
        None
    }
    fn info(&self) -> Result<ImageInfo> {
        Ok(ImageInfo::default())
    }
    fn storages(&self) -> Vec<StorageRef> {
        vec![self.disk.clone()]
    }
    fn extent(&self, offset: u64, len: u64) -> Result<Extent> {
        check_range(offset, len, self.size)?;
        let found = self.disk.extent(offset, len)?;
        let at = Some(HostPlace { file: 0, offset });
        let kind = if found.data {
            ExtentKind::Data { at, direct: true }
        } else {
            ExtentKind::Zero { at: None }
        };
        Ok(Extent { len: found.len, kind })
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(offset, buf.len() as u64, self.size)?;
        self.disk.read_at(offset, buf)
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
}
