//! Files that one opener at a time has.

use std::fs::File;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

/// A file that nobody else can lock while this lives (`flock`).
#[derive(Debug)]
pub struct Alone(File);

impl Alone {
    /// Locks a file.
    ///
    /// # Errors
    /// `WOULDBLOCK` when somebody else has it; others where the file system has no such locks.
    pub fn lock(file: File) -> Result<Self, Errno> {
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self(file))
    }
}

impl Drop for Alone {
    /// Closing alone would not do: a process that is just being started has a copy of the descriptor until it runs its own program.
    fn drop(&mut self) {
        // An error ends with the descriptor.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_the_descriptor_does_not_keep_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || file.reopen().unwrap();
        let ours = open();
        let copy = ours.try_clone().unwrap();
        let alone = Alone::lock(ours).unwrap();
        assert_eq!(Alone::lock(open()).err(), Some(Errno::WOULDBLOCK));
        drop(alone);
        Alone::lock(open()).unwrap();
        drop(copy);
    }
}
