use super::{ImageState, JobKind, JobState};
use crate::Timestamp;

/// Sums over the inventory and the queue, for monitoring.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Images by state; a state that no image is in is absent.
    pub images: Vec<(ImageState, u64)>,
    /// Jobs by kind and state; what no job is in is absent.
    pub jobs: Vec<JobSum>,
    /// When the job that has waited longest was queued.
    pub oldest_queued: Option<Timestamp>,
}

/// The jobs of one kind and state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobSum {
    /// Kind.
    pub kind: JobKind,
    /// State.
    pub state: JobState,
    /// How many there are.
    pub count: u64,
    /// Bytes they have worked through.
    pub done_bytes: u64,
}
