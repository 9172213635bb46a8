//! Bytes in memory: for tests and for small images that never touch a disk.

use std::sync::{PoisonError, RwLock};

use super::{Storage, StorageExtent, past_end};
use crate::{Error, Result};

/// A storage in memory; grows on demand.
#[derive(Debug)]
pub struct MemoryStorage {
    name: String,
    bytes: RwLock<Vec<u8>>,
    read_only: bool,
}

impl MemoryStorage {
    /// Holds `bytes` under `name`.
    pub fn new(name: impl Into<String>, bytes: Vec<u8>) -> Self {
        Self {
            name: name.into(),
            bytes: RwLock::new(bytes),
            read_only: false,
        }
    }
    /// An empty one.
    pub fn empty() -> Self {
        Self::new("memory", Vec::new())
    }
    /// Refuses writes from now on.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }
    /// A copy of everything.
    pub fn contents(&self) -> Vec<u8> {
        self.bytes.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change<T>(&self, end: u64, work: impl FnOnce(&mut Vec<u8>) -> T) -> Result<T> {
        if self.read_only {
            return Err(Error::denied("the storage is read-only").at(&self.name));
        }
        let end = usize::try_from(end).map_err(|_| Error::invalid("offset past the address space").at(&self.name))?;
        let mut bytes = self.bytes.write().unwrap_or_else(PoisonError::into_inner);
        if bytes.len() < end {
            let full = || Error::io(format!("no room for {end} bytes"), std::io::ErrorKind::StorageFull).at(&self.name);
            let more = end - bytes.len();
            if end > MOST || bytes.try_reserve(more).is_err() {
                return Err(full());
            }
            bytes.resize(end, 0);
        }
        Ok(work(&mut bytes))
    }
}

/// What does not fit into memory anyway is not tried: an image of a few bytes may ask for any length.
const MOST: usize = 4 << 30;

fn end_of(offset: u64, len: u64) -> Result<u64> {
    offset
        .checked_add(len)
        .ok_or_else(|| Error::invalid(format!("{len} bytes at {offset:#x} end past 2^64")))
}

impl Storage for MemoryStorage {
    fn name(&self) -> &str {
        &self.name
    }
    fn len(&self) -> Result<u64> {
        Ok(self.bytes.read().unwrap_or_else(PoisonError::into_inner).len() as u64)
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let bytes = self.bytes.read().unwrap_or_else(PoisonError::into_inner);
        let part = usize::try_from(offset)
            .ok()
            .and_then(|start| bytes.get(start..start.checked_add(buf.len())?))
            .ok_or_else(|| past_end(&self.name, offset, buf.len() as u64, bytes.len() as u64))?;
        buf.copy_from_slice(part);
        Ok(())
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let end = end_of(offset, buf.len() as u64)?;
        self.change(end, |bytes| bytes[offset as usize..end as usize].copy_from_slice(buf))
    }
    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> Result<()> {
        let end = end_of(offset, len)?;
        self.change(end, |bytes| bytes[offset as usize..end as usize].fill(0))
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let end = end_of(offset, len)?.min(self.len()?);
        if offset >= end {
            return Ok(());
        }
        self.change(end, |bytes| bytes[offset as usize..end as usize].fill(0))
    }
    fn set_len(&self, len: u64) -> Result<()> {
        self.change(len, |bytes| bytes.truncate(len as usize))
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn extent(&self, offset: u64, len: u64) -> Result<StorageExtent> {
        let end = self.len()?;
        if offset >= end || len == 0 {
            return Err(past_end(&self.name, offset, len, end));
        }
        Ok(StorageExtent {
            len: len.min(end - offset),
            data: true,
        })
    }
    fn allocated(&self) -> Result<u64> {
        self.len()
    }
    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        self.change(end_of(offset, len)?, |_| ())
    }
    fn is_read_only(&self) -> bool {
        self.read_only
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_past_the_end_grow_with_zeroes_between() {
        let storage = MemoryStorage::empty();
        storage.write_at(4, b"ab").unwrap();
        assert_eq!(storage.contents(), b"\0\0\0\0ab");
    }

    #[test]
    fn reads_past_the_end_fail() {
        let storage = MemoryStorage::new("m", vec![1; 8]);
        assert!(storage.read_at(4, &mut [0; 5]).is_err());
        assert!(storage.read_at(u64::MAX, &mut [0; 2]).is_err());
        let mut buf = [9; 6];
        super::super::read_padded(&storage, 4, &mut buf).unwrap();
        assert_eq!(buf, [1, 1, 1, 1, 0, 0]);
    }

    #[test]
    fn a_length_without_room_is_an_error() {
        let storage = MemoryStorage::new("memory", vec![1; 10]);
        let error = storage.set_len(1 << 40).unwrap_err();
        assert_eq!(error.io_kind(), Some(std::io::ErrorKind::StorageFull));
        assert_eq!(storage.contents(), [1; 10]);
    }
}
