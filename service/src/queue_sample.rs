//! A queue with many jobs, for the benchmark of the claim: `cargo bench -p vdisk-service --bench queue`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use crate::clock::SystemClock;
use crate::error::Result;
use crate::fault::Step;
use crate::model::JobState;
use crate::store::{Store, sqlite_url};

const LEASE: Duration = Duration::from_secs(30);

/// A database of its own.
pub struct QueueSample {
    store: Store,
    worker: Uuid,
}

impl QueueSample {
    /// Makes the database `queue.db` in a folder, with jobs that have succeeded and jobs that wait.
    ///
    /// # Errors
    /// What the database says.
    pub async fn new(folder: &Path, finished: u32, queued: u32) -> Result<Self> {
        let store = Store::open(&sqlite_url(&folder.join("queue.db")), Arc::new(SystemClock)).await?;
        let mut tx = store.begin().await?;
        tx.fill_queue(JobState::Succeeded, finished).await?;
        tx.fill_queue(JobState::Queued, queued).await?;
        tx.commit_as(Step::EnqueueJob).await?;
        let worker = Uuid::now_v7();
        Ok(Self { store, worker })
    }

    /// Claims the next job as a worker does; says whether there was one.
    ///
    /// # Errors
    /// What the database says.
    pub async fn claim(&self) -> Result<bool> {
        let mut tx = self.store.begin().await?;
        let claimed = tx.claim(self.worker, LEASE).await?.is_some();
        if claimed {
            tx.commit_as(Step::ClaimJob).await?;
        }
        Ok(claimed)
    }

    /// Finds the next job, and takes it back: the question without the disk.
    ///
    /// # Errors
    /// What the database says.
    pub async fn look(&self) -> Result<bool> {
        let mut tx = self.store.begin().await?;
        Ok(tx.claim(self.worker, LEASE).await?.is_some())
    }
}
