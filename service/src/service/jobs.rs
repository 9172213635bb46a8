use std::time::Duration;

use super::{Service, waiting};
use crate::error::Result;
use crate::model::{Job, JobId, Page};
use crate::request::{JobFilter, PageRequest, UpdateJob, WaitUntil};

impl Service {
    /// Jobs that match, newest first.
    ///
    /// # Errors
    /// `invalid_argument` for a page token that is not ours.
    pub async fn list_jobs(&self, _filter: &JobFilter, _page: &PageRequest) -> Result<Page<Job>> {
        Err(waiting("jobs"))
    }

    /// One job.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn job(&self, _id: JobId) -> Result<Job> {
        Err(waiting("jobs"))
    }

    /// The job once it is as `until` says, or as it stands when `timeout` is over.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn wait_job(&self, _id: JobId, _until: WaitUntil, _timeout: Duration) -> Result<Job> {
        Err(waiting("jobs"))
    }

    /// Asks a job to end. A queued job is cancelled at once, a running one within a moment: it undoes what it did, or,
    /// past the point of no return, finishes. Asking again, or for a cancelled job, changes nothing.
    ///
    /// # Errors
    /// `not_found`, `job_state_conflict` when it has succeeded or failed.
    pub async fn cancel_job(&self, _id: JobId) -> Result<Job> {
        Err(waiting("jobs"))
    }

    /// Holds a job back. Pausing a paused job changes nothing.
    ///
    /// # Errors
    /// `not_found`, `job_state_conflict` when it has ended.
    pub async fn pause_job(&self, _id: JobId) -> Result<Job> {
        Err(waiting("jobs"))
    }

    /// Lets a paused job go on. Resuming a job that is not paused changes nothing.
    ///
    /// # Errors
    /// `not_found`, `job_state_conflict` when it has ended.
    pub async fn resume_job(&self, _id: JobId) -> Result<Job> {
        Err(waiting("jobs"))
    }

    /// Changes rate limit and priority.
    ///
    /// # Errors
    /// `not_found`, `job_state_conflict` when it has ended.
    pub async fn update_job(&self, _id: JobId, _request: UpdateJob) -> Result<Job> {
        Err(waiting("jobs"))
    }
}
