use std::time::Duration;

use super::Service;
use super::images::refuse_nul;
use super::paging::Window;
use crate::error::Result;
use crate::fault::Step;
use crate::model::{Job, JobId, Page};
use crate::request::{Call, JobFilter, PageRequest, UpdateJob, WaitUntil};
use crate::store::Tx;
use crate::store::idempotency::Outcome;

/// The longest wait that [`Service::wait_job`] grants.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// How long changes other than of its state may gather before a job is read again: who has waited long does not notice a little more, and
/// the database is spared.
fn patience(waited: Duration) -> Duration {
    (waited / 64).min(Duration::from_millis(50))
}

impl Service {
    /// Jobs that match, newest first.
    ///
    /// # Errors
    /// `invalid_argument` for a page token that is not ours.
    pub async fn list_jobs(&self, filter: &JobFilter, page: &PageRequest) -> Result<Page<Job>> {
        refuse_nul("pool", &filter.pool)?;
        let window = Window::new(page, &self.inner.config.limits)?;
        let jobs = self.inner.store.list_jobs(filter, window.from, window.rows()).await?;
        Ok(window.page(jobs, |job| job.id))
    }

    /// One job.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn job(&self, id: JobId) -> Result<Job> {
        self.inner.store.job(id).await
    }

    /// Jobs by state: for metrics.
    ///
    /// # Errors
    /// `unavailable`.
    pub async fn count_jobs(&self) -> Result<Vec<(crate::model::JobState, u64)>> {
        self.inner.store.count_jobs().await
    }

    /// The job once it is as `until` says, or as it stands when `timeout` (at most 5 minutes) is over.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn wait_job(&self, id: JobId, until: WaitUntil, timeout: Duration) -> Result<Job> {
        let mut changes = self.inner.store.changes_of(id);
        let mut states = changes.borrow().states;
        let begun = tokio::time::Instant::now();
        let deadline = begun + timeout.min(LONGEST_WAIT);
        let first = self.inner.store.job_alone(id).await?;
        let mut job = first.clone();
        while !is_reached(until, &first, &job) {
            tokio::select! {
                () = tokio::time::sleep_until(deadline) => break,
                () = self.inner.stop.cancelled() => break,
                _ = changes.changed() => tokio::select! {
                    () = tokio::time::sleep(patience(begun.elapsed())) => {}
                    _ = changes.wait_for(|now| now.states != states) => {}
                },
                // Other processes change jobs too.
                () = tokio::time::sleep(self.inner.config.poll_interval) => {}
            }
            states = changes.borrow_and_update().states;
            job = self.inner.store.job_alone(id).await?;
        }
        self.inner.store.with_steps(job).await
    }

    /// Asks a job to end. A queued job is cancelled at once, a running one within a moment: it undoes what it did, or,
    /// past the point of no return, finishes. A queued job that may have begun to change an image in an earlier attempt is one that runs:
    /// a worker puts that in order. Asking again, or for a cancelled job, changes nothing.
    ///
    /// # Errors
    /// `not_found`, `job_state_conflict` when it has succeeded or failed, `idempotency_conflict`.
    pub async fn cancel_job(&self, id: JobId, call: &Call) -> Result<Job> {
        let steered = self.steer(id, ("cancel", call), async |tx| tx.cancel_job(id).await);
        let job = steered.await?;
        if job.is_finished() {
            // It waited for its next attempt: what the one before left goes too.
            crate::jobs::sweep(&self.inner, id).await?;
        }
        Ok(job)
    }

    /// Holds a job back. Pausing a paused job changes nothing.
    ///
    /// # Errors
    /// `not_found`, `job_state_conflict` when it has ended, `idempotency_conflict`.
    pub async fn pause_job(&self, id: JobId, call: &Call) -> Result<Job> {
        let steered = self.steer(id, ("pause", call), async |tx| tx.pause_job(id).await);
        steered.await
    }

    /// Lets a paused job go on. Resuming a job that is not paused changes nothing.
    ///
    /// # Errors
    /// `not_found`, `job_state_conflict` when it has ended, `idempotency_conflict`.
    pub async fn resume_job(&self, id: JobId, call: &Call) -> Result<Job> {
        let steered = self.steer(id, ("resume", call), async |tx| tx.resume_job(id).await);
        steered.await
    }

    /// Changes rate limit and priority.
    ///
    /// # Errors
    /// `not_found`, `job_state_conflict` when it has ended.
    pub async fn update_job(&self, id: JobId, request: UpdateJob) -> Result<Job> {
        crate::jobs::check_priority(request.priority)?;
        let call = ("update", &Call::default());
        self.steer(id, call, async |tx| tx.update_job(id, &request).await).await
    }

    /// Changes what is wanted of a job, once for each idempotency key.
    async fn steer(
        &self,
        id: JobId,
        (verb, call): (&str, &Call),
        change: impl AsyncFnOnce(&mut Tx) -> Result<Job>,
    ) -> Result<Job> {
        let key = call.bind(verb, &id.to_string(), &())?;
        let mut tx = self.inner.store.begin().await?;
        if tx.recall(key.as_ref()).await?.is_some() {
            drop(tx);
            return self.inner.store.job(id).await;
        }
        change(&mut tx).await?;
        tx.remember(key.as_ref(), Outcome::Job(id)).await?;
        tx.commit_as(Step::SteerJob).await?;
        self.inner.poke(id);
        self.inner.store.job(id).await
    }
}

fn is_reached(until: WaitUntil, first: &Job, now: &Job) -> bool {
    now.is_finished()
        || match until {
            WaitUntil::StateChanges => now.state != first.state,
            WaitUntil::Finished => false,
            WaitUntil::VersionAfter(version) => now.version > version,
        }
}
