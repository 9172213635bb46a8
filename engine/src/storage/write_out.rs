//! Starting early what a flush will wait for.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, PoisonError};

/// Bytes that come together before the system is asked to write them.
const STEP: u64 = 4 << 20;

/// Has the system write what comes together in a file's page cache, so that disk and processors work side by side and a flush
/// finds little left to do. Nothing waits for it, and nothing is stable by it: that stays with the flush, as do its errors.
#[derive(Debug, Default)]
pub struct WriteOut {
    pending: Mutex<Pending>,
}

/// Writes since the last start.
#[derive(Debug, Default)]
struct Pending {
    bytes: u64,
    /// What they lie in.
    range: Range<u64>,
}

impl WriteOut {
    /// Counts a write, which must have been made, and starts writing what has come together by then.
    pub fn wrote(&self, file: &File, offset: u64, len: u64) {
        let due = self
            .pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .add(offset, len);
        if let Some(range) = due {
            start_writing(file, &range);
        }
    }
}

impl Pending {
    /// The range to start with, where enough came together.
    fn add(&mut self, offset: u64, len: u64) -> Option<Range<u64>> {
        let end = offset.saturating_add(len);
        self.range = match self.bytes {
            0 => offset..end,
            _ => self.range.start.min(offset)..self.range.end.max(end),
        };
        self.bytes += len;
        (self.bytes >= STEP).then(|| std::mem::take(self).range)
    }
}

/// File systems that know no such thing write when they please. The call leaves errors of writing to the next flush, as long as it is not
/// told to wait for anything.
fn start_writing(file: &File, range: &Range<u64>) {
    let (Ok(start), Ok(len)) = (i64::try_from(range.start), i64::try_from(range.end - range.start)) else {
        return;
    };
    #[expect(unsafe_code, reason = "no crate in use wraps the call")]
    // SAFETY: it takes an open descriptor and numbers, and touches no memory of the program.
    let _started = unsafe { libc::sync_file_range(file.as_raw_fd(), start, len, libc::SYNC_FILE_RANGE_WRITE) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_together_is_started_once_and_as_a_whole() {
        let mut pending = Pending::default();
        assert_eq!(pending.add(STEP, STEP / 2), None);
        assert_eq!(pending.add(0, STEP / 4), None);
        assert_eq!(pending.add(3 * STEP, STEP / 4), Some(0..3 * STEP + STEP / 4));
        assert_eq!(pending.add(10, 1), None);
        assert_eq!(pending.add(20 * STEP, STEP), Some(10..21 * STEP));
        assert_eq!(pending.add(u64::MAX - 1, STEP), Some(u64::MAX - 1..u64::MAX));
    }
}
