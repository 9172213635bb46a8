//! Opening a file of a pool, and nothing else by its name.

use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{Alone, PoolFolder, check_component, denied};
use crate::error::{ErrorCode, Result, ServiceError};

/// Mode of a new file in a pool, less the umask: disks are not for everybody on the host. The group is for whoever runs guests under
/// another user (`docs/how-to/operate-a-service.md`).
pub const NEW_FILE_MODE: u32 = 0o660;

/// How to open a file of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read.
    Read,
    /// Read and write.
    Write,
    /// Read and write, made when absent.
    Create,
}

impl PoolFolder {
    /// Opens a regular file of the folder.
    ///
    /// # Errors
    /// `not_found`; `denied` for what is no regular file, is reached through a link, or has a second name.
    pub fn open_file(&self, name: &str, access: Access) -> Result<File> {
        check_component(name)?;
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let flags = match access {
            Access::Read => flags | OFlags::RDONLY,
            Access::Write => flags | OFlags::RDWR,
            Access::Create => flags | OFlags::RDWR | OFlags::CREATE,
        };
        let mode = if access == Access::Create {
            Mode::from_raw_mode(NEW_FILE_MODE)
        } else {
            Mode::empty()
        };
        let file = self
            .open_beneath(name, flags, mode)
            .map_err(|errno| self.refused("open", name, errno))?;
        let stat = rustix::fs::fstat(&file).map_err(|errno| self.failed("look at", name, errno.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(denied(name, "is no regular file"));
        }
        if stat.st_nlink != 1 {
            return Err(denied(name, "has a second name (hard link) somewhere"));
        }
        Ok(File::from(file))
    }

    /// Opens a file, made when absent, for as long as nobody else has it open in this way: not even a process that stood still and does not
    /// know that its turn is over. `None` where the file system has no such locks: the inventory's alone keep writers apart.
    ///
    /// # Errors
    /// `image_busy`; as [`PoolFolder::open_file`].
    pub fn open_alone(&self, name: &str) -> Result<Option<Alone>> {
        let file = self.open_file(name, Access::Create)?;
        match Alone::lock(file) {
            Err(Errno::WOULDBLOCK) => {
                let public = "the file is still being written by another request; try again";
                Err(ServiceError::new(ErrorCode::ImageBusy, public))
            }
            locked => Ok(locked.ok()),
        }
    }

    fn open_beneath(&self, name: &str, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        loop {
            match rustix::fs::openat2(&self.folder, name, flags, mode, resolve) {
                // A rename elsewhere in the tree raced with the resolution.
                Err(Errno::AGAIN | Errno::INTR) => {}
                // Kernels and sandboxes without openat2: the name is one component, and the last is not followed.
                Err(Errno::NOSYS) => return rustix::fs::openat(&self.folder, name, flags, mode),
                other => return other,
            }
        }
    }
}
