//! Progress: a bar on a terminal, qemu-img's percentages elsewhere, one line for SIGUSR1, the pace of `-r`, and an orderly end when
//! the user interrupts. Nobody may be reading it: what cannot be shown is no error.

use std::io::{IsTerminal as _, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use vdisk_engine::{CancelToken, Control, Progress};

use crate::spec::Made;

/// Watches one operation.
pub struct Meter {
    total: AtomicU64,
    done: AtomicU64,
    shown: Mutex<Shown>,
    place: Place,
    pace: Option<Pace>,
    cancel: CancelToken,
}

/// Where percentages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Stdout,
    Stderr,
}

enum Shown {
    Nothing,
    Bar(ProgressBar),
    /// Percent printed last.
    Percent(f64),
}

impl Meter {
    /// Shows progress when asked to, and keeps to `rate` bytes a second where that is given.
    ///
    /// `cancel` is set when the user interrupts.
    pub fn new(show: bool, rate: Option<u64>, cancel: &CancelToken) -> Arc<Self> {
        Self::at(Place::Stdout, show, rate, cancel)
    }
    /// The same where standard output is for data.
    pub fn on_stderr(show: bool, rate: Option<u64>, cancel: &CancelToken) -> Arc<Self> {
        Self::at(Place::Stderr, show, rate, cancel)
    }

    fn at(place: Place, show: bool, rate: Option<u64>, cancel: &CancelToken) -> Arc<Self> {
        let shown = match show {
            false => Shown::Nothing,
            true if place.is_terminal() => Shown::Bar(bar()),
            true => {
                place.percent(0.0, '\r');
                Shown::Percent(0.0)
            }
        };
        let meter = Arc::new(Self {
            total: AtomicU64::new(0),
            done: AtomicU64::new(0),
            shown: Mutex::new(shown),
            place,
            pace: rate.filter(|r| *r > 0).map(Pace::new),
            cancel: cancel.clone(),
        });
        meter.watch_signals();
        meter
    }
    /// For the engine.
    pub fn control(self: &Arc<Self>) -> Control {
        Control::new(self.clone(), self.cancel.clone())
    }
    /// The operation ended well.
    pub fn finish(&self) {
        match &*self.shown.lock().unwrap_or_else(PoisonError::into_inner) {
            Shown::Nothing => {}
            Shown::Bar(bar) => bar.finish(),
            Shown::Percent(_) => {
                self.place.percent(100.0, '\r');
                self.place.print("\n");
            }
        }
    }
    /// Everything is done; what came of it may be told before [`end`](Self::end).
    pub fn complete(&self) {
        match &mut *self.shown.lock().unwrap_or_else(PoisonError::into_inner) {
            Shown::Nothing => {}
            Shown::Bar(bar) => bar.finish(),
            Shown::Percent(last) if *last < 100.0 => {
                *last = 100.0;
                self.place.percent(100.0, '\r');
            }
            Shown::Percent(_) => {}
        }
    }
    /// Nothing more is shown.
    pub fn end(&self) {
        match &*self.shown.lock().unwrap_or_else(PoisonError::into_inner) {
            Shown::Nothing => {}
            Shown::Bar(bar) => bar.abandon(),
            Shown::Percent(_) => self.place.print("\n"),
        }
    }

    /// SIGUSR1 tells on standard error where the operation is; SIGINT and SIGTERM end it, so that nothing half-written stays. A signal
    /// that the caller had ignored stays so: `nohup`, or a shell that runs this in the background.
    fn watch_signals(self: &Arc<Self>) {
        let ignored = ignored_signals();
        let wanted = [SIGUSR1, SIGINT, SIGTERM]
            .into_iter()
            .filter(|n| ignored & (1 << (n - 1)) == 0);
        // Without signals the operation runs all the same.
        let Ok(mut signals) = Signals::new(wanted) else {
            return;
        };
        let meter = Arc::downgrade(self);
        thread::spawn(move || {
            for signal in signals.forever() {
                match meter.upgrade() {
                    Some(meter) if signal == SIGUSR1 => Place::Stderr.percent(meter.percent(), '\n'),
                    Some(meter) if !meter.cancel.is_cancelled() => meter.cancel.cancel(),
                    // Nothing runs any more, or the user asks again.
                    _ => {
                        Made::remove_unfinished();
                        std::process::exit(128 + signal)
                    }
                }
            }
        });
    }

    fn percent(&self) -> f64 {
        let (total, done) = (self.total.load(Ordering::Relaxed), self.done.load(Ordering::Relaxed));
        match total {
            0 => 0.0,
            _ => (done as f64 * 100.0 / total as f64).min(100.0),
        }
    }

    fn update(&self, change: impl FnOnce()) {
        // Changed under the lock, so that threads that end together are shown one after the other.
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        change();
        match &mut *shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => {
                bar.set_length(self.total.load(Ordering::Relaxed));
                bar.set_position(self.done.load(Ordering::Relaxed));
            }
            Shown::Percent(last) => {
                let now = self.percent();
                if now >= *last + 1.0 {
                    *last = now;
                    self.place.percent(now, '\r');
                }
            }
        }
    }
}

/// The signals that were ignored when the program began, bit 0 for signal 1; none where the system does not say.
fn ignored_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok())
        .unwrap_or(0)
}

fn bar() -> ProgressBar {
    let template = "{wide_bar} {percent:>3}% {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style)
}

impl Place {
    fn is_terminal(self) -> bool {
        match self {
            Self::Stdout => std::io::stdout().is_terminal(),
            Self::Stderr => std::io::stderr().is_terminal(),
        }
    }
    fn print(self, text: &str) {
        let mut out: Box<dyn Write> = match self {
            Self::Stdout => Box::new(std::io::stdout()),
            Self::Stderr => Box::new(std::io::stderr()),
        };
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
    fn percent(self, percent: f64, end: char) {
        self.print(&format!("    ({percent:3.2}/100%){end}"));
    }
}

impl Progress for Meter {
    fn set_total(&self, bytes: u64) {
        self.update(|| self.total.store(bytes, Ordering::Relaxed));
    }
    fn advance(&self, bytes: u64) {
        self.update(|| {
            self.done.fetch_add(bytes, Ordering::Relaxed);
        });
    }
    fn pace(&self, bytes: u64) {
        if let Some(pace) = &self.pace {
            pace.wait(bytes, &self.cancel);
        }
    }
}

/// Holds work back so that it keeps to a rate.
struct Pace {
    bytes_per_second: u64,
    start: Instant,
    planned: AtomicU64,
}

impl Pace {
    fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            start: Instant::now(),
            planned: AtomicU64::new(0),
        }
    }
    fn wait(&self, bytes: u64, cancel: &CancelToken) {
        /// How often somebody who waits looks whether the work is still wanted.
        const LISTEN: Duration = Duration::from_millis(50);
        let before = self.planned.fetch_add(bytes, Ordering::Relaxed);
        let due = Duration::from_secs_f64(before as f64 / self.bytes_per_second as f64);
        while let Some(left) = due.checked_sub(self.start.elapsed())
            && !left.is_zero()
            && !cancel.is_cancelled()
        {
            thread::sleep(left.min(LISTEN));
        }
    }
}
