//! The bytes of images that are written, with a point at each change.

use std::sync::Arc;

use vdisk_engine::storage::{FileId, FlushGuard, Storage, StorageExtent};
use vdisk_engine::{Error, Result, StorageRef};

use super::{Side, Step, is_watched, reach};

/// The storage with its points, where anybody counts; the storage itself otherwise.
pub(crate) fn watched(storage: StorageRef) -> StorageRef {
    if is_watched() {
        Arc::new(Watched(storage, FlushGuard::default()))
    } else {
        storage
    }
}

#[derive(Debug)]
struct Watched(StorageRef, FlushGuard);

fn around<T>(step: Step, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let failed = |error: crate::ServiceError| Error::io("cannot change the file", std::io::Error::other(error.public));
    reach(step, Side::Before).map_err(failed)?;
    let done = work()?;
    reach(step, Side::After).map_err(failed)?;
    Ok(done)
}

impl Storage for Watched {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn len(&self) -> Result<u64> {
        self.0.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        around(Step::WriteBytes, || self.0.write_at(offset, buf))
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        around(Step::WriteZeroes, || self.0.write_zeroes(offset, len, unmap))
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        around(Step::DiscardBytes, || self.0.discard(offset, len))
    }

    fn set_len(&self, len: u64) -> Result<()> {
        around(Step::SetLength, || self.0.set_len(len))
    }

    fn flush(&self) -> Result<()> {
        // A flush that is made to fail is none of the file's: it has to be remembered here as well.
        self.1
            .flush(self.name(), || around(Step::FlushBytes, || self.0.flush()))
    }

    fn extent(&self, offset: u64, len: u64) -> Result<StorageExtent> {
        self.0.extent(offset, len)
    }

    fn allocated(&self) -> Result<u64> {
        self.0.allocated()
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        around(Step::AllocateBytes, || self.0.allocate(offset, len))
    }

    fn is_read_only(&self) -> bool {
        self.0.is_read_only()
    }

    fn can_resize(&self) -> bool {
        self.0.can_resize()
    }

    fn identity(&self) -> Option<FileId> {
        self.0.identity()
    }

    // No host file: a copy inside the kernel would pass the points by.
}
