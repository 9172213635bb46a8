//! A window of another storage.

use super::{FileId, Storage, StorageExtent, StorageRef, past_end};
use crate::{Error, Result};

/// `len` bytes of another storage from `start` on, as a storage of its own that cannot grow.
#[derive(Debug)]
pub struct SliceStorage {
    inner: StorageRef,
    start: u64,
    len: u64,
}

impl SliceStorage {
    /// The window `start..start + len` of `inner`.
    ///
    /// # Errors
    /// `InvalidArgument` when the window ends past the end of `inner`.
    pub fn new(inner: StorageRef, start: u64, len: u64) -> Result<Self> {
        let end = inner.len()?;
        if start.checked_add(len).is_none_or(|e| e > end) {
            return Err(
                Error::invalid(format!("{len} bytes at {start:#x} do not fit in {end} bytes")).at(inner.name()),
            );
        }
        Ok(Self { inner, start, len })
    }

    fn inside(&self, offset: u64, len: u64) -> Result<u64> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(self.start + offset),
            _ => Err(past_end(self.name(), offset, len, self.len)),
        }
    }
}

impl Storage for SliceStorage {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn len(&self) -> Result<u64> {
        Ok(self.len)
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.inner.read_at(self.inside(offset, buf.len() as u64)?, buf)
    }
    fn read_guest_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.inner.read_guest_at(self.inside(offset, buf.len() as u64)?, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.inner.write_at(self.inside(offset, buf.len() as u64)?, buf)
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.inner.write_zeroes(self.inside(offset, len)?, len, unmap)
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.discard(self.inside(offset, len)?, len)
    }
    fn set_len(&self, len: u64) -> Result<()> {
        if len == self.len {
            return Ok(());
        }
        Err(Error::unsupported("a window of a file cannot change its length").at(self.name()))
    }
    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }
    fn extent(&self, offset: u64, len: u64) -> Result<StorageExtent> {
        let len = len.min(self.len.saturating_sub(offset));
        self.inner.extent(self.inside(offset, len)?, len)
    }
    fn allocated(&self) -> Result<u64> {
        self.inner.allocated()
    }
    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.allocate(self.inside(offset, len)?, len)
    }
    fn is_read_only(&self) -> bool {
        self.inner.is_read_only()
    }
    fn can_resize(&self) -> bool {
        false
    }
    fn identity(&self) -> Option<FileId> {
        self.inner.identity()
    }
    fn host_file(&self) -> Option<(&std::fs::File, u64)> {
        self.inner.host_file().map(|(file, start)| (file, start + self.start))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::storage::MemoryStorage;

    #[test]
    fn a_slice_stays_inside_its_window() {
        let inner = Arc::new(MemoryStorage::new("m", (0..16).collect()));
        let slice = SliceStorage::new(inner.clone(), 4, 8).unwrap();
        let mut buf = [0; 2];
        slice.read_at(6, &mut buf).unwrap();
        assert_eq!(buf, [10, 11]);
        assert!(slice.read_at(7, &mut buf).is_err());
        assert!(slice.write_at(8, &[1]).is_err());
        assert!(SliceStorage::new(inner, 10, 7).is_err());
    }
}
