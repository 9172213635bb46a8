//! Pools: folders with image files, reached through one open folder each. No name leaves the folder: not by `..`, not
//! by a link, not by a special file.

mod names;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use uuid::Uuid;

pub use names::{FileName, check_file_name, check_image_name};

use crate::error::{ErrorCode, Result, ServiceError};
use crate::fault::{Step, around};

/// The open folder of a pool.
#[derive(Debug)]
pub struct PoolFolder {
    name: String,
    path: PathBuf,
    folder: OwnedFd,
}

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
            Mode::from_raw_mode(0o644)
        } else {
            Mode::empty()
        };
        let file = self
            .open_beneath(name, flags, mode)
            .map_err(|errno| self.refused(name, errno))?;
        let stat = rustix::fs::fstat(&file).map_err(|errno| self.failed("look at", name, errno.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(denied(name, "is no regular file"));
        }
        if stat.st_nlink != 1 {
            return Err(denied(name, "has a second name (hard link) somewhere"));
        }
        Ok(File::from(file))
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

    /// What a name is, without following it; `None` when there is nothing.
    pub fn stat(&self, name: &str) -> Result<Option<Stat>> {
        check_component(name)?;
        match rustix::fs::statat(&self.folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.failed("look at", name, errno.into())),
        }
    }

    /// Gives a file another name and makes that durable. Never replaces unless told.
    ///
    /// # Errors
    /// `name_taken` when the new name exists; `not_found`.
    pub fn rename(&self, from: &str, to: &str, replace: bool) -> Result<()> {
        check_component(from)?;
        check_component(to)?;
        let flags = if replace {
            RenameFlags::empty()
        } else {
            RenameFlags::NOREPLACE
        };
        match rustix::fs::renameat_with(&self.folder, from, &self.folder, to, flags) {
            Ok(()) => self.sync(),
            Err(Errno::EXIST) => Err(ServiceError::new(
                ErrorCode::NameTaken,
                format!("the pool has a file '{to}' already"),
            )),
            Err(errno) => Err(self.refused(from, errno)),
        }
    }

    /// Removes a file; whether there was one.
    pub fn remove(&self, name: &str) -> Result<bool> {
        check_component(name)?;
        let step = match FileName::parse(name) {
            FileName::Trash(_) => Step::RemoveTrash,
            FileName::Staged { .. } => Step::RemoveStaged,
            FileName::Upload(_) => Step::RemoveUpload,
            _ => Step::RemoveFile,
        };
        around(step, || self.unlink(name))
    }

    fn unlink(&self, name: &str) -> Result<bool> {
        match rustix::fs::unlinkat(&self.folder, name, AtFlags::empty()) {
            Ok(()) => self.sync().map(|()| true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(self.failed("remove", name, errno.into())),
        }
    }

    /// Makes renames and removals durable.
    pub fn sync(&self) -> Result<()> {
        rustix::fs::fsync(&self.folder).map_err(|errno| self.failed("sync", ".", errno.into()))
    }

    /// Names of the regular files, sorted. Names that are not UTF-8 are left out.
    pub fn file_names(&self) -> Result<Vec<String>> {
        let failed = |errno: Errno| self.failed("list", ".", errno.into());
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            let regular = match entry.file_type() {
                FileType::RegularFile => true,
                FileType::Unknown => self.is_regular(name),
                _ => false,
            };
            if regular {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn is_regular(&self, name: &str) -> bool {
        let stat = self.stat(name).ok().flatten();
        stat.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
    }

    /// Bytes on disk of the files that a job or request is making.
    pub fn staged_bytes(&self, by: Uuid) -> Result<u64> {
        let mut bytes = 0_u64;
        for name in self.file_names()? {
            if matches!(FileName::parse(&name), FileName::Staged { maker, .. } if maker == by)
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

    fn refused(&self, name: &str, errno: Errno) -> ServiceError {
        match errno {
            Errno::NOENT => ServiceError::not_found("file of the pool", name),
            Errno::LOOP | Errno::XDEV => denied(name, "is a link"),
            Errno::NXIO | Errno::ISDIR | Errno::NODEV => denied(name, "is no regular file"),
            _ => self.failed("open", name, errno.into()),
        }
    }

    fn failed(&self, verb: &str, name: &str, error: std::io::Error) -> ServiceError {
        let detail = format!("{}/{name}: {error}", self.path.display());
        if is_disk_full(&error) {
            let public = format!("pool '{}' is full", self.name);
            return ServiceError::new(ErrorCode::InsufficientStorage, public).with_internal(detail);
        }
        let public = format!("cannot {verb} a file of pool '{}'", self.name);
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn pool() -> (tempfile::TempDir, PoolFolder) {
        let dir = tempfile::tempdir().unwrap();
        let pool = PoolFolder::open("p", &dir.path().join("pool")).unwrap();
        (dir, pool)
    }

    #[test]
    fn nothing_outside_the_folder_is_opened() {
        let (dir, pool) = pool();
        std::fs::write(dir.path().join("secret"), b"s").unwrap();
        symlink("../secret", pool.path().join("link")).unwrap();
        symlink("../", pool.path().join("folder")).unwrap();
        std::fs::hard_link(dir.path().join("secret"), pool.path().join("hard")).unwrap();
        std::fs::create_dir(pool.path().join("dir")).unwrap();
        let fifo = pool.path().join("fifo");
        assert!(
            std::process::Command::new("mkfifo")
                .arg(fifo)
                .status()
                .unwrap()
                .success()
        );
        let names = [
            "link",
            "folder",
            "hard",
            "dir",
            "fifo",
            "../secret",
            "folder/secret",
            "/etc/passwd",
            "..",
            "",
            "a\0b",
        ];
        for name in names {
            for access in [Access::Read, Access::Write, Access::Create] {
                let code = pool.open_file(name, access).unwrap_err().code;
                assert_eq!(code, ErrorCode::Denied, "{name:?} {access:?}");
            }
        }
        assert_eq!(
            pool.open_file("absent", Access::Read).unwrap_err().code,
            ErrorCode::NotFound
        );
        assert_eq!(pool.file_names().unwrap(), ["hard"]);
    }

    /// Two threads swap files with links while they are opened. `VDISK_RACES` makes it more opens.
    #[test]
    fn links_swapped_in_during_opens_never_lead_out() {
        let (dir, pool) = pool();
        std::fs::write(dir.path().join("secret"), b"secret").unwrap();
        let pairs = [("a", "b"), ("c", "d")];
        for (file, link) in pairs {
            std::fs::write(pool.path().join(file), b"inside").unwrap();
            symlink("../secret", pool.path().join(link)).unwrap();
        }
        let opens = std::env::var("VDISK_RACES")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(200_000_u32);
        let done = std::sync::atomic::AtomicBool::new(false);
        let (mut opened, mut refused) = (0, 0);
        std::thread::scope(|scope| {
            for (file, link) in pairs {
                let (pool, done) = (&pool, &done);
                scope.spawn(move || {
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        let folder = &pool.folder;
                        rustix::fs::renameat_with(folder, file, folder, link, RenameFlags::EXCHANGE).unwrap();
                    }
                });
            }
            for number in 0..opens {
                let (name, access) = match number % 8 {
                    0 => ("a", Access::Read),
                    1 => ("b", Access::Read),
                    2 => ("c", Access::Write),
                    3 => ("d", Access::Write),
                    4 => ("a", Access::Create),
                    5 => ("b", Access::Create),
                    6 => ("c", Access::Read),
                    _ => ("d", Access::Read),
                };
                match pool.open_file(name, access) {
                    Ok(file) => {
                        assert_eq!(std::io::read_to_string(file).unwrap(), "inside");
                        opened += 1;
                    }
                    Err(error) => {
                        assert_eq!(error.code, ErrorCode::Denied, "{error}");
                        refused += 1;
                    }
                }
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert!(opened > 0 && refused > 0, "{opened} opened, {refused} refused");
    }

    #[test]
    fn renames_do_not_replace() {
        let (_dir, pool) = pool();
        std::fs::write(pool.path().join("a"), b"a").unwrap();
        std::fs::write(pool.path().join("b"), b"b").unwrap();
        assert_eq!(pool.rename("a", "b", false).unwrap_err().code, ErrorCode::NameTaken);
        pool.rename("a", "b", true).unwrap();
        assert_eq!(pool.rename("a", "c", false).unwrap_err().code, ErrorCode::NotFound);
        assert!(pool.remove("b").unwrap() && !pool.remove("b").unwrap());
    }
}
