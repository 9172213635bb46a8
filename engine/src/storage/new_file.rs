//! A file that becomes visible only when it is complete.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, fsync, openat, renameat, renameat_with, statat, unlinkat};
use rustix::io::Errno;

use super::likeness::resemble;
use super::{FileId, FileOptions, FileStorage, Storage, StorageRef};
use crate::{Error, Result};

/// A new file under a temporary name beside its final one. Dropping it removes it; [`publish`](Self::publish) gives it its name.
#[derive(Debug)]
pub struct NewFile {
    folder: OwnedFd,
    temporary: OsString,
    target: OsString,
    shown: PathBuf,
    storage: Arc<FileStorage>,
    published: bool,
}

impl NewFile {
    /// Starts a file that will be `path`, with mode 0644 less the umask. `token` makes the temporary name unique and recognisable: `.{name}.{token}.part`.
    ///
    /// # Errors
    /// `Io` when the folder cannot be opened or the temporary file exists, `InvalidArgument` for a path without a file name.
    pub fn create(path: &Path, token: &str) -> Result<Self> {
        let parent = path
            .parent()
            .filter(|p| !p.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(parent, flags, Mode::empty())
            .map_err(|e| Error::io("cannot open the folder", e).at(parent.display().to_string()))?;
        let Some(name) = path.file_name() else {
            return Err(Error::invalid("the path names no file").at(path.display().to_string()));
        };
        Self::create_in(folder, name.to_owned(), path.to_owned(), token, 0o644)
    }

    /// As [`create`](Self::create), for a file `name` in a folder that is open already; `shown` is its name in messages, and `mode` is
    /// what its mode is, less the umask.
    ///
    /// # Errors
    /// `Io`.
    pub fn create_in(folder: OwnedFd, name: OsString, shown: PathBuf, token: &str, mode: u32) -> Result<Self> {
        let mut temporary = OsString::from(".");
        temporary.push(&name);
        temporary.push(format!(".{token}.part"));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(&folder, &temporary, flags, Mode::from_raw_mode(mode))
            .map_err(|e| Error::io("cannot create a temporary file", e).at(shown.display().to_string()))?;
        let storage = FileStorage::from_file(File::from(fd), shown.display().to_string(), FileOptions::write())?;
        Ok(Self {
            folder,
            temporary,
            target: name,
            shown,
            storage: Arc::new(storage),
            published: false,
        })
    }

    /// Takes over the file that an earlier, dead maker began under `temporary` in the folder; it will be `name`.
    ///
    /// # Errors
    /// `Busy` while its maker lives, `Io` when it is not there.
    pub fn adopt_in(folder: OwnedFd, temporary: &str, name: OsString, shown: PathBuf) -> Result<Self> {
        let failed = |what: &str, e: Errno| Error::io(what, e).at(shown.display().to_string());
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = openat(&folder, temporary, flags, Mode::empty())
            .map_err(|e| failed("cannot open the unfinished file", e))?;
        let storage = FileStorage::from_file(File::from(fd), shown.display().to_string(), FileOptions::write())?;
        // Its maker may have removed the name between the opening and the lock.
        let there = statat(&folder, temporary, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| failed("cannot find the unfinished file again", e))?;
        let id = FileId {
            device: there.st_dev,
            inode: there.st_ino,
        };
        if storage.identity() != Some(id) {
            return Err(failed("cannot find the unfinished file again", Errno::NOENT));
        }
        Ok(Self {
            folder,
            temporary: temporary.into(),
            target: name,
            shown,
            storage: Arc::new(storage),
            published: false,
        })
    }

    /// The temporary name.
    pub fn temporary(&self) -> &std::ffi::OsStr {
        &self.temporary
    }

    /// Leaves the file under its temporary name, for another maker to go on with.
    pub fn leave(mut self) {
        self.published = true;
    }

    /// The storage to fill.
    pub fn storage(&self) -> StorageRef {
        self.storage.clone()
    }

    /// Syncs the file, gives it its name and syncs the folder: afterwards it is there, complete, whatever happens. A file that is replaced
    /// leaves it its owner, mode, access list and labels, as far as the system allows.
    ///
    /// # Errors
    /// `Io`; kind `AlreadyExists` when the name is taken and `replace` is false. The temporary file is removed then.
    pub fn publish(mut self, replace: bool) -> Result<()> {
        let failed = |what: &str, e: Errno, shown: &Path| Error::io(what, e).at(shown.display().to_string());
        self.storage.flush()?;
        if replace {
            self.resemble_replaced()
                .map_err(|e| failed("cannot keep who may use the file", e, &self.shown))?;
        }
        if let Some((file, _)) = self.storage.host_file() {
            file.sync_all()
                .map_err(|e| Error::io("cannot sync", e).at(self.shown.display().to_string()))?;
        }
        let renamed = if replace {
            renameat(&self.folder, &self.temporary, &self.folder, &self.target)
        } else {
            renameat_with(
                &self.folder,
                &self.temporary,
                &self.folder,
                &self.target,
                RenameFlags::NOREPLACE,
            )
        };
        renamed.map_err(|e| failed("cannot put the new file in place", e, &self.shown))?;
        self.published = true;
        fsync(self.folder.as_fd()).map_err(|e| failed("cannot sync the folder", e, &self.shown))
    }

    fn resemble_replaced(&self) -> std::result::Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let old = match openat(&self.folder, &self.target, flags, Mode::empty()) {
            Ok(old) => File::from(old),
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        match self.storage.host_file() {
            Some((new, _)) => resemble(new, &old),
            None => Ok(()),
        }
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.published {
            // Nobody is left to tell; a file that stays is found by its name's pattern later.
            let _ = unlinkat(&self.folder, &self.temporary, AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        std::fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn nothing_shows_before_publish_and_nothing_stays_after_drop() {
        let dir = tempfile::tempdir().unwrap();
        let new = NewFile::create(&dir.path().join("disk"), "t1").unwrap();
        new.storage().write_at(0, b"abc").unwrap();
        assert_eq!(names(dir.path()), [".disk.t1.part"]);
        drop(new);
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn publishing_does_not_replace_unless_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, b"old").unwrap();
        let error = NewFile::create(&path, "t").unwrap().publish(false).unwrap_err();
        assert_eq!(error.io_kind(), Some(std::io::ErrorKind::AlreadyExists));
        assert_eq!(
            (std::fs::read(&path).unwrap(), names(dir.path()).len()),
            (b"old".to_vec(), 1)
        );
        let new = NewFile::create(&path, "t").unwrap();
        new.storage().write_at(0, b"new!").unwrap();
        new.publish(true).unwrap();
        assert_eq!(
            (std::fs::read(&path).unwrap(), names(dir.path()).len()),
            (b"new!".to_vec(), 1)
        );
    }

    #[test]
    fn what_takes_the_place_of_a_file_is_open_to_the_same_users() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, b"old").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(101), Some(104)).unwrap();
        }
        let noted = b"by its owner";
        let notes = rustix::fs::setxattr(&path, "user.note", noted, rustix::fs::XattrFlags::empty()).is_ok();
        let users = || {
            let found = std::fs::metadata(&path).unwrap();
            (found.mode() & 0o7777, found.uid(), found.gid())
        };
        let before = users();
        let new = NewFile::create(&path, "t").unwrap();
        new.storage().write_at(0, b"new!").unwrap();
        new.publish(true).unwrap();
        assert_eq!((users(), std::fs::read(&path).unwrap()), (before, b"new!".to_vec()));
        let mut note = [0; 12];
        if notes {
            rustix::fs::getxattr(&path, "user.note", &mut note[..]).unwrap();
            assert_eq!(&note, noted);
        }
    }

    #[test]
    fn a_file_is_taken_over_when_its_maker_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let folder = || -> OwnedFd { File::open(dir.path()).unwrap().into() };
        let adopt = || NewFile::adopt_in(folder(), ".disk.t1.part", "disk-2".into(), "disk-2".into());
        let first = NewFile::create(&dir.path().join("disk"), "t1").unwrap();
        first.storage().write_at(0, b"abc").unwrap();
        assert_eq!(adopt().unwrap_err().kind(), crate::ErrorKind::Busy);
        first.leave();
        let second = adopt().unwrap();
        assert_eq!(names(dir.path()), [".disk.t1.part"]);
        second.publish(false).unwrap();
        assert_eq!(std::fs::read(dir.path().join("disk-2")).unwrap(), b"abc");
    }
}
