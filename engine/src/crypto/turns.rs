//! Memory that several threads want: each waits for its turn.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::{Error, Result};

/// Time between two looks at the cancel check.
pub(super) const LOOK: Duration = Duration::from_millis(20);

/// Bytes in use together, at most so many. Who comes first is served first; one that wants more than there is gets it alone.
///
/// Nobody who has memory waits for more of it: each gives back what it has, and the next one goes on.
pub(super) struct Turns {
    bound: u64,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    used: u64,
    next: u64,
    waiting: VecDeque<u64>,
}

/// Memory that may be used until this is dropped.
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    bytes: u64,
}

impl Turns {
    pub(super) const fn new(bound: u64) -> Self {
        let state = State {
            used: 0,
            next: 0,
            waiting: VecDeque::new(),
        };
        Self {
            bound,
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// Waits until there is room.
    ///
    /// # Errors
    /// `Cancelled`.
    pub(super) fn take(&self, bytes: u64, cancelled: &dyn Fn() -> bool) -> Result<Turn<'_>> {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.waiting.push_back(number);
        loop {
            let room = state.used == 0 || state.used.saturating_add(bytes) <= self.bound;
            let admitted = room && state.waiting.front() == Some(&number);
            if admitted || cancelled() {
                state.waiting.retain(|other| *other != number);
                state.used = state.used.saturating_add(if admitted { bytes } else { 0 });
                // There may be room for the next one as well.
                self.changed.notify_all();
                return if admitted {
                    Ok(Turn { turns: self, bytes })
                } else {
                    Err(Error::cancelled())
                };
            }
            let waited = self.changed.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes in use now.
    #[cfg(test)]
    pub(super) fn used(&self) -> u64 {
        self.lock().used
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.turns.lock();
        state.used = state.used.saturating_sub(self.bytes);
        self.turns.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::ErrorKind;

    #[test]
    fn many_together_stay_within_the_bound_and_all_get_their_turn() {
        let turns = Turns::new(100);
        let (now, most) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for n in 0..40 {
                let (turns, now, most) = (&turns, &now, &most);
                scope.spawn(move || {
                    let bytes = 10 + n % 5 * 20;
                    let _turn = turns.take(bytes, &|| false).unwrap();
                    most.fetch_max(now.fetch_add(bytes, Ordering::SeqCst) + bytes, Ordering::SeqCst);
                    std::thread::yield_now();
                    now.fetch_sub(bytes, Ordering::SeqCst);
                });
            }
        });
        assert!(most.into_inner() <= 100);
        assert_eq!(turns.used(), 0);
    }

    #[test]
    fn one_that_is_larger_than_the_bound_goes_alone() {
        let turns = Turns::new(100);
        let large = turns.take(1000, &|| false).unwrap();
        let refused = turns.take(1, &|| true).err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::Cancelled);
        drop(large);
        let small = turns.take(1, &|| false).unwrap();
        assert!(turns.take(1000, &|| true).is_err());
        // Who gave up is in nobody's way.
        drop(turns.take(99, &|| true).unwrap());
        drop(small);
        assert_eq!(turns.used(), 0);
    }
}
