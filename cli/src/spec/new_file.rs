//! The file of a new image.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use vdisk_engine::options::Options;
use vdisk_engine::storage::{FileId, FileOptions, FileStorage, LockMode, StorageExtent};
use vdisk_engine::{Error, Result, Storage, StorageRef};

use super::Made;

/// What the file system is told about a new file.
#[derive(Debug, Clone, Copy, Default)]
pub struct Hints {
    nocow: bool,
}

impl Hints {
    /// From the options for the file. A file system that has no extent size hints ignores them, and so does this program.
    pub fn new(options: &Options) -> Self {
        Self {
            nocow: matches!(options.flag("nocow"), Ok(Some(true))),
        }
    }
    /// Tells them of a file without content. Where the file system does not know a hint there is nothing to do.
    fn apply(self, storage: &FileStorage) {
        if let (true, Some((file, _))) = (self.nocow, storage.host_file())
            && let Ok(flags) = rustix::fs::ioctl_getflags(file)
        {
            let _ = rustix::fs::ioctl_setflags(file, flags | rustix::fs::IFlags::NOCOW);
        }
    }
}

/// Creates a file, which is noted, or takes one that is there and that nobody uses. What that one held is lost with the first change, not
/// before: an image that cannot be made as it was asked for leaves it alone.
///
/// # Errors
/// What the system says; `Busy` when somebody holds it; `InvalidArgument` for a file that the new image is made from.
pub fn create_file(path: &str, made: &mut Made, hints: Hints) -> Result<StorageRef> {
    let options = FileOptions {
        lock: LockMode::Write,
        devices: true,
        ..FileOptions::write()
    };
    let new = match FileStorage::create_new(Path::new(path), options) {
        Err(e) if e.io_kind() == Some(ErrorKind::AlreadyExists) => match FileStorage::open(Path::new(path), options) {
            Err(e) if e.io_kind() == Some(ErrorKind::NotFound) => create_linked(path, made, options)?,
            there => return replace(there?, made, hints),
        },
        new => new.inspect(|_| made.add(path))?,
    };
    hints.apply(&new);
    Ok(Arc::new(new))
}

/// Creates the file that a symbolic link names and that is not there.
fn create_linked(path: &str, made: &mut Made, options: FileOptions) -> Result<FileStorage> {
    let end = end_of_links(Path::new(path)).map_err(|e| Error::io("cannot follow the link", e).at(path))?;
    let new = FileStorage::create_new(&end, options).map_err(|e| e.at(path))?;
    made.add(end);
    Ok(new.renamed(path))
}

/// Where a chain of symbolic links leads, whether anything is there or not.
fn end_of_links(path: &Path) -> std::io::Result<PathBuf> {
    /// As many as Linux follows.
    const MOST: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..MOST {
        match std::fs::read_link(&path) {
            Ok(next) => path = path.parent().unwrap_or(Path::new("")).join(next),
            // It is no link, or nothing.
            Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::NotFound) => return Ok(path),
            Err(e) => return Err(e),
        }
    }
    Err(rustix::io::Errno::LOOP.into())
}

fn replace(file: FileStorage, made: &Made, hints: Hints) -> Result<StorageRef> {
    made.refuse_input(&file)?;
    Ok(match file.can_resize() {
        true => Arc::new(Replaced {
            file,
            hints,
            emptied: Mutex::new(false),
        }),
        false => Arc::new(file),
    })
}

/// A file that is to hold something else: it counts as empty, and is emptied before the first change.
#[derive(Debug)]
struct Replaced {
    file: FileStorage,
    hints: Hints,
    emptied: Mutex<bool>,
}

impl Replaced {
    fn is_emptied(&self) -> bool {
        *self.emptied.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn emptied(&self) -> Result<&FileStorage> {
        let mut emptied = self.emptied.lock().unwrap_or_else(PoisonError::into_inner);
        if !*emptied {
            self.file.set_len(0)?;
            self.hints.apply(&self.file);
            *emptied = true;
        }
        Ok(&self.file)
    }
    fn with_content(&self) -> Result<&FileStorage> {
        match self.is_emptied() {
            true => Ok(&self.file),
            false => Err(Error::corrupt("the file is empty").at(self.file.name())),
        }
    }
}

impl Storage for Replaced {
    fn name(&self) -> &str {
        self.file.name()
    }
    fn len(&self) -> Result<u64> {
        match self.is_emptied() {
            true => self.file.len(),
            false => Ok(0),
        }
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.with_content()?.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.emptied()?.write_at(offset, buf)
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.emptied()?.write_zeroes(offset, len, unmap)
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.emptied()?.discard(offset, len)
    }
    fn set_len(&self, len: u64) -> Result<()> {
        self.emptied()?.set_len(len)
    }
    /// Nothing of the old content comes back.
    fn flush(&self) -> Result<()> {
        self.emptied()?.flush()
    }
    fn extent(&self, offset: u64, len: u64) -> Result<StorageExtent> {
        self.with_content()?.extent(offset, len)
    }
    fn allocated(&self) -> Result<u64> {
        match self.is_emptied() {
            true => self.file.allocated(),
            false => Ok(0),
        }
    }
    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        self.emptied()?.allocate(offset, len)
    }
    fn is_read_only(&self) -> bool {
        self.file.is_read_only()
    }
    fn identity(&self) -> Option<FileId> {
        self.file.identity()
    }
    fn host_file(&self) -> Option<(&std::fs::File, u64)> {
        self.file.host_file().filter(|_| self.is_emptied())
    }
}
