//! Files and block devices of the host.

use std::fs::File;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

use super::direct::Direct;
use super::file_options::{CacheMode, FileOptions};
use super::write_out::WriteOut;
use super::{FileId, FlushGuard, Storage, StorageExtent, past_end, write_zero_bytes};
use crate::{Error, Result};

/// An open file or device.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    name: String,
    id: FileId,
    is_device: bool,
    options: FileOptions,
    direct: Option<Direct>,
    /// Where data was found last to begin behind a hole.
    data_found: AtomicU64,
    flushes: FlushGuard,
    write_out: WriteOut,
}

impl FileStorage {
    /// Opens an existing file. Never blocks on a FIFO, never follows one.
    ///
    /// # Errors
    /// `Io` from the system, `Denied` for what is no regular file (or device, where allowed), `Busy` for a lock held by others.
    pub fn open(path: &Path, options: FileOptions) -> Result<Self> {
        let file = File::options()
            .read(true)
            .write(options.writable)
            .custom_flags(options.open_flags())
            .open(path)
            .map_err(|e| Error::io("cannot open", e).at(path.display().to_string()))?;
        Self::from_file(file, path.display().to_string(), options)
    }

    /// Creates a new file, which must not exist yet, with mode 0644 less the umask.
    ///
    /// # Errors
    /// `Io` (kind `AlreadyExists` when there is one).
    pub fn create_new(path: &Path, options: FileOptions) -> Result<Self> {
        let options = FileOptions {
            writable: true,
            ..options
        };
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o644)
            .custom_flags(options.open_flags())
            .open(path)
            .map_err(|e| Error::io("cannot create", e).at(path.display().to_string()))?;
        Self::from_file(file, path.display().to_string(), options)
    }

    /// Takes a file that somebody else opened (relative to a folder, say) and that must be open as `options` says, flags of the cache mode
    /// included.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_file(file: File, name: impl Into<String>, options: FileOptions) -> Result<Self> {
        let name = name.into();
        let metadata = file.metadata().map_err(|e| Error::io("cannot stat", e).at(&name))?;
        let kind = metadata.file_type();
        let is_device = kind.is_block_device() || kind.is_char_device();
        if !(kind.is_file() || is_device && options.devices) {
            let found = if kind.is_dir() {
                "a directory"
            } else if is_device {
                "a device"
            } else {
                "a special file"
            };
            return Err(Error::denied(format!("expected a regular file, found {found}")).at(name));
        }
        options.lock.acquire(&file, &name)?;
        let id = FileId {
            device: metadata.dev(),
            inode: metadata.ino(),
        };
        Ok(Self {
            file,
            name,
            id,
            is_device,
            options,
            direct: options.cache.is_direct().then(Direct::default),
            data_found: AtomicU64::new(u64::MAX),
            flushes: FlushGuard::default(),
            write_out: WriteOut::default(),
        })
    }

    /// The same under another name.
    #[must_use]
    pub fn renamed(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    fn failed(&self, what: &str, offset: u64, len: u64, error: impl Into<std::io::Error>) -> Error {
        Error::io(format!("cannot {what} {len} bytes at {offset:#x}"), error).at(&self.name)
    }

    fn refuse_read_only(&self) -> Result<()> {
        if self.options.writable {
            Ok(())
        } else {
            Err(Error::denied("the file is open for reading only").at(&self.name))
        }
    }

    /// The run of data that a range begins with; `None` where it begins with a hole, or the file system does not say.
    fn data_run(&self, offset: u64, len: u64) -> Result<Option<StorageExtent>> {
        let Ok(hole) = seek(&self.file, SeekFrom::Hole(offset)) else {
            return Ok(None);
        };
        let Some(run) = hole.checked_sub(offset).filter(|run| *run > 0) else {
            return Ok(None);
        };
        // Past the page cache there are no parts of sectors: the last one counts whole.
        let run = match self.direct.is_some() && hole == self.len()? {
            true => run.next_multiple_of(512),
            false => run,
        };
        Ok(Some(StorageExtent {
            len: run.min(len),
            data: true,
        }))
    }

    fn to_the_end(&self, offset: u64, len: u64, data: bool) -> Result<StorageExtent> {
        match self.len()? {
            end if offset < end && len > 0 => Ok(StorageExtent {
                len: len.min(end - offset),
                data,
            }),
            end => Err(past_end(&self.name, offset, len, end)),
        }
    }

    /// Tries one `fallocate` mode; false when the file system has no such thing.
    fn try_fallocate(&self, mode: FallocateFlags, offset: u64, len: u64) -> Result<bool> {
        loop {
            match fallocate(&self.file, mode, offset, len) {
                Ok(()) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV | Errno::PERM) => return Ok(false),
                Err(errno) => return Err(self.failed("allocate", offset, len, errno)),
            }
        }
    }
}

impl Drop for FileStorage {
    /// Closing alone would not do: between fork and exec a child of another thread holds a copy of the descriptor, and the lock with it.
    fn drop(&mut self) {
        self.options.lock.release(&self.file);
    }
}

impl Storage for FileStorage {
    fn name(&self) -> &str {
        &self.name
    }
    fn len(&self) -> Result<u64> {
        if self.is_device {
            return seek(&self.file, SeekFrom::End(0)).map_err(|e| self.failed("find the end of", 0, 0, e));
        }
        Ok(self
            .file
            .metadata()
            .map_err(|e| Error::io("cannot stat", e).at(&self.name))?
            .len())
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let len = buf.len() as u64;
        let done = match &self.direct {
            None => self.file.read_exact_at(buf, offset),
            Some(direct) => direct.read(&self.file, offset, buf),
        };
        done.map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => past_end(&self.name, offset, len, self.len().unwrap_or(0)),
            _ => self.failed("read", offset, len, e),
        })
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.refuse_read_only()?;
        let done = match &self.direct {
            None => self.file.write_all_at(buf, offset),
            Some(direct) => direct.write(&self.file, offset, buf),
        };
        done.map_err(|e| self.failed("write", offset, buf.len() as u64, e))?;
        if self.options.cache == CacheMode::Writeback {
            self.write_out.wrote(&self.file, offset, buf.len() as u64);
        }
        Ok(())
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.refuse_read_only()?;
        let Some(end) = offset.checked_add(len) else {
            return Err(Error::invalid(format!("{len} bytes at {offset:#x} end past 2^64")).at(&self.name));
        };
        if len == 0 {
            return Ok(());
        }
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if unmap && self.try_fallocate(punch, offset, len)?
            || self.try_fallocate(FallocateFlags::ZERO_RANGE, offset, len)?
        {
            if !self.is_device && self.len()? < end {
                self.set_len(end)?;
            }
            return Ok(());
        }
        write_zero_bytes(self, offset, len)
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.refuse_read_only()?;
        if len > 0 {
            self.try_fallocate(FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)?;
        }
        Ok(())
    }
    fn set_len(&self, len: u64) -> Result<()> {
        self.refuse_read_only()?;
        if self.is_device {
            return match self.len()? {
                now if len == now => Ok(()),
                now => {
                    Err(Error::unsupported(format!("a device of {now} bytes cannot become {len} bytes")).at(&self.name))
                }
            };
        }
        self.file
            .set_len(len)
            .map_err(|e| self.failed("resize the file to", 0, len, e))
    }
    fn flush(&self) -> Result<()> {
        if !self.options.writable || self.options.cache == CacheMode::Unsafe {
            return Ok(());
        }
        let sync = || self.file.sync_data();
        self.flushes.flush(&self.name, || {
            sync().map_err(|e| Error::io("cannot flush", e).at(&self.name))
        })
    }
    fn extent(&self, offset: u64, len: u64) -> Result<StorageExtent> {
        if len == 0 {
            return self.to_the_end(offset, len, true);
        }
        // A scattered disk has any number of extents, and each question to the system costs as much as the copy of one.
        if self.data_found.load(Ordering::Relaxed) == offset
            && let Some(run) = self.data_run(offset, len)?
        {
            return Ok(run);
        }
        match seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) if data > offset => {
                self.data_found.store(data, Ordering::Relaxed);
                Ok(StorageExtent {
                    len: len.min(data - offset),
                    data: false,
                })
            }
            Ok(_) => match self.data_run(offset, len)? {
                Some(run) => Ok(run),
                None => self.to_the_end(offset, len, true),
            },
            Err(Errno::NXIO) => self.to_the_end(offset, len, false),
            Err(_) => self.to_the_end(offset, len, true),
        }
    }
    fn allocated(&self) -> Result<u64> {
        Ok(self
            .file
            .metadata()
            .map_err(|e| Error::io("cannot stat", e).at(&self.name))?
            .blocks()
            * 512)
    }
    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        self.refuse_read_only()?;
        if len == 0 || self.try_fallocate(FallocateFlags::empty(), offset, len)? {
            return Ok(());
        }
        Err(Error::unsupported("the file system cannot reserve space").at(&self.name))
    }
    fn is_read_only(&self) -> bool {
        !self.options.writable
    }
    fn can_resize(&self) -> bool {
        !self.is_device
    }
    fn identity(&self) -> Option<FileId> {
        Some(self.id)
    }
    fn host_file(&self) -> Option<(&File, u64)> {
        // Past the page cache only aligned requests work, which others do not know.
        self.direct.is_none().then_some((&self.file, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch() -> (tempfile::TempDir, FileStorage) {
        let dir = tempfile::tempdir().unwrap();
        let storage = FileStorage::create_new(&dir.path().join("f"), FileOptions::write()).unwrap();
        (dir, storage)
    }

    #[test]
    fn holes_are_told_from_data() {
        let (_dir, storage) = scratch();
        storage.set_len(1 << 20).unwrap();
        storage.write_at(1 << 19, &[7; 4096]).unwrap();
        assert_eq!(
            storage.extent(0, u64::MAX).unwrap(),
            StorageExtent {
                len: 1 << 19,
                data: false
            }
        );
        assert_eq!(
            storage.extent(1 << 19, u64::MAX).unwrap(),
            StorageExtent { len: 4096, data: true }
        );
    }

    #[test]
    fn a_hole_is_seen_where_data_was_found_before() {
        let (_dir, storage) = scratch();
        storage.set_len(1 << 20).unwrap();
        storage.write_at(1 << 19, &[7; 4096]).unwrap();
        assert!(!storage.extent(0, u64::MAX).unwrap().data);
        storage.discard(1 << 19, 4096).unwrap();
        let found = storage.extent(1 << 19, u64::MAX).unwrap();
        assert_eq!((found.len, found.data), (1 << 19, false));

        storage.write_at(1 << 19, &[7; 8192]).unwrap();
        assert!(!storage.extent(0, u64::MAX).unwrap().data);
        for (asked, len) in [(1, 1), (4096, 4096), (u64::MAX, 8192)] {
            let found = storage.extent(1 << 19, asked).unwrap();
            assert_eq!((found.len, found.data), (len, true));
        }
        storage.set_len(1 << 19).unwrap();
        for (offset, len) in [(1 << 19, 1), (u64::MAX, 1), (0, 0)] {
            assert!(storage.extent(offset, len).is_err());
        }
    }

    #[test]
    fn zeroing_past_the_end_grows() {
        let (_dir, storage) = scratch();
        for unmap in [true, false] {
            let end = storage.len().unwrap();
            storage.write_zeroes(end + 10, 5000, unmap).unwrap();
            assert_eq!(storage.len().unwrap(), end + 5010);
        }
    }

    #[test]
    fn a_closed_file_is_free_though_a_copy_of_its_descriptor_lives_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let storage = FileStorage::create_new(&path, FileOptions::write()).unwrap();
        let copy = storage.host_file().unwrap().0.try_clone().unwrap();
        drop(storage);
        FileStorage::open(&path, FileOptions::write()).unwrap();
        drop(copy);
    }

    #[test]
    fn a_fifo_is_refused_without_blocking() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        assert!(
            std::process::Command::new("mkfifo")
                .arg(&path)
                .status()
                .unwrap()
                .success()
        );
        let error = FileStorage::open(&path, FileOptions::read()).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Denied);
    }

    #[test]
    fn reading_past_the_end_is_corrupt_not_short() {
        let (_dir, storage) = scratch();
        storage.write_at(0, &[1; 10]).unwrap();
        assert_eq!(
            storage.read_at(5, &mut [0; 6]).unwrap_err().kind(),
            crate::ErrorKind::Corrupt
        );
    }
}
