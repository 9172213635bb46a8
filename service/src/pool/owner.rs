//! Whose the folder is: a hidden file bears the id of the database that knows the images in it.

use std::io::{Read, Write};

use rustix::fs::{Access as Permission, AtFlags};
use uuid::Uuid;

use super::{Access, PoolFolder};
use crate::error::{ErrorCode, Result};

/// The file's name.
pub const OWNER_FILE: &str = ".vdiskd-pool";

/// Bytes of the file that are looked at.
const LONGEST: u64 = 100;

/// Who a folder belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Nobody yet.
    Nobody,
    /// The database of this id.
    Database(Uuid),
    /// Somebody whom the file does not name in our way.
    Unknown,
}

impl PoolFolder {
    /// Who the folder belongs to.
    ///
    /// # Errors
    /// As [`PoolFolder::open_file`].
    pub fn owner(&self) -> Result<Owner> {
        let file = match self.open_file(OWNER_FILE, Access::Read) {
            Ok(file) => file,
            Err(error) if error.code == ErrorCode::NotFound => return Ok(Owner::Nobody),
            Err(error) => return Err(error),
        };
        let mut text = String::new();
        let read = file.take(LONGEST).read_to_string(&mut text);
        Ok(match read.ok().and_then(|_| text.trim().parse().ok()) {
            Some(database) => Owner::Database(database),
            None => Owner::Unknown,
        })
    }

    /// Whether files can be made in it.
    pub fn is_writable(&self) -> bool {
        rustix::fs::accessat(&self.folder, ".", Permission::WRITE_OK, AtFlags::EACCESS).is_ok()
    }

    /// Gives the folder to a database, unless it belongs to one by then.
    ///
    /// # Errors
    /// `name_taken`; what the folder says.
    pub fn give_to(&self, database: Uuid) -> Result<()> {
        let draft = format!("{OWNER_FILE}.{}", Uuid::now_v7());
        let mut file = self.open_file(&draft, Access::Create)?;
        let written = writeln!(file, "{database}").and_then(|()| file.sync_all());
        let given = written
            .map_err(|error| self.failed("write", OWNER_FILE, error))
            .and_then(|()| self.rename(&draft, OWNER_FILE, false));
        given.inspect_err(|_| drop(self.remove(&draft)))
    }
}
