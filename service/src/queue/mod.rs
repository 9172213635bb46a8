//! Running jobs: slots for those that work, claims, a supervisor for each job, recovery of what a dead process left.

mod adopt;
mod control;
mod missing;
mod pulse;
mod recover;
mod register;
mod settle;
mod slots;
mod supervise;
mod work;

pub use control::{JobControl, StopReason};
pub use pulse::Pulse;
pub use recover::recover;
#[cfg(test)]
pub use recover::{Seen, bring_in_line};
pub use register::{ChangedBase, NamedBase, skipped};
pub use settle::{Done, Effect};
pub use work::{Running, housekeeping, workers};
