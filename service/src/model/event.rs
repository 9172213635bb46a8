use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{ImageId, JobId, text_enum};
use crate::Timestamp;

/// Something that happened to a job or an image.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Event {
    /// Grows by one with every event, over restarts too.
    pub seq: u64,
    /// What happened.
    #[serde(rename = "type")]
    pub kind: EventKind,
    /// The job it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Uuid>)]
    pub job_id: Option<JobId>,
    /// The image it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Uuid>)]
    pub image_id: Option<ImageId>,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// The job or image as it was then, cut to what changes: `state`, `progress`, `error`, `generation`.
    #[schema(value_type = Object)]
    pub data: Value,
}

text_enum! {
    /// What happened.
    EventKind, "event type" {
        /// A job was queued.
        JobQueued = "job.queued",
        /// A job's state changed.
        JobState = "job.state",
        /// A job got further.
        JobProgress = "job.progress",
        /// An image was recorded.
        ImageCreated = "image.created",
        /// An image's record or content changed.
        ImageUpdated = "image.updated",
        /// An image was deleted.
        ImageDeleted = "image.deleted",
    }
}
