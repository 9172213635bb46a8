//! What a running job is told: go on, hold, stop; and what it tells: how far it is.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use vdisk_engine::{CancelToken, Control, Progress};

use crate::model::JobProgress;
use crate::store::jobs::{Wish, Wishes};

/// Why a job was told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The user cancelled it.
    Cancelled,
    /// Another worker has it, or may have: nothing may be written any more.
    LeaseLost,
    /// The process ends: the job goes back to the queue.
    Shutdown,
}

/// Both ends of a running job. The engine's threads call it as [`Progress`].
pub struct JobControl {
    done: AtomicU64,
    total: AtomicU64,
    cancel: CancelToken,
    pace: Mutex<Pace>,
    changed: Condvar,
    /// For who lends the job's slot: the job is held, or wanted again.
    moved: Notify,
}

const UNKNOWN: u64 = u64::MAX;
/// The speed shown is that over this time.
const RATE_WINDOW: Duration = Duration::from_secs(10);
/// How much a rate-limited job may have saved up.
const BURST: Duration = Duration::from_millis(250);

struct Pace {
    paused: bool,
    /// A thread of the job waits because it is paused.
    held: bool,
    /// Its slot is lent to another job.
    lent: bool,
    stop: Option<StopReason>,
    limit: Option<u64>,
    /// When the bytes let through so far will have been paid for.
    paid_until: Instant,
    samples: VecDeque<(Instant, u64)>,
}

impl JobControl {
    /// Starts with what the user wants at the time of the claim.
    pub fn new(wishes: Wishes) -> Arc<Self> {
        let pace = Pace {
            paused: false,
            held: false,
            lent: false,
            stop: None,
            limit: wishes.rate_limit,
            paid_until: Instant::now(),
            samples: VecDeque::new(),
        };
        let control = Self {
            done: AtomicU64::new(0),
            total: AtomicU64::new(UNKNOWN),
            cancel: CancelToken::new(),
            pace: Mutex::new(pace),
            changed: Condvar::new(),
            moved: Notify::new(),
        };
        control.wish(wishes);
        Arc::new(control)
    }

    /// The engine's view of this.
    pub fn for_engine(self: &Arc<Self>) -> Control {
        Control::new(self.clone(), self.cancel.clone())
    }

    /// Takes over what the user wants now.
    pub fn wish(&self, wishes: Wishes) {
        if wishes.wish == Wish::Cancel {
            // Not unpaused first: a paused thread must not get on with a piece before it hears of the stop.
            return self.stop(StopReason::Cancelled);
        }
        let mut pace = self.lock();
        pace.paused = wishes.wish == Wish::Pause;
        pace.held &= pace.paused || pace.lent;
        if pace.limit != wishes.rate_limit {
            pace.limit = wishes.rate_limit;
            pace.paid_until = Instant::now();
        }
        drop(pace);
        self.changed.notify_all();
        self.moved.notify_one();
    }

    /// Waits until the job is paused and stands still.
    pub async fn until_held(&self) {
        while !self.lock().held {
            self.moved.notified().await;
        }
    }

    /// Waits until the job is not paused.
    pub async fn until_wanted(&self) {
        while self.lock().paused {
            self.moved.notified().await;
        }
    }

    /// The job's slot is another's: it stands still until it is admitted again, whatever the user wants.
    pub fn lend(&self) {
        self.lock().lent = true;
    }

    /// The job has a slot again.
    pub fn admit(&self) {
        let mut pace = self.lock();
        (pace.lent, pace.held) = (false, false);
        drop(pace);
        self.changed.notify_all();
    }

    /// Tells the job to stop. The first reason counts, but a lost lease overrules all: it forbids to write.
    pub fn stop(&self, reason: StopReason) {
        // Before the waiting threads can see the reason: who stops waiting must find the token set.
        self.cancel.cancel();
        let mut pace = self.lock();
        if pace.stop.is_none() || reason == StopReason::LeaseLost {
            pace.stop = Some(reason);
        }
        drop(pace);
        self.changed.notify_all();
    }

    /// Why the job was told to stop, if it was.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.lock().stop
    }

    /// Whether it is held back.
    #[cfg(test)]
    pub fn is_paused(&self) -> bool {
        self.lock().paused
    }

    /// How far the job is, with the speed of the last seconds.
    pub fn progress(&self) -> JobProgress {
        let done = self.done.load(Ordering::Relaxed);
        let total = Some(self.total.load(Ordering::Relaxed)).filter(|total| *total != UNKNOWN);
        let now = Instant::now();
        let mut pace = self.lock();
        pace.samples.push_back((now, done));
        while pace.samples.len() > 2 && pace.samples.front().is_some_and(|(at, _)| now - *at > RATE_WINDOW) {
            pace.samples.pop_front();
        }
        let rate = pace
            .samples
            .front()
            .and_then(|(at, then)| speed(done.saturating_sub(*then), now - *at));
        JobProgress {
            done_bytes: total.map_or(done, |total| done.min(total)),
            total_bytes: total,
            bytes_per_second: rate,
            eta_seconds: None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn speed(bytes: u64, time: Duration) -> Option<u64> {
    let millis = u64::try_from(time.as_millis()).ok().filter(|millis| *millis > 0)?;
    Some(bytes.saturating_mul(1000) / millis)
}

impl Progress for JobControl {
    fn set_total(&self, bytes: u64) {
        self.total.store(bytes, Ordering::Relaxed);
    }

    fn advance(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Blocks while the job is paused or has no slot, and as long as the rate limit asks for.
    fn pace(&self, bytes: u64) {
        let mut pace = self.lock();
        let mut charged = false;
        loop {
            if pace.stop.is_some() {
                return;
            }
            let now = Instant::now();
            if pace.paused || pace.lent {
                if !pace.held {
                    pace.held = true;
                    self.moved.notify_one();
                }
                pace = self.changed.wait(pace).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let Some(limit) = pace.limit.filter(|limit| *limit > 0) else {
                return;
            };
            if !charged {
                charged = true;
                let start = pace.paid_until.max(now.checked_sub(BURST).unwrap_or(now));
                pace.paid_until = start + cost(bytes, limit);
            }
            let Some(wait) = pace
                .paid_until
                .checked_duration_since(now)
                .filter(|wait| !wait.is_zero())
            else {
                return;
            };
            pace = self
                .changed
                .wait_timeout(pace, wait)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

fn cost(bytes: u64, per_second: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(per_second.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX / 4).min(u64::MAX / 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wishes(wish: Wish, rate_limit: Option<u64>) -> Wishes {
        Wishes { wish, rate_limit }
    }

    #[test]
    fn a_paused_job_waits_until_it_is_resumed() {
        let control = JobControl::new(wishes(Wish::Pause, None));
        let worker = control.clone();
        let thread = std::thread::spawn(move || worker.pace(1));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!thread.is_finished());
        control.wish(wishes(Wish::Run, None));
        thread.join().unwrap();
    }

    #[test]
    fn a_paused_job_can_be_cancelled() {
        let control = JobControl::new(wishes(Wish::Pause, None));
        let worker = control.clone();
        let thread = std::thread::spawn(move || worker.for_engine().checkpoint(1).is_err());
        control.wish(wishes(Wish::Cancel, None));
        assert!(thread.join().unwrap());
        assert_eq!(control.stop_reason(), Some(StopReason::Cancelled));
    }

    #[test]
    fn the_rate_limit_holds_and_can_be_lifted() {
        let control = JobControl::new(wishes(Wish::Run, Some(1 << 20)));
        let start = Instant::now();
        for _ in 0..8 {
            control.pace(1 << 16);
        }
        let half = start.elapsed();
        assert!(
            half >= Duration::from_millis(200),
            "512 KiB at 1 MiB/s less the burst took {half:?}"
        );
        let worker = control.clone();
        let thread = std::thread::spawn(move || worker.pace(1 << 30));
        std::thread::sleep(Duration::from_millis(20));
        control.wish(wishes(Wish::Run, None));
        thread.join().unwrap();
        assert!(start.elapsed() < Duration::from_secs(300));
    }

    #[test]
    fn a_lost_lease_overrules_other_reasons() {
        let control = JobControl::new(wishes(Wish::Cancel, None));
        control.stop(StopReason::LeaseLost);
        control.stop(StopReason::Shutdown);
        assert_eq!(control.stop_reason(), Some(StopReason::LeaseLost));
    }
}
