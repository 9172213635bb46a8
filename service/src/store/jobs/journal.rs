//! What a job keeps for the attempt after it.

use serde::{Deserialize, Serialize};

use super::Fence;
use super::claim::require_ours;
use crate::error::Result;
use crate::model::JobId;
use crate::store::row::{Columns, json_text};
use crate::store::{Store, Tx};

/// The state of a job's work that another attempt can go on from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalEntry {
    /// The file that is being filled.
    pub filling: Option<FillingEntry>,
    /// Digest of what the guest saw before the job began, in hex.
    pub digest_before: Option<String>,
    /// Virtual size of the image before the job began.
    pub size_before: Option<u64>,
    /// Key slots that were in use before the job added a key.
    pub slots_before: Option<Vec<u32>>,
    /// Key slots that are being erased.
    pub erasing: Option<Vec<u32>>,
}

/// How far a new file is filled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FillingEntry {
    /// Pool that holds it.
    pub pool: String,
    /// Its temporary name.
    pub file: String,
    /// What it was filled from and by: an attempt that would do it otherwise starts anew.
    pub binding: String,
    /// Everything before this guest byte is stable.
    pub done: u64,
    /// Nothing from this guest byte on was touched.
    pub next: u64,
}

impl Tx {
    /// Replaces what the job keeps.
    ///
    /// # Errors
    /// `lease_lost`.
    pub async fn write_journal(&mut self, fence: Fence, entry: &JournalEntry) -> Result<()> {
        let sql = "INSERT INTO job_journal (job_id, entry) SELECT id, CAST($4 AS TEXT) FROM jobs \
             WHERE id = $1 AND token = $2 AND state = 'running' AND lease_until > $3 \
             ON CONFLICT (job_id) DO UPDATE SET entry = excluded.entry";
        let changed = sqlx::query(sql)
            .bind(fence.job.to_string())
            .bind(fence.token)
            .bind(self.now.0)
            .bind(json_text(entry)?)
            .execute(&mut *self.inner)
            .await?;
        require_ours(changed.rows_affected(), fence)
    }

    pub(super) async fn drop_journal(&mut self, job: JobId) -> Result<()> {
        let sql = "DELETE FROM job_journal WHERE job_id = $1";
        sqlx::query(sql).bind(job.to_string()).execute(&mut *self.inner).await?;
        Ok(())
    }

    /// Notes how much space a job will need in its pool, 0 to give it back.
    ///
    /// # Errors
    /// `lease_lost`.
    pub async fn reserve_space(&mut self, fence: Fence, bytes: u64) -> Result<()> {
        let sql = "UPDATE jobs SET reserved_bytes = $4, version = version + 1 \
             WHERE id = $1 AND token = $2 AND state = 'running' AND lease_until > $3";
        let changed = sqlx::query(sql)
            .bind(fence.job.to_string())
            .bind(fence.token)
            .bind(self.now.0)
            .bind(crate::store::row::stored(bytes)?)
            .execute(&mut *self.inner)
            .await?;
        self.touch_job(fence.job);
        require_ours(changed.rows_affected(), fence)
    }

    /// What the other jobs of a pool have reserved, by job. Those that have ended have nothing.
    pub async fn reservations(&mut self, pool: &str, except: JobId) -> Result<Vec<(JobId, u64)>> {
        let sql = "SELECT id, reserved_bytes FROM jobs WHERE pool = $1 AND id <> $2 AND reserved_bytes > 0";
        let rows = sqlx::query(sql)
            .bind(pool)
            .bind(except.to_string())
            .fetch_all(&mut *self.inner)
            .await?;
        rows.iter()
            .map(|row| Ok((row.id("id")?, row.size("reserved_bytes")?)))
            .collect()
    }
}

impl Store {
    /// What the job keeps.
    pub async fn journal(&self, job: JobId) -> Result<JournalEntry> {
        let sql = "SELECT entry FROM job_journal WHERE job_id = $1";
        let row = sqlx::query(sql)
            .bind(job.to_string())
            .fetch_optional(&self.readers)
            .await?;
        row.map_or(Ok(JournalEntry::default()), |row| row.json("entry"))
    }

    /// The unfinished files of a pool that open jobs can go on with.
    pub async fn files_to_go_on_with(&self, pool: &str) -> Result<Vec<String>> {
        let sql =
            "SELECT n.entry FROM job_journal n JOIN jobs j ON j.id = n.job_id WHERE j.state IN ('queued', 'running')";
        let rows = sqlx::query(sql).fetch_all(&self.readers).await?;
        let entries: Vec<JournalEntry> = rows.iter().map(|row| row.json("entry")).collect::<Result<_>>()?;
        let files = entries.into_iter().filter_map(|entry| entry.filling);
        Ok(files
            .filter(|filling| filling.pool == pool)
            .map(|filling| filling.file)
            .collect())
    }
}
