//! Pools: folders with image files, reached through one open folder each. No name leaves the folder: not by `..`, not
//! by a link, not by a special file.

mod alone;
mod change;
mod names;
mod open;
mod owner;
#[cfg(test)]
mod tests;

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use uuid::Uuid;

pub use alone::Alone;
pub use names::{FileName, check_file_length, check_file_name, check_image_name};
pub use open::{Access, NEW_FILE_MODE};
pub use owner::{OWNER, Owner};

use crate::error::{ErrorCode, Result, ServiceError, without_numbers};

/// The open folder of a pool.
#[derive(Debug)]
pub struct PoolFolder {
    name: String,
    path: PathBuf,
    folder: OwnedFd,
}

/// Bytes of the file system below a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// In all.
    pub capacity: u64,
    /// Available to us.
    pub free: u64,
}

impl PoolFolder {
    /// Opens the folder, making it when absent.
    ///
    /// # Errors
    /// `unavailable` when it cannot be made or opened.
    pub fn open(name: &str, path: &Path) -> Result<Self> {
        let unusable = |error: &dyn std::fmt::Display| {
            let public = format!("pool '{name}' cannot be used");
            ServiceError::new(ErrorCode::Unavailable, public).with_internal(format!("{}: {error}", path.display()))
        };
        std::fs::create_dir_all(path).map_err(|error| unusable(&error))?;
        let path = path.canonicalize().map_err(|error| unusable(&error))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(&path, flags, Mode::empty()).map_err(|error| unusable(&error))?;
        Ok(Self {
            name: name.to_owned(),
            path,
            folder,
        })
    }

    /// The pool's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the folder is on the host: for the log only.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Another handle to the folder.
    pub fn folder(&self) -> Result<OwnedFd> {
        self.folder.try_clone().map_err(|error| self.failed("open", ".", error))
    }

    /// What a name is, without following it; `None` when there is nothing, be it that no file here can have a name of that length.
    pub fn stat(&self, name: &str) -> Result<Option<Stat>> {
        check_component(name)?;
        match rustix::fs::statat(&self.folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(None),
            Err(errno) => Err(self.failed("look at", name, errno.into())),
        }
    }

    /// Names of the regular files, sorted. Names that are not UTF-8 are left out.
    pub fn file_names(&self) -> Result<Vec<String>> {
        let entries = self.entries()?.into_iter();
        let regular = entries.filter(|(_, kind)| *kind == FileType::RegularFile);
        let mut names: Vec<String> = regular.filter_map(|(name, _)| String::from_utf8(name).ok()).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// What lies beside the files that have names of ours, and why it is none of them; without folders and what is hidden.
    pub fn others(&self) -> Result<Vec<(String, ServiceError)>> {
        let mut others = Vec::new();
        for (name, kind) in self.entries()? {
            let (is_text, name) = (
                std::str::from_utf8(&name).is_ok(),
                String::from_utf8_lossy(&name).into_owned(),
            );
            let why = match kind {
                _ if name.starts_with('.') => continue,
                FileType::Directory => continue,
                FileType::RegularFile if is_text => continue,
                FileType::RegularFile => {
                    ServiceError::new(ErrorCode::InvalidName, "the file's name is not UTF-8; rename it")
                }
                FileType::Symlink => denied(&name, "is a link"),
                _ => denied(&name, "is no regular file"),
            };
            others.push((name, why));
        }
        others.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        Ok(others)
    }

    fn entries(&self) -> Result<Vec<(Vec<u8>, FileType)>> {
        let failed = |errno: Errno| self.failed("list", ".", errno.into());
        let mut entries = Vec::new();
        for entry in Dir::read_from(&self.folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let kind = match entry.file_type() {
                FileType::Unknown => self.kind_of(entry.file_name()),
                kind => kind,
            };
            entries.push((entry.file_name().to_bytes().to_vec(), kind));
        }
        Ok(entries)
    }

    /// For file systems that do not tell it with the names.
    fn kind_of(&self, name: &CStr) -> FileType {
        let stat = rustix::fs::statat(&self.folder, name, AtFlags::SYMLINK_NOFOLLOW);
        stat.map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode))
    }

    /// Bytes on disk of the files that a job or request is making; not of what it makes them of.
    pub fn staged_bytes(&self, by: Uuid) -> Result<u64> {
        let (mut bytes, source) = (0_u64, format!(".{}.part", FileName::source_of(by)));
        for name in self.file_names()? {
            if matches!(FileName::parse(&name), FileName::Staged { maker, .. } if maker == by)
                && !name.ends_with(&source)
                && let Some(stat) = self.stat(&name)?
            {
                bytes = bytes.saturating_add(u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512));
            }
        }
        Ok(bytes)
    }

    /// Room of the file system.
    pub fn space(&self) -> Result<Space> {
        let stat = rustix::fs::fstatvfs(&self.folder).map_err(|errno| self.failed("measure", ".", errno.into()))?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Space {
            capacity: bytes(stat.f_blocks),
            free: bytes(stat.f_bavail),
        })
    }

    fn refused(&self, verb: &str, name: &str, errno: Errno) -> ServiceError {
        match errno {
            Errno::NOENT => ServiceError::no_such_name("file of the pool", name),
            Errno::LOOP | Errno::XDEV => denied(name, "is a link"),
            Errno::NXIO | Errno::ISDIR | Errno::NODEV => denied(name, "is no regular file"),
            _ => self.failed(verb, name, errno.into()),
        }
    }

    fn failed(&self, verb: &str, name: &str, error: std::io::Error) -> ServiceError {
        let detail = format!("{}/{name}: {error}", self.path.display());
        if is_disk_full(&error) {
            let public = format!("pool '{}' is full", self.name);
            return ServiceError::new(ErrorCode::InsufficientStorage, public).with_internal(detail);
        }
        let reason = without_numbers(&error.to_string());
        let public = format!("cannot {verb} a file of pool '{}': {reason}", self.name);
        ServiceError::new(ErrorCode::Io, public).with_internal(detail)
    }
}

/// Whether an error of the operating system means that there is no room.
pub fn is_disk_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

fn check_component(name: &str) -> Result<()> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(denied(name, "is no name of a file"));
    }
    Ok(())
}

fn denied(name: &str, why: &str) -> ServiceError {
    ServiceError::new(ErrorCode::Denied, format!("'{}' {why}", name.escape_debug()))
}
