//! Sums for monitoring.

use super::Store;
use super::row::Columns;
use crate::error::Result;
use crate::model::{JobSum, Statistics};

impl Store {
    /// Sums over the inventory and the queue.
    pub async fn statistics(&self) -> Result<Statistics> {
        let mut sums = Statistics::default();
        let images = "SELECT s.state AS state, COUNT(*) AS count FROM (SELECT CASE WHEN i.state = 'ready' AND EXISTS \
             (SELECT 1 FROM image_locks l WHERE l.image_id = i.id AND l.mode = 'exclusive') THEN 'busy' ELSE i.state END \
             AS state FROM images i WHERE i.state <> 'reserved') s GROUP BY s.state";
        for row in sqlx::query(images).fetch_all(&self.readers).await? {
            sums.images.push((row.text("state")?.parse()?, row.size("count")?));
        }
        let jobs = "SELECT j.kind AS kind, j.state AS state, COUNT(*) AS count, CAST(SUM(j.done_bytes) AS BIGINT) AS \
             done_bytes, MIN(j.created_at) AS oldest FROM (SELECT kind, done_bytes, created_at, CASE WHEN wish = 'pause' \
             AND state IN ('queued', 'running') THEN 'paused' ELSE state END AS state FROM jobs) j GROUP BY j.kind, \
             j.state";
        for row in sqlx::query(jobs).fetch_all(&self.readers).await? {
            let sum = JobSum {
                kind: row.text("kind")?.parse()?,
                state: row.text("state")?.parse()?,
                count: row.size("count")?,
                done_bytes: row.size("done_bytes")?,
            };
            if sum.state == crate::model::JobState::Queued {
                let oldest = row.time("oldest")?;
                sums.oldest_queued = Some(sums.oldest_queued.map_or(oldest, |known| known.min(oldest)));
            }
            sums.jobs.push(sum);
        }
        Ok(sums)
    }
}
