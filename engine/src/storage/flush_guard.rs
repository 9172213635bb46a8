//! Flushes that are never tried again.

use std::sync::{Mutex, PoisonError};

use crate::{Error, Result};

/// Does the flushes of one open file, one at a time, until one fails. The kernel tells of lost pages once and calls them clean
/// then: the next flush would succeed, and tables that name the lost bytes would be written after it.
#[derive(Debug, Default)]
pub struct FlushGuard {
    failed: Mutex<bool>,
}

impl FlushGuard {
    /// Flushes the file of this name with `flush`.
    ///
    /// # Errors
    /// That of `flush`, and `Io` ever after it failed once.
    pub fn flush(&self, name: &str, flush: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if *failed {
            let source = std::io::Error::from(std::io::ErrorKind::Other);
            return Err(Error::io("an earlier flush failed: what is stable is not known", source).at(name));
        }
        let done = flush();
        *failed = done.is_err();
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_failed_flush_every_later_one_fails_without_being_tried() {
        let guard = FlushGuard::default();
        guard.flush("f", || Ok(())).unwrap();
        let lost = || Err(Error::io("cannot flush", std::io::ErrorKind::Other));
        assert!(guard.flush("f", lost).unwrap_err().to_string().contains("cannot flush"));
        for _ in 0..2 {
            let error = guard.flush("f", || panic!("tried again")).unwrap_err();
            assert_eq!(error.kind(), crate::ErrorKind::Io);
            assert!(error.to_string().contains("what is stable is not known"), "{error}");
        }
    }
}
