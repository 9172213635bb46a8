//! Names of a pool that change: files get another one, or go.

use rustix::fs::{AtFlags, RenameFlags};
use rustix::io::Errno;
use uuid::Uuid;

use super::{FileName, PoolFolder, check_component};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::fault::{Step, around};

impl PoolFolder {
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
            Err(errno) => Err(self.refused("rename", from, errno)),
        }
    }

    /// Puts an image's file aside, which is on its way out.
    ///
    /// # Errors
    /// `not_found` when there is none.
    pub fn put_aside(&self, image: Uuid, file: &str) -> Result<()> {
        around(Step::PutAside, || self.rename(file, &FileName::trash(image), true))
    }

    /// The name of an image's file that was put aside.
    pub fn aside(&self, image: Uuid, file: &str) -> Result<Option<String>> {
        for trash in [FileName::trash(image), FileName::old_trash(file)] {
            if self.stat(&trash)?.is_some() {
                return Ok(Some(trash));
            }
        }
        Ok(None)
    }

    /// Gives a file that was put aside its name back; whether it has it. Where there is another file of that name both stay as they are.
    pub fn put_back(&self, trash: &str, file: &str) -> Result<bool> {
        if self.stat(file)?.is_some() {
            return Ok(false);
        }
        around(Step::BringBack, || self.rename(trash, file, false))?;
        Ok(true)
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
}
