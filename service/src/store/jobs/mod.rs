//! The queue: one row is a job's state and its place in line.
//!
//! ```text
//! queued --claim--> running --finish--> succeeded | failed | cancelled
//!   ^                  |  lease runs out: claimed again, with the next token
//!   +----hand back-----+
//! ```
//!
//! What the user wants of a job (`run`, `pause`, `cancel`) is apart from where it stands: `paused` is a job not ended
//! that is wished to pause. A worker writes only while it holds the newest token and its lease has not run out.

mod claim;
mod control;
mod enqueue;
mod journal;
mod read;

use serde_json::{Value, json};
use uuid::Uuid;

use super::images::NewImage;
use super::locks::LockMode;
use super::row::Columns;
use crate::clock::Timestamp;
use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::{ImageId, Job, JobError, JobId, JobKind, JobProgress, JobState};

pub use claim::Ending;
pub use journal::{FillingEntry, JournalEntry};

/// A job to queue.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// Id.
    pub id: JobId,
    /// Which work.
    pub kind: JobKind,
    /// Pool it works in.
    pub pool: Option<String>,
    /// The request as the client sees it again.
    pub request: Value,
    /// What the work needs, of its kind.
    pub payload: Value,
    /// Images to list with it.
    pub images: Vec<ImageId>,
    /// Locks to hold until it ends.
    pub locks: Vec<(ImageId, LockMode)>,
    /// The image it will make, to reserve the name.
    pub makes: Option<NewImage>,
    /// Higher runs earlier.
    pub priority: i32,
    /// Bytes per second.
    pub rate_limit: Option<u64>,
}

/// A worker's right to write to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fence {
    /// The job.
    pub job: JobId,
    /// The number of this claim.
    pub token: i64,
}

impl Fence {
    /// Whether no worker had the job before.
    pub fn is_first(self) -> bool {
        self.token == 1
    }
}

/// A job in a worker's hands.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// The right to write to it.
    pub fence: Fence,
    /// Which work.
    pub kind: JobKind,
    /// What the work needs.
    pub payload: Value,
    /// Which start this is; 1 is the first.
    pub attempt: u32,
    /// What the user wants of it.
    pub wishes: Wishes,
}

/// What the user wants of a job now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// Run, pause or cancel.
    pub wish: Wish,
    /// Bytes per second.
    pub rate_limit: Option<u64>,
}

/// Whether a job should go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Go on.
    Run,
    /// Hold.
    Pause,
    /// Undo and end.
    Cancel,
}

impl Wish {
    fn parse(text: &str) -> Result<Self> {
        match text {
            "run" => Ok(Self::Run),
            "pause" => Ok(Self::Pause),
            "cancel" => Ok(Self::Cancel),
            _ => Err(ServiceError::internal(format!("database: '{text}' is no wish"))),
        }
    }
}

/// Columns of a whole job.
macro_rules! job_columns {
    () => {
        "id, kind, state, wish, priority, rate_limit, pool, image_ids, request, result, error_code, error_detail, done_bytes, \
         total_bytes, bytes_per_second, attempt, version, created_at, started_at, finished_at"
    };
}
use job_columns;

/// A job without its steps.
fn job(row: &sqlx::any::AnyRow) -> Result<Job> {
    let stored: String = row.text("state")?;
    let wish = Wish::parse(&row.text("wish")?)?;
    let state = shown_state(stored.parse()?, wish);
    let done_bytes = row.size("done_bytes")?;
    let total_bytes = row.size_or_null("total_bytes")?;
    let bytes_per_second = row
        .size_or_null("bytes_per_second")?
        .filter(|_| state == JobState::Running);
    let error = row
        .text_or_null("error_code")?
        .map(|code| (code, row.text_or_null("error_detail")));
    Ok(Job {
        id: row.id("id")?,
        kind: row.text("kind")?.parse()?,
        state,
        image_ids: row.json("image_ids")?,
        pool: row.text_or_null("pool")?,
        progress: JobProgress {
            done_bytes,
            total_bytes,
            bytes_per_second,
            eta_seconds: eta(done_bytes, total_bytes, bytes_per_second),
        },
        priority: i32::try_from(row.number("priority")?).unwrap_or_default(),
        rate_limit: row.size_or_null("rate_limit")?,
        attempt: u32::try_from(row.number("attempt")?).unwrap_or_default(),
        cancel_requested: wish == Wish::Cancel && !state.is_finished(),
        version: row.size("version")?,
        steps: Vec::new(),
        created_at: row.time("created_at")?,
        started_at: row.time_or_null("started_at")?,
        finished_at: row.time_or_null("finished_at")?,
        request: row.json("request")?,
        result: row.json_or_null("result")?,
        error: match error {
            Some((code, detail)) => Some(JobError {
                code,
                detail: detail?.unwrap_or_default(),
            }),
            None => None,
        },
    })
}

fn shown_state(stored: JobState, wish: Wish) -> JobState {
    if wish == Wish::Pause && !stored.is_finished() {
        JobState::Paused
    } else {
        stored
    }
}

fn eta(done: u64, total: Option<u64>, rate: Option<u64>) -> Option<u64> {
    let left = total?.saturating_sub(done);
    rate.filter(|rate| *rate > 0).map(|rate| left.div_ceil(rate))
}

fn event_data(job: &Job) -> Value {
    json!({
        "kind": job.kind, "state": job.state, "progress": job.progress, "attempt": job.attempt,
        "result": job.result, "error": job.error, "version": job.version,
    })
}

fn not_found(id: JobId) -> ServiceError {
    ServiceError::not_found("job", id)
}

fn lease_lost(fence: Fence) -> ServiceError {
    let public = "the worker lost its lease on the job";
    ServiceError::new(ErrorCode::LeaseLost, public).with_internal(format!("job {} token {}", fence.job, fence.token))
}

/// Id of a worker process, new at each start.
pub type WorkerId = Uuid;

/// When a lease taken or renewed now runs out.
pub(crate) fn lease_end(now: Timestamp, lease: std::time::Duration) -> i64 {
    now.after(lease).0
}
