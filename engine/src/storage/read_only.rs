//! Storages that are read and never written: what they cannot do stands here once.

use std::fmt;

use super::{FileId, Storage, StorageExtent};
use crate::{Error, Result};

/// The reading half of a [`Storage`]. Who has it has all of one: every change is refused, and a flush has nothing to do.
#[expect(clippy::len_without_is_empty, reason = "`Storage::is_empty` serves all")]
pub trait ReadOnlyStorage: Send + Sync + fmt::Debug {
    /// See [`Storage::name`].
    fn name(&self) -> &str;
    /// See [`Storage::len`].
    fn len(&self) -> Result<u64>;
    /// See [`Storage::read_at`].
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;
    /// See [`Storage::extent`].
    fn extent(&self, offset: u64, len: u64) -> Result<StorageExtent>;
    /// See [`Storage::allocated`].
    fn allocated(&self) -> Result<u64>;
    /// See [`Storage::identity`].
    fn identity(&self) -> Option<FileId> {
        None
    }
    /// Why it cannot be written.
    fn why_read_only(&self) -> &'static str;
}

fn refuse<T>(storage: &impl ReadOnlyStorage) -> Result<T> {
    Err(Error::denied(storage.why_read_only()).at(storage.name()))
}

impl<S: ReadOnlyStorage> Storage for S {
    fn name(&self) -> &str {
        ReadOnlyStorage::name(self)
    }
    fn len(&self) -> Result<u64> {
        ReadOnlyStorage::len(self)
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        ReadOnlyStorage::read_at(self, offset, buf)
    }
    fn write_at(&self, _offset: u64, _buf: &[u8]) -> Result<()> {
        refuse(self)
    }
    fn write_zeroes(&self, _offset: u64, _len: u64, _unmap: bool) -> Result<()> {
        refuse(self)
    }
    fn discard(&self, _offset: u64, _len: u64) -> Result<()> {
        refuse(self)
    }
    fn set_len(&self, _len: u64) -> Result<()> {
        refuse(self)
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn extent(&self, offset: u64, len: u64) -> Result<StorageExtent> {
        ReadOnlyStorage::extent(self, offset, len)
    }
    fn allocated(&self) -> Result<u64> {
        ReadOnlyStorage::allocated(self)
    }
    fn allocate(&self, _offset: u64, _len: u64) -> Result<()> {
        refuse(self)
    }
    fn is_read_only(&self) -> bool {
        true
    }
    fn can_resize(&self) -> bool {
        false
    }
    fn identity(&self) -> Option<FileId> {
        ReadOnlyStorage::identity(self)
    }
}
