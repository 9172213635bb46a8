//! QEMU's image locks: open file description locks on single bytes.
//!
//! Source: QEMU's documentation of image locking and `block/file-posix.c`, behaviour only. Byte `100 + i` locked shared means "I use
//! permission i"; byte `200 + i` locked shared means "I do not let others use permission i". A process locks its own bytes first and
//! then tests the bytes that contradict it, so that of two simultaneous openers at least one notices the other.

use std::fs::File;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::{Error, Result};

const PERMISSION_BASE: i64 = 100;
const UNSHARED_BASE: i64 = 200;

/// What a user of an image may do; the numbers are QEMU's bit numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permission {
    /// Read data that does not change underneath.
    ConsistentRead = 0,
    /// Change what the guest sees.
    Write = 1,
    /// Change the length of the file.
    Resize = 3,
}

impl Permission {
    fn name(self) -> &'static str {
        match self {
            Self::ConsistentRead => "consistent read",
            Self::Write => "write",
            Self::Resize => "resize",
        }
    }
}

/// How an image file is to be locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LockMode {
    /// Take and test nothing (`force_share`): what is read may change meanwhile.
    None,
    /// Look at metadata only: nobody may write.
    Inspect,
    /// Read data: nobody may write.
    #[default]
    Read,
    /// Read and write: nobody else may write.
    Write,
}

impl LockMode {
    fn used(self) -> &'static [Permission] {
        match self {
            Self::None | Self::Inspect => &[],
            Self::Read => &[Permission::ConsistentRead],
            Self::Write => &[Permission::ConsistentRead, Permission::Write, Permission::Resize],
        }
    }
    fn unshared(self) -> &'static [Permission] {
        match self {
            Self::None => &[],
            _ => &[Permission::Write, Permission::Resize],
        }
    }

    /// Locks `file`; the lock lives as long as its open file description.
    ///
    /// # Errors
    /// `Busy` when somebody else's use contradicts this one; then nothing stays locked.
    pub(super) fn acquire(self, file: &File, name: &str) -> Result<()> {
        let attempt = self.lock_bytes(file, name).and_then(|()| self.test_others(file, name));
        if attempt.is_err() {
            self.release(file);
        }
        attempt
    }

    fn bytes(self) -> impl Iterator<Item = i64> {
        let used = self.used().iter().map(|p| PERMISSION_BASE + *p as i64);
        used.chain(self.unshared().iter().map(|p| UNSHARED_BASE + *p as i64))
    }

    fn lock_bytes(self, file: &File, name: &str) -> Result<()> {
        for byte in self.bytes() {
            match set(file, byte, libc::F_RDLCK) {
                Ok(()) => {}
                // A file system without locks has no other users that lock either.
                Err(Errno::ENOTSUP | Errno::EINVAL | Errno::ENOLCK) => return Ok(()),
                Err(Errno::EAGAIN | Errno::EACCES) => return Err(busy(name, "some")),
                Err(errno) => return Err(Error::io(format!("cannot lock byte {byte}"), errno).at(name)),
            }
        }
        Ok(())
    }

    fn test_others(self, file: &File, name: &str) -> Result<()> {
        for permission in self.used() {
            if is_locked(file, UNSHARED_BASE + *permission as i64) {
                return Err(busy(name, &format!("\"{}\"", permission.name())));
            }
        }
        for permission in self.unshared() {
            if is_locked(file, PERMISSION_BASE + *permission as i64) {
                return Err(busy(name, &format!("shared \"{}\"", permission.name())));
            }
        }
        Ok(())
    }

    /// Lets go of what [`acquire`](Self::acquire) took, also for a copy of the descriptor that a child process may still hold.
    pub(super) fn release(self, file: &File) {
        for byte in self.bytes() {
            // Unlocking a byte that is not locked is no error; anything else ends with the descriptor.
            let _ = set(file, byte, libc::F_UNLCK);
        }
    }
}

fn busy(name: &str, lock: &str) -> Error {
    Error::busy(format!(
        "failed to get {lock} lock: is another process using the image?"
    ))
    .at(name)
}

fn region(byte: i64, kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

fn set(file: &File, byte: i64, kind: libc::c_int) -> Result<(), Errno> {
    loop {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&region(byte, kind))) {
            Err(Errno::EINTR) => {}
            other => return other.map(|_| ()),
        }
    }
}

/// Whether somebody else holds `byte`. A test that cannot be made counts as no.
fn is_locked(file: &File, byte: i64) -> bool {
    let mut probe = region(byte, libc::F_WRLCK);
    loop {
        match fcntl(file, FcntlArg::F_OFD_GETLK(&mut probe)) {
            Err(Errno::EINTR) => {}
            Err(_) => return false,
            Ok(_) => return i32::from(probe.l_type) != libc::F_UNLCK,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_pair() -> (tempfile::NamedTempFile, File, File) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(file.path()).unwrap();
        let (a, b) = (open(), open());
        (file, a, b)
    }

    #[test]
    fn two_readers_share_and_a_writer_excludes() {
        let (_file, a, b) = open_pair();
        LockMode::Read.acquire(&a, "a").unwrap();
        LockMode::Read.acquire(&b, "b").unwrap();
        assert_eq!(
            LockMode::Write.acquire(&b, "b").unwrap_err().kind(),
            crate::ErrorKind::Busy
        );
    }

    #[test]
    fn a_writer_keeps_readers_out_until_it_closes() {
        let (_file, a, b) = open_pair();
        LockMode::Write.acquire(&a, "a").unwrap();
        for mode in [LockMode::Inspect, LockMode::Read, LockMode::Write] {
            assert_eq!(
                mode.acquire(&b, "b").unwrap_err().kind(),
                crate::ErrorKind::Busy,
                "{mode:?}"
            );
        }
        LockMode::None.acquire(&b, "b").unwrap();
        drop(a);
        LockMode::Write.acquire(&b, "b").unwrap();
    }
}
