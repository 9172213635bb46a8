//! Planned failures. Each durable step of the service has a name and two points, before and after it, at which a test can let the
//! process die as by SIGKILL, or let the step report an error.
//!
//! Nothing but a call of [`arm`] by the process itself sets one off: no request, option or variable of the environment does. Without
//! debug assertions, so in released programs, the points are compiled to nothing.

mod step;
mod storage;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use step::Step;
pub(crate) use storage::watched;

use crate::error::{ErrorCode, Result, ServiceError};

/// Whether this build has the points.
pub const COMPILED: bool = cfg!(debug_assertions);

/// One of the two sides of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Nothing of the step is done.
    Before,
    /// All of it is done, and nobody knows yet.
    After,
}

/// What happens at a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The process ends at once, by SIGKILL.
    Kill,
    /// The step reports an error: `io_error`.
    Fail,
}

/// What is to happen where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The step.
    pub step: Step,
    /// Its side.
    pub side: Side,
    /// Which time it is reached, counted from 1.
    pub nth: u64,
    /// What happens then.
    pub action: Action,
}

/// How often each point was reached.
pub type Reached = BTreeMap<(Step, Side), u64>;

#[derive(Default)]
struct State {
    plans: Vec<Plan>,
    reached: Reached,
}

static WATCHING: AtomicBool = AtomicBool::new(false);
static STATE: Mutex<State> = Mutex::new(State {
    plans: Vec::new(),
    reached: BTreeMap::new(),
});

/// Starts to count in this process, and to carry out each plan once. Does nothing where the points are not compiled in.
pub fn arm(plans: &[Plan]) {
    let mut state = state();
    state.plans = plans.to_vec();
    state.reached.clear();
    WATCHING.store(COMPILED, Ordering::SeqCst);
}

/// Ends what [`arm`] began: what was reached, and how often.
pub fn disarm() -> Reached {
    WATCHING.store(false, Ordering::SeqCst);
    let mut state = state();
    state.plans.clear();
    std::mem::take(&mut state.reached)
}

/// Whether anybody counts.
#[inline]
pub(crate) fn is_watched() -> bool {
    COMPILED && WATCHING.load(Ordering::Relaxed)
}

/// A point.
///
/// # Errors
/// `io_error` where a plan says so.
#[inline]
pub(crate) fn reach(step: Step, side: Side) -> Result<()> {
    if is_watched() { reached(step, side) } else { Ok(()) }
}

/// A step with its two points.
///
/// # Errors
/// The step's; `io_error` where a plan says so.
pub(crate) fn around<T, E: Into<ServiceError>>(step: Step, work: impl FnOnce() -> Result<T, E>) -> Result<T> {
    reach(step, Side::Before)?;
    let done = work().map_err(Into::into)?;
    reach(step, Side::After)?;
    Ok(done)
}

fn reached(step: Step, side: Side) -> Result<()> {
    let mut state = state();
    let count = state.reached.entry((step, side)).or_insert(0);
    *count += 1;
    let nth = *count;
    let due = |plan: &Plan| (plan.step, plan.side, plan.nth) == (step, side, nth);
    let Some(plan) = state.plans.iter().copied().find(due) else {
        return Ok(());
    };
    drop(state);
    match plan.action {
        Action::Fail => {
            let public = format!("planned failure at {step}");
            Err(ServiceError::new(ErrorCode::Io, public))
        }
        Action::Kill => die(),
    }
}

/// Does not return: the signal cannot be caught.
fn die() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    loop {
        std::thread::park();
    }
}

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}
