//! Locks of requests: held while a request works on an image, let go when it ends, lapsing if the process dies.

use std::sync::Arc;

use uuid::Uuid;

use super::Inner;
use crate::error::Result;
use crate::model::ImageId;
use crate::store::Tx;
use crate::store::locks::{Holder, LockMode};

/// Locks that a request holds. Dropping it lets them go a little later.
pub struct RequestLocks {
    inner: Arc<Inner>,
    /// The holder, which may also reserve images.
    pub id: Uuid,
    released: bool,
}

impl RequestLocks {
    /// A holder without locks yet.
    pub fn new(inner: &Arc<Inner>) -> Self {
        Self {
            inner: inner.clone(),
            id: Uuid::now_v7(),
            released: false,
        }
    }

    /// Takes locks inside a transaction.
    ///
    /// # Errors
    /// `image_busy`.
    pub async fn take(&self, tx: &mut Tx, wanted: &[(ImageId, LockMode)]) -> Result<()> {
        let expires = tx.now.after(self.inner.config.lease);
        let holder = Holder::Request {
            id: self.id,
            process: self.inner.process,
            expires,
        };
        tx.lock_images(holder, wanted).await
    }

    /// Takes shared locks on a chain of images.
    ///
    /// # Errors
    /// `image_busy`.
    pub async fn share(inner: &Arc<Inner>, images: impl Iterator<Item = ImageId>) -> Result<Self> {
        let locks = Self::new(inner);
        let wanted: Vec<_> = images.map(|image| (image, LockMode::Shared)).collect();
        let mut tx = inner.store.begin().await?;
        locks.take(&mut tx, &wanted).await?;
        tx.commit().await?;
        Ok(locks)
    }

    /// Lets go as part of the transaction that records what was done, and commits it.
    pub async fn release_and_commit(mut self, mut tx: Tx) -> Result<()> {
        tx.unlock(self.id).await?;
        tx.commit().await?;
        self.released = true;
        Ok(())
    }
}

impl Drop for RequestLocks {
    fn drop(&mut self) {
        let (inner, id) = (self.inner.clone(), self.id);
        if self.released {
            return;
        }
        // Without a runtime the process is ending, and the locks lapse by themselves.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let released = async {
                    let mut tx = inner.store.begin().await?;
                    tx.unlock(id).await?;
                    tx.commit().await
                };
                let released: Result<()> = released.await;
                if let Err(error) = released {
                    tracing::debug!(%error, "a request's locks were not released; they will lapse");
                }
            });
        }
    }
}
