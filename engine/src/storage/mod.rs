//! Where bytes live: the protocol layer below every format.

mod buffer;
mod direct;
mod faulty;
mod file;
mod file_options;
mod flush_guard;
mod http;
mod likeness;
mod lock;
mod memory;
mod nbd;
mod new_file;
mod read_only;
mod slice;
mod write_out;

use std::fmt;
use std::fs::File;
use std::sync::Arc;

pub(crate) use buffer::PAGE;
pub use buffer::PageBuffer;
pub use faulty::{Fault, FaultyStorage, LoggedOp};
pub use file::FileStorage;
pub use file_options::{CacheMode, FileOptions};
pub use flush_guard::FlushGuard;
pub use http::{
    AddressGuard, AllowAddress, HttpBody, HttpFile, HttpOptions, HttpStorage, is_public, is_public_web, resolve_url,
    web_url, without_query,
};
pub use lock::{LockMode, Permission};
pub use memory::MemoryStorage;
pub use nbd::{NbdAddress, NbdOptions, NbdStorage, NbdTls, TlsFiles};
pub use new_file::NewFile;
pub use read_only::ReadOnlyStorage;
pub use slice::SliceStorage;
pub use write_out::WriteOut;

use crate::{Error, Result};

/// A shared storage.
pub type StorageRef = Arc<dyn Storage>;

/// Tells two names of one file apart from two files: device and inode, or numbers made of the place where a server has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId {
    /// `st_dev`
    pub device: u64,
    /// `st_ino`
    pub inode: u64,
}

/// A run of a storage that is all data or all hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StorageExtent {
    /// Bytes from the asked offset on; never 0.
    pub len: u64,
    /// False: a hole, which reads as zeroes.
    pub data: bool,
}

/// Positioned access to a run of bytes. All methods take `&self` and may be called from several threads at once.
pub trait Storage: Send + Sync + fmt::Debug {
    /// The name a person knows it by; used in messages and in `info`.
    fn name(&self) -> &str;
    /// Length in bytes.
    fn len(&self) -> Result<u64>;
    /// Fills `buf` from `offset`. Bytes past the end are an error (`Corrupt`); see [`read_padded`] for the other wish.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;
    /// [`read_at`](Self::read_at) for bytes that the guest asked for, not for a driver's tables: storages for tests tell them apart.
    fn read_guest_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read_at(offset, buf)
    }
    /// Writes all of `buf` at `offset`, growing the storage where it can grow.
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()>;
    /// Makes `len` bytes from `offset` read as zeroes, growing the storage if need be. With `unmap` the space is given back where
    /// that is possible, without it the space stays allocated where that is possible.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()>;
    /// Gives the space of a range back. Afterwards the range reads as zeroes or as before. Never fails for want of support.
    fn discard(&self, offset: u64, len: u64) -> Result<()>;
    /// Cuts or grows to `len` bytes; new bytes read as zeroes.
    fn set_len(&self, len: u64) -> Result<()>;
    /// Returns when everything written before is on stable storage. After one failed every later one fails: see [`FlushGuard`].
    fn flush(&self) -> Result<()>;
    /// What the range from `offset` (below the length) begins with, at most `len` bytes of it.
    fn extent(&self, offset: u64, len: u64) -> Result<StorageExtent>;
    /// Bytes really occupied on the host.
    fn allocated(&self) -> Result<u64>;
    /// Reserves host space for a range without changing what it reads as.
    fn allocate(&self, offset: u64, len: u64) -> Result<()>;
    /// Whether writes are refused.
    fn is_read_only(&self) -> bool;
    /// Whether `set_len` and writes past the end can work (a regular file: yes, a block device: no).
    fn can_resize(&self) -> bool {
        true
    }
    /// Identity for loop detection, where there is one.
    fn identity(&self) -> Option<FileId> {
        None
    }
    /// The open file and the offset of this storage's byte 0 in it, where there is one: for copies inside the kernel only.
    fn host_file(&self) -> Option<(&File, u64)> {
        None
    }
    /// Whether this storage has no bytes at all.
    fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// Reads like [`Storage::read_at`], with zeroes for what lies past the end.
pub fn read_padded(storage: &dyn Storage, offset: u64, buf: &mut [u8]) -> Result<()> {
    match pad(storage, offset, buf)? {
        [] => Ok(()),
        there => storage.read_at(offset, there),
    }
}

/// Reads like [`Storage::read_guest_at`], with zeroes for what lies past the end.
pub fn read_guest_padded(storage: &dyn Storage, offset: u64, buf: &mut [u8]) -> Result<()> {
    match pad(storage, offset, buf)? {
        [] => Ok(()),
        there => storage.read_guest_at(offset, there),
    }
}

/// Fills what lies past the end with zeroes, and gives the rest of the buffer.
fn pad<'b>(storage: &dyn Storage, offset: u64, buf: &'b mut [u8]) -> Result<&'b mut [u8]> {
    let there = storage.len()?.saturating_sub(offset);
    let n = usize::try_from(there).unwrap_or(usize::MAX).min(buf.len());
    let (head, tail) = buf.split_at_mut(n);
    tail.fill(0);
    Ok(head)
}

/// Reads `len` bytes into a new vector. `len` must have been bounded by the caller.
pub fn read_vec(storage: &dyn Storage, offset: u64, len: usize) -> Result<Vec<u8>> {
    let end = storage.len()?;
    if offset.checked_add(len as u64).is_none_or(|e| e > end) {
        return Err(past_end(storage.name(), offset, len as u64, end));
    }
    let mut buf = vec![0; len];
    storage.read_at(offset, &mut buf)?;
    Ok(buf)
}

/// Writes zeroes as bytes: for storages that have nothing better.
pub(crate) fn write_zero_bytes(storage: &dyn Storage, mut offset: u64, mut len: u64) -> Result<()> {
    let zeroes = vec![0u8; 1 << 20];
    while len > 0 {
        let n = len.min(1 << 20);
        storage.write_at(offset, &zeroes[..n as usize])?;
        offset += n;
        len -= n;
    }
    Ok(())
}

fn past_end(name: &str, offset: u64, len: u64, end: u64) -> Error {
    Error::corrupt(format!(
        "cannot read {len} bytes at {offset:#x}: the file ends at {end:#x}"
    ))
    .at(name)
}
