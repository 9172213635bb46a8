use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{ImageId, text_enum};
use crate::{ErrorCode, Timestamp};

/// Id of a job, a UUIDv7.
pub type JobId = Uuid;

/// Long work: what was asked, how far it is, how it ended.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Job {
    /// Id.
    #[schema(value_type = Uuid)]
    pub id: JobId,
    /// Which work.
    pub kind: JobKind,
    /// Where it stands.
    pub state: JobState,
    /// Images it reads or writes.
    #[schema(value_type = Vec<Uuid>)]
    pub image_ids: Vec<ImageId>,
    /// Pool it works in.
    pub pool: Option<String>,
    /// How far it is.
    pub progress: JobProgress,
    /// Higher runs earlier; 0 is usual.
    pub priority: i32,
    /// Bytes per second it may copy.
    pub rate_limit: Option<u64>,
    /// How often it was started. More than 1 after a worker died.
    pub attempt: u32,
    /// Whether a cancel was asked for that has not taken effect yet.
    pub cancel_requested: bool,
    /// Grows with every change of the record.
    pub version: u64,
    /// What was done when.
    pub steps: Vec<JobStep>,
    /// When it was queued.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it was first started.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub finished_at: Option<Timestamp>,
    /// The request, as JSON.
    #[schema(value_type = Object)]
    pub request: Value,
    /// What came out, for a succeeded job; a job that makes an image names it in `image_id`.
    #[schema(value_type = Option<Object>)]
    pub result: Option<Value>,
    /// Why it failed.
    pub error: Option<JobError>,
}

impl Job {
    /// Whether nothing will change any more.
    pub fn is_finished(&self) -> bool {
        self.state.is_finished()
    }

    /// The image the job made or changed, from its result.
    pub fn result_image_id(&self) -> Option<ImageId> {
        self.result.as_ref()?.get("image_id")?.as_str()?.parse().ok()
    }
}

/// How far a job is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct JobProgress {
    /// Bytes done.
    pub done_bytes: u64,
    /// Bytes in all; `None` until the work was measured.
    pub total_bytes: Option<u64>,
    /// Speed over the last seconds.
    pub bytes_per_second: Option<u64>,
    /// Time left at that speed.
    pub eta_seconds: Option<u64>,
}

/// A line of a job's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct JobStep {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// What.
    pub text: String,
}

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct JobError {
    /// For programs; an [`ErrorCode`] as text.
    pub code: String,
    /// For people.
    pub detail: String,
}

impl JobError {
    /// The code as the enum, [`ErrorCode::Internal`] if an older release wrote one we do not know.
    pub fn code(&self) -> ErrorCode {
        self.code.parse().unwrap_or(ErrorCode::Internal)
    }
}

text_enum! {
    /// Which work a job does.
    JobKind, "job kind" {
        /// Make a new image with the content of another.
        Convert = "convert",
        /// Compress an image in place.
        Compress = "compress",
        /// Put an overlay on another base.
        Rebase = "rebase",
        /// Write an overlay's content into a base.
        Commit = "commit",
        /// Make an overlay stand alone.
        Flatten = "flatten",
        /// Look for errors, and repair them when asked.
        Check = "check",
        /// Change the virtual size.
        Resize = "resize",
        /// Tell whether two images have the same content.
        Compare = "compare",
        /// Take a file that lies in the pool into the inventory.
        Import = "import",
        /// Register the files found in a pool.
        Scan = "scan",
        /// Make a new, encrypted image with the content of another.
        Encrypt = "encrypt",
        /// Make a new image that is not encrypted with the content of an encrypted one.
        Decrypt = "decrypt",
        /// Change the key slots of an encrypted image.
        Rekey = "rekey",
        /// Seal every secret under another master key.
        RotateMasterKey = "rotate_master_key",
    }
}

text_enum! {
    /// Where a job stands.
    JobState, "job state" {
        /// Waits for a worker.
        Queued = "queued",
        /// A worker is on it.
        Running = "running",
        /// Held back on request, before or during its run.
        Paused = "paused",
        /// Done.
        Succeeded = "succeeded",
        /// Ended with an error.
        Failed = "failed",
        /// Ended on request; nothing is left of it, but for what a commit had written into the base by then.
        Cancelled = "cancelled",
    }
}

impl JobState {
    /// Whether the state is one of the three ends.
    pub fn is_finished(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}
