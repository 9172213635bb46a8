//! The worker's side: claim, renew, report, end.

use std::time::Duration;

use serde_json::Value;

use super::{Claimed, Fence, Wish, Wishes, WorkerId, job, job_columns, lease_end, lease_lost};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::{EventKind, Job, JobId, JobProgress};
use crate::store::row::{Columns, json_text};
use crate::store::{Store, Tx};

/// How a job ends.
#[derive(Debug)]
pub enum Ending {
    /// Done, with what came out.
    Succeeded(Value),
    /// With an error.
    Failed(ServiceError),
    /// On request.
    Cancelled,
}

impl Tx {
    /// Takes the next job: waiting and due, or running with a lease that ran out. Paused jobs stay where they are. Each half of the
    /// question is answered by an index in its order: the length of the queue does not matter.
    pub async fn claim(&mut self, worker: WorkerId, lease: Duration) -> Result<Option<Claimed>> {
        let sql = concat!(
            "UPDATE jobs SET state = 'running', token = token + 1, attempt = attempt + 1, version = version + 1, \
             worker = $1, lease_until = $2, started_at = COALESCE(started_at, $3) \
             WHERE id = (SELECT next.id FROM (SELECT * FROM (SELECT id, priority FROM jobs WHERE state = 'queued' \
             AND wish <> 'pause' AND run_after <= $3 ORDER BY priority DESC, id LIMIT 1) waiting UNION ALL SELECT * FROM \
             (SELECT id, priority FROM jobs WHERE state = 'running' AND wish <> 'pause' AND lease_until <= $3 \
             ORDER BY priority DESC, id LIMIT 1) abandoned) next ORDER BY next.priority DESC, next.id LIMIT 1) \
             RETURNING payload, token, ",
            job_columns!()
        );
        let row = sqlx::query(sql)
            .bind(worker.to_string())
            .bind(lease_end(self.now, lease))
            .bind(self.now.0)
            .fetch_optional(&mut *self.inner)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let job = self.event_of(EventKind::JobState, job(&row)?).await?;
        Ok(Some(Claimed {
            fence: Fence {
                job: job.id,
                token: row.number("token")?,
            },
            kind: job.kind,
            payload: row.json("payload")?,
            attempt: job.attempt,
            wishes: wishes(&row)?,
        }))
    }

    /// Prolongs a lease and tells what the user wants now.
    ///
    /// # Errors
    /// `lease_lost`.
    pub async fn renew(&mut self, fence: Fence, lease: Duration) -> Result<Wishes> {
        let sql = "UPDATE jobs SET lease_until = $4 WHERE id = $1 AND token = $2 AND state = 'running' \
             AND lease_until > $3 RETURNING wish, rate_limit";
        let row = sqlx::query(sql)
            .bind(fence.job.to_string())
            .bind(fence.token)
            .bind(self.now.0)
            .bind(lease_end(self.now, lease))
            .fetch_optional(&mut *self.inner)
            .await?;
        row.as_ref().map(wishes).transpose()?.ok_or_else(|| lease_lost(fence))
    }

    /// Fails unless the fence still holds: for transactions that record an effect.
    ///
    /// # Errors
    /// `lease_lost`.
    pub async fn require_fence(&mut self, fence: Fence) -> Result<()> {
        let sql = "UPDATE jobs SET version = version + 1 WHERE id = $1 AND token = $2 AND state = 'running' \
             AND lease_until > $3";
        let changed = sqlx::query(sql)
            .bind(fence.job.to_string())
            .bind(fence.token)
            .bind(self.now.0)
            .execute(&mut *self.inner)
            .await?;
        self.touch_job(fence.job);
        require_ours(changed.rows_affected(), fence)
    }

    /// Notes how far a job is, and tells it.
    ///
    /// # Errors
    /// `lease_lost`.
    pub async fn record_progress(&mut self, fence: Fence, progress: &JobProgress) -> Result<()> {
        self.set_progress(fence, progress).await?;
        self.job_event(EventKind::JobProgress, fence.job).await.map(drop)
    }

    /// Notes how far a job is.
    ///
    /// # Errors
    /// `lease_lost`.
    pub async fn set_progress(&mut self, fence: Fence, progress: &JobProgress) -> Result<()> {
        let sql = "UPDATE jobs SET done_bytes = $4, total_bytes = $5, bytes_per_second = $6, version = version + 1 \
             WHERE id = $1 AND token = $2 AND state = 'running' AND lease_until > $3";
        let changed = sqlx::query(sql)
            .bind(fence.job.to_string())
            .bind(fence.token)
            .bind(self.now.0)
            .bind(shown(progress.done_bytes))
            .bind(progress.total_bytes.map(shown))
            .bind(progress.bytes_per_second.map(shown))
            .execute(&mut *self.inner)
            .await?;
        require_ours(changed.rows_affected(), fence)
    }

    /// Adds a line to a job's log.
    ///
    /// # Errors
    /// `lease_lost`.
    pub async fn record_step(&mut self, fence: Fence, text: &str) -> Result<()> {
        self.require_fence(fence).await?;
        self.note_step(fence.job, text).await
    }

    /// Ends a job: its locks go, and so does what it had reserved and not published.
    ///
    /// # Errors
    /// `lease_lost`.
    pub async fn finish(&mut self, fence: Fence, ending: &Ending) -> Result<Job> {
        let (state, result, code, detail) = match ending {
            Ending::Succeeded(result) => ("succeeded", Some(json_text(result)?), None, None),
            Ending::Failed(error) => {
                // Not every database can store U+0000, and a job must end.
                let detail = error.public.replace('\0', "\\0");
                ("failed", None, Some(error.code.as_str()), Some(detail))
            }
            Ending::Cancelled => ("cancelled", None, None, None),
        };
        let sql = concat!(
            "UPDATE jobs SET state = $3, wish = 'run', result = $4, error_code = $5, error_detail = $6, finished_at = $7, \
             worker = NULL, lease_until = NULL, reserved_bytes = 0, version = version + 1 \
             WHERE id = $1 AND token = $2 AND state = 'running' AND lease_until > $7 RETURNING ",
            job_columns!()
        );
        let row = sqlx::query(sql)
            .bind(fence.job.to_string())
            .bind(fence.token)
            .bind(state)
            .bind(result)
            .bind(code)
            .bind(detail)
            .bind(self.now.0)
            .fetch_optional(&mut *self.inner)
            .await?;
        let job = job(&row.ok_or_else(|| lease_lost(fence))?)?;
        self.let_go(fence.job).await?;
        self.event_of(EventKind::JobState, job).await
    }

    /// Gives a job back to the queue unharmed; this start does not count.
    ///
    /// # Errors
    /// `lease_lost`.
    pub async fn hand_back(&mut self, fence: Fence, delay: Duration) -> Result<()> {
        self.require_fence(fence).await?;
        let sql = "UPDATE jobs SET state = 'queued', attempt = attempt - 1, worker = NULL, lease_until = NULL, \
             run_after = $2 WHERE id = $1";
        sqlx::query(sql)
            .bind(fence.job.to_string())
            .bind(self.due_after(delay).0)
            .execute(&mut *self.inner)
            .await?;
        self.touch_queue();
        self.job_event(EventKind::JobState, fence.job).await.map(drop)
    }

    /// Makes every job in the queue due: those of which an older program, or a clock that ran ahead, says that they are to run later.
    pub async fn end_delays(&mut self) -> Result<()> {
        let sql = "UPDATE jobs SET run_after = 0 WHERE state = 'queued' AND run_after > $1";
        sqlx::query(sql).bind(self.now.0).execute(&mut *self.inner).await?;
        Ok(())
    }

    /// Makes every running job claimable at once: only right when no other process can run any.
    pub async fn expire_all_leases(&mut self) -> Result<u64> {
        let sql = "UPDATE jobs SET lease_until = 0 WHERE state = 'running'";
        Ok(sqlx::query(sql).execute(&mut *self.inner).await?.rows_affected())
    }

    /// Releases what an ended job held.
    pub(super) async fn let_go(&mut self, job: JobId) -> Result<()> {
        self.unlock(job).await?;
        self.drop_journal(job).await?;
        self.delete_reserved(job).await
    }
}

impl Store {
    /// What the user wants of a running job; `None` when it is no longer this worker's.
    pub async fn wishes(&self, fence: Fence) -> Result<Option<Wishes>> {
        let sql = "SELECT wish, rate_limit FROM jobs WHERE id = $1 AND token = $2 AND state = 'running'";
        let row = sqlx::query(sql)
            .bind(fence.job.to_string())
            .bind(fence.token)
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref().map(wishes).transpose()
    }
}

/// A number that is only for show: one that the database cannot hold does not fail a job.
fn shown(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Whether a write that the fence guards found its row.
pub(super) fn require_ours(rows: u64, fence: Fence) -> Result<()> {
    if rows == 1 { Ok(()) } else { Err(lease_lost(fence)) }
}

fn wishes(row: &sqlx::any::AnyRow) -> Result<Wishes> {
    Ok(Wishes {
        wish: Wish::parse(&row.text("wish")?)?,
        rate_limit: row.size_or_null("rate_limit")?,
    })
}

impl Ending {
    /// The ending that an error means: `cancelled` ends on request, everything else fails.
    pub fn of_error(error: ServiceError) -> Self {
        if error.code == ErrorCode::Cancelled {
            Self::Cancelled
        } else {
            Self::Failed(error)
        }
    }
}
