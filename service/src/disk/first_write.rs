//! The first change of an image's file in place: whoever makes it is told under the lock of the file, before a byte of it changes. Until then
//! what is on record of the file holds, so that a change by others is found out.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vdisk_engine::storage::{FileId, Storage, StorageExtent};
use vdisk_engine::{Result as EngineResult, StorageRef};

use super::error::refused;
use crate::error::Result;

/// Who changes an image's file.
pub trait Changes: Send + Sync {
    /// The file is locked, and not as it was left.
    ///
    /// # Errors
    /// `base_changed` where that matters.
    fn is_another(&self) -> Result<()>;

    /// The file is locked, and about to change.
    ///
    /// # Errors
    /// As [`Changes::is_another`], and why it must not be changed now.
    fn begin(&self) -> Result<()>;
}

/// Tells it once, whichever thread writes first.
#[derive(Clone)]
pub struct FirstWrite(Arc<State>);

struct State {
    changes: Box<dyn Changes>,
    begun: AtomicBool,
    turn: Mutex<()>,
}

impl fmt::Debug for FirstWrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FirstWrite")
            .field("begun", &self.has_begun())
            .finish_non_exhaustive()
    }
}

impl FirstWrite {
    /// For one file.
    pub fn new(changes: impl Changes + 'static) -> Self {
        Self(Arc::new(State {
            changes: Box::new(changes),
            begun: AtomicBool::new(false),
            turn: Mutex::new(()),
        }))
    }

    /// Whether the file may have changed by now.
    pub fn has_begun(&self) -> bool {
        self.0.begun.load(Ordering::Acquire)
    }

    /// The file is locked, and not as it was left.
    ///
    /// # Errors
    /// What [`Changes::is_another`] says.
    pub fn is_another(&self) -> Result<()> {
        self.0.changes.is_another()
    }

    /// Before a change of the file, under its lock.
    ///
    /// # Errors
    /// What [`Changes::begin`] says; the file must stay as it is.
    pub fn begin(&self) -> Result<()> {
        if self.has_begun() {
            return Ok(());
        }
        let _turn = self.0.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.has_begun() {
            self.0.changes.begin()?;
            self.0.begun.store(true, Ordering::Release);
        }
        Ok(())
    }
}

/// A file whose first change is told.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) storage: StorageRef,
    pub(super) first_write: FirstWrite,
}

impl Told {
    fn before_change(&self) -> EngineResult<&StorageRef> {
        self.first_write.begin().map_err(refused)?;
        Ok(&self.storage)
    }
}

impl Storage for Told {
    fn name(&self) -> &str {
        self.storage.name()
    }

    fn len(&self) -> EngineResult<u64> {
        self.storage.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> EngineResult<()> {
        self.storage.read_at(offset, buf)
    }

    fn read_guest_at(&self, offset: u64, buf: &mut [u8]) -> EngineResult<()> {
        self.storage.read_guest_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> EngineResult<()> {
        self.before_change()?.write_at(offset, buf)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> EngineResult<()> {
        self.before_change()?.write_zeroes(offset, len, unmap)
    }

    fn discard(&self, offset: u64, len: u64) -> EngineResult<()> {
        self.before_change()?.discard(offset, len)
    }

    fn set_len(&self, len: u64) -> EngineResult<()> {
        self.before_change()?.set_len(len)
    }

    fn flush(&self) -> EngineResult<()> {
        self.storage.flush()
    }

    fn extent(&self, offset: u64, len: u64) -> EngineResult<StorageExtent> {
        self.storage.extent(offset, len)
    }

    fn allocated(&self) -> EngineResult<u64> {
        self.storage.allocated()
    }

    fn allocate(&self, offset: u64, len: u64) -> EngineResult<()> {
        self.before_change()?.allocate(offset, len)
    }

    fn is_read_only(&self) -> bool {
        self.storage.is_read_only()
    }

    fn can_resize(&self) -> bool {
        self.storage.can_resize()
    }

    fn identity(&self) -> Option<FileId> {
        self.storage.identity()
    }

    // No host file: what is written to it would not be told.
}
