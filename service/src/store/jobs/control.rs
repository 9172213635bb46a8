//! The user's side: cancel, pause, resume, change.

use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::{EventKind, Job, JobId, JobState};
use crate::request::UpdateJob;
use crate::store::Tx;
use crate::store::row::stored_or_null;

impl Tx {
    /// Cancels a job that no worker has, or asks the worker to undo it.
    ///
    /// # Errors
    /// `not_found`, `job_state_conflict`.
    pub async fn cancel_job(&mut self, id: JobId) -> Result<Job> {
        let job = self.job(id).await?;
        match job.state {
            JobState::Cancelled => return Ok(job),
            JobState::Succeeded | JobState::Failed => return Err(has_ended(&job)),
            _ => {}
        }
        // A job that an earlier attempt may have left in the middle of a change ends in a worker's hands, which puts that in order.
        let sql = "UPDATE jobs SET state = 'cancelled', wish = 'run', finished_at = $2, version = version + 1, reserved_bytes = 0 \
             WHERE id = $1 AND state = 'queued' AND (token = 0 OR NOT EXISTS \
             (SELECT l.image_id FROM image_locks l WHERE l.holder = $1 AND l.mode = 'exclusive'))";
        let ended = sqlx::query(sql)
            .bind(id.to_string())
            .bind(self.now.0)
            .execute(&mut *self.inner)
            .await?;
        if ended.rows_affected() == 1 {
            self.let_go(id).await?;
        } else if job.cancel_requested {
            return Ok(job);
        } else {
            self.touch_queue();
            self.set_wish(id, "cancel").await?;
        }
        self.job_event(EventKind::JobState, id).await
    }

    /// Holds a job back.
    ///
    /// # Errors
    /// `not_found`, `job_state_conflict`.
    pub async fn pause_job(&mut self, id: JobId) -> Result<Job> {
        self.change_wish(id, JobState::Paused, "pause").await
    }

    /// Lets a paused job go on.
    ///
    /// # Errors
    /// `not_found`, `job_state_conflict`.
    pub async fn resume_job(&mut self, id: JobId) -> Result<Job> {
        let job = self.job(id).await?;
        if !job.is_finished() && job.state != JobState::Paused {
            return Ok(job);
        }
        self.touch_queue();
        self.change_wish(id, JobState::Running, "run").await
    }

    async fn change_wish(&mut self, id: JobId, already: JobState, wish: &str) -> Result<Job> {
        let job = self.job(id).await?;
        if job.is_finished() {
            return Err(has_ended(&job));
        }
        if job.cancel_requested {
            let public = "the job is being cancelled";
            return Err(ServiceError::new(ErrorCode::JobStateConflict, public));
        }
        if job.state == already {
            return Ok(job);
        }
        self.set_wish(id, wish).await?;
        self.job_event(EventKind::JobState, id).await
    }

    async fn set_wish(&mut self, id: JobId, wish: &str) -> Result<()> {
        let sql = "UPDATE jobs SET wish = $2, version = version + 1 WHERE id = $1";
        sqlx::query(sql)
            .bind(id.to_string())
            .bind(wish)
            .execute(&mut *self.inner)
            .await?;
        Ok(())
    }

    /// Changes rate limit and priority.
    ///
    /// # Errors
    /// `not_found`, `job_state_conflict`.
    pub async fn update_job(&mut self, id: JobId, update: &UpdateJob) -> Result<Job> {
        let job = self.job(id).await?;
        if job.is_finished() {
            return Err(has_ended(&job));
        }
        let rate_limit = match update.rate_limit {
            Some(0) => None,
            Some(limit) => Some(limit),
            None => job.rate_limit,
        };
        let priority = update.priority.unwrap_or(job.priority);
        if rate_limit == job.rate_limit && priority == job.priority {
            return Ok(job);
        }
        let sql = "UPDATE jobs SET rate_limit = $2, priority = $3, version = version + 1 WHERE id = $1";
        sqlx::query(sql)
            .bind(id.to_string())
            .bind(stored_or_null("rate_limit", rate_limit)?)
            .bind(i64::from(priority))
            .execute(&mut *self.inner)
            .await?;
        self.job_event(EventKind::JobState, id).await
    }

    /// Adds a line to a job's log, in a transaction that made sure that it is ours.
    pub async fn note_step(&mut self, id: JobId, text: &str) -> Result<()> {
        let sql = "INSERT INTO job_steps (job_id, position, at, text) \
             SELECT $1, COALESCE(MAX(position), -1) + 1, $2, $3 FROM job_steps WHERE job_id = $1";
        sqlx::query(sql)
            .bind(id.to_string())
            .bind(self.now.0)
            .bind(text)
            .execute(&mut *self.inner)
            .await?;
        Ok(())
    }
}

fn has_ended(job: &Job) -> ServiceError {
    ServiceError::new(
        ErrorCode::JobStateConflict,
        format!("the job has {} already", job.state),
    )
}
