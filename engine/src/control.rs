//! How a caller watches and steers a long operation.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Error, Result};

/// Receives the progress of one operation. All numbers are bytes.
pub trait Progress: Send + Sync {
    /// The operation expects to process this much in all; may be corrected later.
    fn set_total(&self, bytes: u64);
    /// This much more is done (for copies: stored, not only read).
    fn advance(&self, bytes: u64);
    /// Called by one thread before each unit of work, with the bytes that will be read and written. May block, which is how a caller pauses or
    /// slows an operation down.
    fn pace(&self, _bytes: u64) {}
}

/// Ignores progress.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn set_total(&self, _bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
}

/// Asks an operation to stop; cheap to clone and to test.
#[derive(Debug, Clone, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// A token that nobody has set.
    pub fn new() -> Self {
        Self::default()
    }
    /// Asks every holder to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }
    /// Whether somebody asked to stop.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Passes on the pace alone.
struct PaceOf(Arc<dyn Progress>);

impl Progress for PaceOf {
    fn set_total(&self, _bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn pace(&self, bytes: u64) {
        self.0.pace(bytes);
    }
}

/// Counts on behind what was done before.
struct Behind {
    progress: Arc<dyn Progress>,
    done: u64,
}

impl Progress for Behind {
    fn set_total(&self, bytes: u64) {
        self.progress.set_total(self.done.saturating_add(bytes));
    }
    fn advance(&self, bytes: u64) {
        self.progress.advance(bytes);
    }
    fn pace(&self, bytes: u64) {
        self.progress.pace(bytes);
    }
}

/// Progress sink and cancel token of one operation.
#[derive(Clone)]
pub struct Control {
    progress: Arc<dyn Progress>,
    cancel: CancelToken,
}

impl Default for Control {
    fn default() -> Self {
        Self::new(Arc::new(NoProgress), CancelToken::new())
    }
}

impl Control {
    /// Reports to `progress`, stops when `cancel` is set.
    pub fn new(progress: Arc<dyn Progress>, cancel: CancelToken) -> Self {
        Self { progress, cancel }
    }
    /// The same pace and token for a part of the work that the progress does not count.
    pub fn uncounted(&self) -> Self {
        Self::new(Arc::new(PaceOf(self.progress.clone())), self.cancel.clone())
    }
    /// The same progress and token for a part of the work that comes behind another one, of so many bytes.
    pub fn behind(&self, done: u64) -> Self {
        let progress = self.progress.clone();
        Self::new(Arc::new(Behind { progress, done }), self.cancel.clone())
    }
    /// Announces the total.
    pub fn set_total(&self, bytes: u64) {
        self.progress.set_total(bytes);
    }
    /// Reports finished work.
    pub fn advance(&self, bytes: u64) {
        self.progress.advance(bytes);
    }
    /// To be called before each unit of work: fails with `Cancelled` when asked to stop, blocks while paused.
    pub fn checkpoint(&self, bytes: u64) -> Result<()> {
        self.check_cancelled()?;
        self.progress.pace(bytes);
        self.check_cancelled()
    }
    /// Fails with `Cancelled` when asked to stop; never blocks.
    pub fn check_cancelled(&self) -> Result<()> {
        if self.cancel.is_cancelled() {
            Err(Error::cancelled())
        } else {
            Ok(())
        }
    }
    /// The token, to hand to threads.
    pub fn cancel_token(&self) -> &CancelToken {
        &self.cancel
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn a_set_token_fails_the_next_checkpoint() {
        let control = Control::default();
        assert!(control.checkpoint(1).is_ok());
        control.cancel_token().cancel();
        assert_eq!(control.checkpoint(1).unwrap_err().kind(), ErrorKind::Cancelled);
    }
}
