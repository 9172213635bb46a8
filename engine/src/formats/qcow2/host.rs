//! The files of an image, and what is known about their being stable.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::{Error, Result, StorageRef};

/// Main file and external data file.
pub(super) struct Host {
    /// Header, tables, and guest data where there is no data file.
    pub file: StorageRef,
    /// The external data file.
    pub data: Option<StorageRef>,
    /// A flush failed: what the file holds is unknown until it is opened anew.
    failed: AtomicBool,
    /// A contradiction was met while writing: the image is to be marked corrupt.
    damaged: AtomicBool,
    /// The image is being created: nothing in it is worth an order of writes yet.
    pub unordered: AtomicBool,
    /// The data file's (or the main file's) length is at least this.
    data_len: AtomicU64,
    /// The main file must become at least so long: places up to here were given out.
    wanted_len: AtomicU64,
    /// The main file reads as zeroes where it was never written.
    grows: bool,
}

impl Host {
    pub fn new(file: StorageRef, data: Option<StorageRef>) -> Self {
        Self {
            grows: file.can_resize(),
            file,
            data,
            failed: AtomicBool::new(false),
            damaged: AtomicBool::new(false),
            unordered: AtomicBool::new(false),
            data_len: AtomicU64::new(0),
            wanted_len: AtomicU64::new(0),
        }
    }

    /// Whether a place given out reads as zeroes until it is written.
    pub fn leaves_holes(&self) -> bool {
        self.data.is_none() && self.grows
    }
    /// Cuts the main file: nothing behind is used.
    pub fn cut(&self, end: u64) -> Result<()> {
        self.promise(0);
        self.forget_len();
        self.file.set_len(end)
    }
    /// The main file has to reach `end` before tables say so.
    pub fn reach(&self, end: u64) {
        self.wanted_len.fetch_max(end, Ordering::Relaxed);
    }
    /// How far the main file has to reach.
    pub fn promised(&self) -> u64 {
        self.wanted_len.load(Ordering::Relaxed)
    }
    /// Takes back what was promised past `end`: nothing there is used.
    pub fn promise(&self, end: u64) {
        self.wanted_len.store(end, Ordering::Relaxed);
    }
    /// Makes the main file as long as was promised.
    pub fn grow(&self) -> Result<()> {
        let wanted = self.promised();
        if wanted > 0 && self.grows && self.file.len()? < wanted {
            self.file.set_len(wanted)?;
        }
        Ok(())
    }

    /// Where guest data lies.
    pub fn data(&self) -> &StorageRef {
        self.data.as_ref().unwrap_or(&self.file)
    }
    /// Its index in [`Image::storages`](crate::Image::storages).
    pub fn data_index(&self) -> usize {
        usize::from(self.data.is_some())
    }

    /// Where the file with guest data ends; asked of the system only when `end` lies past what is known.
    pub fn data_end(&self, end: u64) -> Result<u64> {
        let known = self.data_len.load(Ordering::Relaxed);
        if end <= known {
            return Ok(known);
        }
        let len = self.data().len()?;
        self.data_len.fetch_max(len, Ordering::Relaxed);
        Ok(len)
    }
    /// The file may be shorter than it was.
    pub fn forget_len(&self) {
        self.data_len.store(0, Ordering::Relaxed);
    }

    /// Returns when all files are stable. A failure is final: the kernel may have dropped what it could not write.
    pub fn flush(&self) -> Result<()> {
        self.refuse_failed()?;
        if self.unordered.load(Ordering::Relaxed) {
            return Ok(());
        }
        let done = self
            .data
            .as_ref()
            .map_or(Ok(()), |d| d.flush())
            .and_then(|()| self.file.flush());
        if done.is_err() {
            self.failed.store(true, Ordering::Relaxed);
        }
        done
    }

    /// # Errors
    /// `Io` after a failed flush.
    pub fn refuse_failed(&self) -> Result<()> {
        if self.failed.load(Ordering::Relaxed) {
            let cause = std::io::Error::other("an earlier flush failed");
            return Err(
                Error::io("the state of the file is unknown; open and check it anew", cause).at(self.file.name()),
            );
        }
        Ok(())
    }
    /// A contradiction in the metadata was met while writing.
    pub fn note_damage(&self) {
        self.damaged.store(true, Ordering::Relaxed);
    }
    /// Whether one was met.
    pub fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }
}
