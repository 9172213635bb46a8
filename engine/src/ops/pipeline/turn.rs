//! Batches take their turn in the order of their numbers.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Lets one batch at a time through, in order of number where that is asked for.
pub(super) struct Turns {
    state: Mutex<State>,
    changed: Condvar,
    ordered: bool,
}

struct State {
    next: u64,
    aborted: bool,
}

/// Held while a batch has its turn.
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    state: MutexGuard<'a, State>,
}

impl Turns {
    pub(super) fn new(ordered: bool) -> Self {
        Self {
            state: Mutex::new(State {
                next: 0,
                aborted: false,
            }),
            changed: Condvar::new(),
            ordered,
        }
    }

    /// Waits for the turn of batch `number`; `None` when the copy was aborted.
    pub(super) fn take(&self, number: u64) -> Option<Turn<'_>> {
        let mut state = self.lock();
        while self.ordered && state.next != number && !state.aborted {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.aborted {
            None
        } else {
            Some(Turn { turns: self, state })
        }
    }

    /// Lets everybody who waits give up.
    pub(super) fn abort(&self) {
        self.lock().aborted = true;
        self.changed.notify_all();
    }

    pub(super) fn is_aborted(&self) -> bool {
        self.lock().aborted
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.state.next += 1;
        self.turns.changed.notify_all();
    }
}
