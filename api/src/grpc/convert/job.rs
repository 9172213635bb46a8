use vdisk_service::ServiceError;
use vdisk_service::model::{Event, EventKind, Job, JobError, JobKind, JobProgress, JobState, JobStep};
use vdisk_service::request::{EventFilter, JobFilter, UpdateJob};

use super::value::{ids, known, optional_id, structure, timestamp};
use crate::proto;

/// The pairs of an enum, read in both directions.
macro_rules! pairs {
    ($to:ident, $from:ident, $field:literal, $model:ident { $($variant:ident),* }) => {
        pub(super) fn $to(value: $model) -> proto::$model {
            match value {
                $($model::$variant => proto::$model::$variant,)*
            }
        }

        fn $from(number: i32) -> Result<Option<$model>, ServiceError> {
            Ok(match known($field, number)? {
                proto::$model::Unspecified => None,
                $(proto::$model::$variant => Some($model::$variant),)*
            })
        }
    };
}

pairs!(
    kind,
    kind_filter,
    "kind",
    JobKind {
        Convert,
        Compress,
        Rebase,
        Commit,
        Flatten,
        Check,
        Resize,
        Compare,
        Import,
        Scan,
        Encrypt,
        Decrypt,
        Rekey,
        RotateMasterKey
    }
);
pairs!(
    state,
    state_filter,
    "state",
    JobState {
        Queued,
        Running,
        Paused,
        Succeeded,
        Failed,
        Cancelled
    }
);

impl From<Job> for proto::Job {
    fn from(job: Job) -> Self {
        Self {
            id: job.id.to_string(),
            kind: kind(job.kind).into(),
            state: state(job.state).into(),
            image_ids: ids(job.image_ids),
            pool: job.pool,
            progress: Some(job.progress.into()),
            priority: job.priority,
            rate_limit: job.rate_limit,
            attempt: job.attempt,
            cancel_requested: job.cancel_requested,
            version: job.version,
            steps: job.steps.into_iter().map(Into::into).collect(),
            created_at: timestamp(job.created_at),
            started_at: job.started_at.and_then(timestamp),
            finished_at: job.finished_at.and_then(timestamp),
            request: Some(structure(job.request)),
            result: job.result.map(structure),
            error: job.error.map(Into::into),
        }
    }
}

impl From<JobProgress> for proto::JobProgress {
    fn from(progress: JobProgress) -> Self {
        Self {
            done_bytes: progress.done_bytes,
            total_bytes: progress.total_bytes,
            bytes_per_second: progress.bytes_per_second,
            eta_seconds: progress.eta_seconds,
        }
    }
}

impl From<JobStep> for proto::JobStep {
    fn from(step: JobStep) -> Self {
        Self {
            at: timestamp(step.at),
            text: step.text,
        }
    }
}

impl From<JobError> for proto::JobError {
    fn from(error: JobError) -> Self {
        Self {
            code: error.code,
            detail: error.detail,
        }
    }
}

impl TryFrom<proto::ListJobsRequest> for JobFilter {
    type Error = ServiceError;

    fn try_from(request: proto::ListJobsRequest) -> Result<Self, ServiceError> {
        Ok(Self {
            state: state_filter(request.state)?,
            kind: kind_filter(request.kind)?,
            image: optional_id("image", request.image)?,
            pool: request.pool,
        })
    }
}

impl From<proto::UpdateJobRequest> for UpdateJob {
    fn from(request: proto::UpdateJobRequest) -> Self {
        Self {
            rate_limit: request.rate_limit,
            priority: request.priority,
        }
    }
}

impl TryFrom<&proto::WatchJobsRequest> for EventFilter {
    type Error = ServiceError;

    fn try_from(request: &proto::WatchJobsRequest) -> Result<Self, ServiceError> {
        Ok(Self {
            job: optional_id("job", request.job_id.clone())?,
            image: optional_id("image", request.image_id.clone())?,
        })
    }
}

impl From<Event> for proto::Event {
    fn from(event: Event) -> Self {
        let kind = match event.kind {
            EventKind::JobQueued => proto::EventType::JobQueued,
            EventKind::JobState => proto::EventType::JobState,
            EventKind::JobProgress => proto::EventType::JobProgress,
            EventKind::ImageCreated => proto::EventType::ImageCreated,
            EventKind::ImageUpdated => proto::EventType::ImageUpdated,
            EventKind::ImageDeleted => proto::EventType::ImageDeleted,
        };
        Self {
            seq: event.seq,
            r#type: kind.into(),
            job_id: event.job_id.map(|id| id.to_string()),
            image_id: event.image_id.map(|id| id.to_string()),
            at: timestamp(event.at),
            data: Some(structure(event.data)),
        }
    }
}
