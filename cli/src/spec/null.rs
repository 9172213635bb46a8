//! `null-co`: a disk of nothing, for tests and benchmarks. What is written to it is gone.

use vdisk_engine::storage::StorageExtent;
use vdisk_engine::{Error, Result, Storage};

/// Zeroes of a given length.
#[derive(Debug)]
pub struct NullStorage {
    /// Length in bytes.
    len: u64,
    /// Whether the map says that it is zero; without that everything counts as data.
    zero: bool,
}

impl NullStorage {
    /// `len` bytes.
    pub fn new(len: u64, zero: bool) -> Self {
        Self { len, zero }
    }
    fn inside(&self, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(Error::invalid(format!("{len} bytes at {offset:#x} end past {}", self.len)).at(self.name())),
        }
    }
}

impl Storage for NullStorage {
    fn name(&self) -> &str {
        "null-co://"
    }
    fn len(&self) -> Result<u64> {
        Ok(self.len)
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.inside(offset, buf.len() as u64)?;
        buf.fill(0);
        Ok(())
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.inside(offset, buf.len() as u64)
    }
    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> Result<()> {
        self.inside(offset, len)
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.inside(offset, len)
    }
    fn set_len(&self, _len: u64) -> Result<()> {
        Err(Error::unsupported("the size of this disk cannot change").at(self.name()))
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn extent(&self, offset: u64, len: u64) -> Result<StorageExtent> {
        self.inside(offset, 1)?;
        Ok(StorageExtent {
            len: len.min(self.len - offset),
            data: !self.zero,
        })
    }
    fn allocated(&self) -> Result<u64> {
        Ok(0)
    }
    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        self.inside(offset, len)
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn can_resize(&self) -> bool {
        false
    }
}
