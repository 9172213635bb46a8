//! An image as a storage: a format on top of another format (`driver=raw,file.driver=qcow2`).

use std::fmt;

use vdisk_engine::image::Resize;
use vdisk_engine::storage::StorageExtent;
use vdisk_engine::{Chain, Error, Result, Storage};

/// The guest data of a chain as bytes of a storage.
pub struct ImageStorage {
    chain: Chain,
    name: String,
    read_only: bool,
}

impl ImageStorage {
    /// The storage that `chain` is, under `name`.
    pub fn new(chain: Chain, name: String, read_only: bool) -> Self {
        Self { chain, name, read_only }
    }
    fn refuse_read_only(&self) -> Result<()> {
        if self.read_only {
            return Err(Error::denied("the image is open for reading only").at(&self.name));
        }
        Ok(())
    }
    fn grow_to(&self, end: u64) -> Result<()> {
        if end <= self.chain.virtual_size() {
            return Ok(());
        }
        // An image that cannot grow is to its user a disk that is full.
        self.set_len(end).map_err(|_| {
            let full = std::io::Error::from(rustix::io::Errno::NOSPC);
            Error::io(format!("cannot grow to {end} bytes"), full).at(&self.name)
        })
    }
}

impl fmt::Debug for ImageStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageStorage")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Drop for ImageStorage {
    fn drop(&mut self) {
        if !self.read_only
            && let Err(error) = self.chain.top().close()
        {
            crate::app::error(&format!("{}: {error}", self.name));
        }
    }
}

impl Storage for ImageStorage {
    fn name(&self) -> &str {
        &self.name
    }
    fn len(&self) -> Result<u64> {
        Ok(self.chain.virtual_size())
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.chain.read(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.refuse_read_only()?;
        self.grow_to(offset.saturating_add(buf.len() as u64))?;
        self.chain.write(offset, buf)
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.refuse_read_only()?;
        self.grow_to(offset.saturating_add(len))?;
        self.chain.write_zeroes(offset, len, unmap)
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.refuse_read_only()?;
        self.chain.top().discard(offset, len)
    }
    fn set_len(&self, len: u64) -> Result<()> {
        self.refuse_read_only()?;
        self.chain.top().resize(&Resize {
            virtual_size: len,
            shrink: true,
            ..Resize::default()
        })
    }
    fn flush(&self) -> Result<()> {
        self.chain.top().flush()
    }
    fn extent(&self, offset: u64, len: u64) -> Result<StorageExtent> {
        let left = self.chain.virtual_size().saturating_sub(offset);
        if left == 0 {
            return Err(Error::invalid(format!("{offset:#x} lies past the end")).at(&self.name));
        }
        let extent = self.chain.extent(offset, len.min(left))?;
        Ok(StorageExtent {
            len: extent.len,
            data: !extent.is_zero(),
        })
    }
    fn allocated(&self) -> Result<u64> {
        self.chain
            .top()
            .storages()
            .iter()
            .map(|s| s.allocated())
            .try_fold(0, |sum: u64, n| Ok(sum.saturating_add(n?)))
    }
    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        let _ = (offset, len);
        Err(Error::unsupported("space cannot be reserved inside an image").at(&self.name))
    }
    fn is_read_only(&self) -> bool {
        self.read_only
    }
    fn identity(&self) -> Option<vdisk_engine::storage::FileId> {
        self.chain.top().storages().first().and_then(|s| s.identity())
    }
}
