//! Locks on images: shared for every layer that is read, exclusive for what is changed.
//!
//! A job takes its locks when it is queued and keeps them until it ends, so that what was checked then still holds
//! when it runs. A request's locks last until it ends too. Where several processes share the database they have a time as well, which
//! their process moves on: past it they are still held, but who wants the image may take them away. So a lock that is there is held, and
//! who finds its own gone must not go on.

use uuid::Uuid;

use super::{Store, Tx};
use crate::clock::Timestamp;
use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::{ImageId, JobId};

/// How an image is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LockMode {
    /// Read; others may read too.
    Shared,
    /// Changed; nobody else may hold it.
    Exclusive,
}

/// Who holds a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A job, until it ends.
    Job(JobId),
    /// A request of a process, until it is done.
    Request {
        /// Id of this use.
        id: Uuid,
        /// The process that renews it.
        process: Uuid,
        /// From when on others may take it away; `None` where there are no others.
        expires: Option<Timestamp>,
    },
}

impl LockMode {
    fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Exclusive => "exclusive",
        }
    }
}

impl Holder {
    fn id(self) -> Uuid {
        match self {
            Self::Job(id) | Self::Request { id, .. } => id,
        }
    }
}

impl Store {
    /// Whether a holder may change any image.
    pub async fn holds_exclusively(&self, holder: Uuid) -> Result<bool> {
        let sql = "SELECT image_id FROM image_locks WHERE holder = $1 AND mode = 'exclusive' LIMIT 1";
        let lock = sqlx::query(sql)
            .bind(holder.to_string())
            .fetch_optional(&self.readers)
            .await?;
        Ok(lock.is_some())
    }
}

impl Tx {
    /// Takes locks for a holder, all or none. An image named twice gets the stronger mode.
    ///
    /// # Errors
    /// `image_busy` when another holder is in the way.
    pub async fn lock_images(&mut self, holder: Holder, wanted: &[(ImageId, LockMode)]) -> Result<()> {
        let mut wanted = wanted.to_vec();
        wanted.sort_unstable_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
        wanted.dedup_by_key(|(image, _)| *image);
        for (image, mode) in wanted {
            let mut blocked = self.is_lock_blocked(image, mode, holder.id()).await?;
            if blocked && self.sweep_request_locks().await? {
                blocked = self.is_lock_blocked(image, mode, holder.id()).await?;
            }
            if blocked {
                let public = format!("image {image} is in use by another job or request; wait for it to end");
                return Err(ServiceError::new(ErrorCode::ImageBusy, public));
            }
            self.insert_lock(holder, image, mode).await?;
        }
        Ok(())
    }

    async fn is_lock_blocked(&mut self, image: ImageId, mode: LockMode, holder: Uuid) -> Result<bool> {
        // Who reads is not in the way of who reads, and there may be many.
        let sql = match mode {
            LockMode::Shared => {
                "SELECT holder FROM image_locks WHERE image_id = $1 AND mode = 'exclusive' AND holder <> $2 LIMIT 1"
            }
            LockMode::Exclusive => "SELECT holder FROM image_locks WHERE image_id = $1 AND holder <> $2 LIMIT 1",
        };
        let blocker = sqlx::query(sql)
            .bind(image.to_string())
            .bind(holder.to_string())
            .fetch_optional(&mut *self.inner)
            .await?;
        Ok(blocker.is_some())
    }

    async fn insert_lock(&mut self, holder: Holder, image: ImageId, mode: LockMode) -> Result<()> {
        let (job, process, expires) = match holder {
            Holder::Job(id) => (Some(id.to_string()), None, None),
            Holder::Request { process, expires, .. } => (None, Some(process.to_string()), expires.map(|at| at.0)),
        };
        let sql = "INSERT INTO image_locks (image_id, holder, mode, job_id, process, expires_at) \
             VALUES ($1, $2, $3, $4, $5, $6)";
        sqlx::query(sql)
            .bind(image.to_string())
            .bind(holder.id().to_string())
            .bind(mode.as_str())
            .bind(job)
            .bind(process)
            .bind(expires)
            .execute(&mut *self.inner)
            .await?;
        Ok(())
    }

    /// Lets go of everything a holder has.
    pub async fn unlock(&mut self, holder: Uuid) -> Result<()> {
        let sql = "DELETE FROM image_locks WHERE holder = $1 RETURNING image_id, mode";
        let freed = sqlx::query(sql)
            .bind(holder.to_string())
            .fetch_all(&mut *self.inner)
            .await?;
        self.tell_freed(&freed).await
    }

    /// Prolongs the locks of a process's requests that nobody took away, however late it is.
    pub async fn renew_request_locks(&mut self, process: Uuid, expires: Timestamp) -> Result<()> {
        sqlx::query("UPDATE image_locks SET expires_at = $1 WHERE process = $2 AND expires_at IS NOT NULL")
            .bind(expires.0)
            .bind(process.to_string())
            .execute(&mut *self.inner)
            .await?;
        Ok(())
    }

    /// Takes away what the requests hold whose processes did not prolong it in time. The locks of a request are taken and prolonged
    /// together, and so they go together.
    pub async fn sweep_request_locks(&mut self) -> Result<bool> {
        let swept = sqlx::query("DELETE FROM image_locks WHERE expires_at <= $1 RETURNING image_id, mode")
            .bind(self.now.0)
            .fetch_all(&mut *self.inner)
            .await?;
        self.tell_freed(&swept).await?;
        Ok(!swept.is_empty())
    }

    /// Lets go of every request's locks: only right when no other process can have any.
    pub async fn drop_all_request_locks(&mut self) -> Result<()> {
        let freed = sqlx::query("DELETE FROM image_locks WHERE job_id IS NULL RETURNING image_id, mode")
            .fetch_all(&mut *self.inner)
            .await?;
        self.tell_freed(&freed).await
    }

    /// Whether anybody is changing an image.
    pub async fn is_locked_exclusively(&mut self, image: ImageId) -> Result<bool> {
        self.is_lock_blocked(image, LockMode::Shared, Uuid::nil()).await
    }

    /// Whether a request's lock is still held.
    pub async fn holds_lock(&mut self, holder: Uuid) -> Result<bool> {
        let held = sqlx::query("SELECT image_id FROM image_locks WHERE holder = $1 LIMIT 1")
            .bind(holder.to_string())
            .fetch_optional(&mut *self.inner)
            .await?;
        Ok(held.is_some())
    }
}
