//! Room that the database has when the disk below it is full: a file that is given up then, so that what failed can be recorded and
//! images can be deleted. It is made again once there is room.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

/// It is made where so many times its size is free.
const ROOM: u64 = 4;

/// The file.
#[derive(Debug)]
pub struct Ballast {
    path: PathBuf,
    bytes: u64,
}

impl Ballast {
    /// A file of this many bytes in a folder; none at all with 0.
    pub fn new(folder: &Path, bytes: u64) -> Self {
        let path = folder.join("ballast");
        Self { path, bytes }
    }

    /// Makes the file when it is not there and there is room.
    pub fn keep(&self) {
        if self.bytes == 0 || self.path.exists() || !self.has_room() {
            return;
        }
        if let Err(error) = self.make() {
            tracing::warn!(%error, "the room that the database has on a full disk could not be set aside; trying again");
            self.remove();
        }
    }

    /// Gives the room up.
    pub fn give_up(&self) {
        if self.bytes > 0 && self.remove() {
            tracing::error!(
                bytes = self.bytes,
                "the disk below the database is full: the room that was kept for this is given up; free some space"
            );
        }
    }

    fn make(&self) -> std::io::Result<()> {
        let file = File::create(&self.path)?;
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, self.bytes)?;
        Ok(())
    }

    fn has_room(&self) -> bool {
        let Some(stat) = self.path.parent().and_then(|folder| rustix::fs::statvfs(folder).ok()) else {
            return false;
        };
        stat.f_bavail.saturating_mul(stat.f_frsize) >= self.bytes.saturating_mul(ROOM)
    }

    fn remove(&self) -> bool {
        std::fs::remove_file(&self.path).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_given_up_and_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let ballast = Ballast::new(dir.path(), 1 << 20);
        let length = || {
            std::fs::metadata(dir.path().join("ballast"))
                .map(|file| file.len())
                .ok()
        };
        for _ in 0..2 {
            ballast.keep();
            assert_eq!(length(), Some(1 << 20));
            ballast.give_up();
            assert_eq!(length(), None);
        }
        Ballast::new(dir.path(), 0).keep();
        Ballast::new(dir.path(), u64::MAX).keep();
        assert_eq!(length(), None);
    }
}
