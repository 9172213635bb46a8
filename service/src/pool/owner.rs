//! Whose the folder is: an extended attribute of it bears the id of the database that knows the images in it. A file would be one more for
//! those who look into the folder.

use rustix::fs::{Access as Permission, AtFlags, XattrFlags};
use rustix::io::Errno;
use uuid::Uuid;

use super::PoolFolder;
use crate::error::Result;

/// The attribute's name.
pub const OWNER: &str = "user.vdiskd.database";

/// Bytes of the attribute that are looked at.
const LONGEST: usize = 100;

/// Who a folder belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Nobody yet.
    Nobody,
    /// The database of this id.
    Database(Uuid),
    /// Somebody whom the attribute does not name in our way.
    Unknown,
    /// The file system keeps no attributes, or none for us.
    Untold,
}

impl PoolFolder {
    /// Who the folder belongs to.
    ///
    /// # Errors
    /// `io_error`.
    pub fn owner(&self) -> Result<Owner> {
        let mut value = [0_u8; LONGEST];
        let len = match rustix::fs::fgetxattr(&self.folder, OWNER, &mut value[..]) {
            Ok(len) => len,
            Err(Errno::NODATA) => return Ok(Owner::Nobody),
            Err(Errno::RANGE) => return Ok(Owner::Unknown),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM | Errno::ACCESS) => return Ok(Owner::Untold),
            Err(errno) => return Err(self.failed("read an attribute of", ".", errno.into())),
        };
        let text = value.get(..len).and_then(|value| std::str::from_utf8(value).ok());
        Ok(match text.and_then(|text| text.trim().parse().ok()) {
            Some(database) => Owner::Database(database),
            None => Owner::Unknown,
        })
    }

    /// Whether files can be made in it.
    pub fn is_writable(&self) -> bool {
        rustix::fs::accessat(&self.folder, ".", Permission::WRITE_OK, AtFlags::EACCESS).is_ok()
    }

    /// Gives the folder to a database, unless it belongs to one by then: who it belongs to afterwards.
    ///
    /// # Errors
    /// What the folder says.
    pub fn give_to(&self, database: Uuid) -> Result<Owner> {
        let value = database.to_string();
        match rustix::fs::fsetxattr(&self.folder, OWNER, value.as_bytes(), XattrFlags::CREATE) {
            Ok(()) => Ok(Owner::Database(database)),
            Err(Errno::EXIST) => self.owner(),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM | Errno::ACCESS) => Ok(Owner::Untold),
            Err(errno) => Err(self.failed("write an attribute of", ".", errno.into())),
        }
    }
}
