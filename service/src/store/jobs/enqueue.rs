use super::NewJob;
use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::{EventKind, ImageId, Job, JobId, JobState};
use crate::store::Tx;
use crate::store::locks::Holder;
use crate::store::row::{Columns, json_text, stored_or_null};

impl Tx {
    /// Queues a job, takes its locks and reserves the image it will make.
    ///
    /// # Errors
    /// `image_busy`, `name_taken`, `limit_exceeded` when `open_jobs` wait or run already.
    pub async fn enqueue(&mut self, new: &NewJob, open_jobs: u64) -> Result<Job> {
        self.require_room(open_jobs).await?;
        self.insert_job(new).await?;
        if let Some(image) = &new.makes {
            self.insert_image(image).await?;
        }
        self.lock_images(Holder::Job(new.id), &new.locks).await?;
        self.insert_job_images(new.id, &new.images).await?;
        self.touch_queue();
        self.job_event(EventKind::JobQueued, new.id).await
    }

    /// Adds jobs without images, of five priorities, all at once: for the benchmark of the queue, on SQLite.
    pub async fn fill_queue(&mut self, state: JobState, count: u32) -> Result<()> {
        let sql = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $2) \
             INSERT INTO jobs (id, kind, state, wish, priority, image_ids, request, payload, done_bytes, attempt, token, run_after, \
             version, created_at) SELECT printf('%08x-0000-7000-8000-%012x', length($1), i), 'convert', $1, 'run', i % 5, '[]', '{}', '{}', 0, 0, 0, 0, 1, 0 FROM n \
             WHERE i <= $2";
        let filled = sqlx::query(sql).bind(state.as_str()).bind(i64::from(count));
        filled.execute(&mut *self.inner).await?;
        Ok(())
    }

    async fn require_room(&mut self, open_jobs: u64) -> Result<()> {
        let sql = "SELECT COUNT(*) AS open FROM jobs WHERE state IN ('queued', 'running')";
        let open = sqlx::query(sql).fetch_one(&mut *self.inner).await?.size("open")?;
        if open >= open_jobs {
            let public = format!("{open} jobs wait or run already; try again when some have ended");
            return Err(ServiceError::new(ErrorCode::LimitExceeded, public));
        }
        Ok(())
    }

    async fn insert_job(&mut self, new: &NewJob) -> Result<()> {
        let sql = "INSERT INTO jobs (id, kind, state, wish, priority, rate_limit, pool, image_ids, request, payload, done_bytes, \
             attempt, token, run_after, version, created_at) \
             VALUES ($1, $2, 'queued', 'run', $3, $4, $5, $6, $7, $8, 0, 0, 0, 0, 1, $9)";
        sqlx::query(sql)
            .bind(new.id.to_string())
            .bind(new.kind.as_str())
            .bind(i64::from(new.priority))
            .bind(stored_or_null("rate_limit", new.rate_limit)?)
            .bind(new.pool.clone())
            .bind(json_text(&new.images)?)
            .bind(json_text(&new.request)?)
            .bind(json_text(&new.payload)?)
            .bind(self.now.0)
            .execute(&mut *self.inner)
            .await?;
        Ok(())
    }

    async fn insert_job_images(&mut self, id: JobId, images: &[ImageId]) -> Result<()> {
        for (position, image) in (0_i64..).zip(images) {
            sqlx::query("INSERT INTO job_images (job_id, position, image_id) VALUES ($1, $2, $3)")
                .bind(id.to_string())
                .bind(position)
                .bind(image.to_string())
                .execute(&mut *self.inner)
                .await?;
        }
        Ok(())
    }
}
