//! Locks of requests: held while a request works on an image, and let go when it ends. If the process dies or stands still, others may take
//! them away after a while.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt;
use uuid::Uuid;

use super::Inner;
use crate::error::{ErrorCode, Result, ServiceError};
use crate::fault::Step;
use crate::jobs::BeginAsHolder;
use crate::model::ImageId;
use crate::store::locks::{Holder, LockMode};
use crate::store::{Database, Tx};

/// How long who could not let go waits before trying again.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Locks that a request holds. Dropping it lets them go a little later.
pub struct RequestLocks {
    inner: Arc<Inner>,
    /// The holder, which may also reserve images.
    pub id: Uuid,
    /// Whether there is something to let go.
    held: AtomicBool,
}

impl RequestLocks {
    /// A holder without locks yet.
    pub fn new(inner: &Arc<Inner>) -> Self {
        Self {
            inner: inner.clone(),
            id: Uuid::now_v7(),
            held: AtomicBool::new(false),
        }
    }

    /// Takes locks inside a transaction.
    ///
    /// # Errors
    /// `image_busy`.
    pub async fn take(&self, tx: &mut Tx, wanted: &[(ImageId, LockMode)]) -> Result<()> {
        let shared = self.inner.store.database() == Database::Postgres;
        let expires = shared.then(|| tx.now.after(self.inner.config.lease));
        let holder = Holder::Request {
            id: self.id,
            process: self.inner.process,
            expires,
        };
        tx.lock_images(holder, wanted).await?;
        self.held.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Starts a transaction that records what was done under the locks, or that does something which must not meet another holder.
    ///
    /// # Errors
    /// `lease_lost` when the locks were taken away, because this process stood still for too long.
    pub async fn begin(&self) -> Result<Tx> {
        begin(&self.inner, self.id).await
    }

    /// Starts such transactions from elsewhere.
    pub fn begins(&self) -> BeginAsHolder {
        let (inner, id) = (self.inner.clone(), self.id);
        Arc::new(move || {
            let inner = inner.clone();
            async move { begin(&inner, id).await }.boxed()
        })
    }

    /// Whether locks were taken, if the transaction that took them was carried out.
    pub fn may_be_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    /// Lets go now of what was not let go of yet.
    pub async fn release(self) {
        if self.held.swap(false, Ordering::Relaxed) {
            unlock(&self.inner, self.id).await;
        }
    }

    /// Keeps the locks with a result, lets go of them with an error.
    ///
    /// # Errors
    /// The one that came in.
    pub async fn with<T>(self, outcome: Result<T>) -> Result<(Self, T)> {
        match outcome {
            Ok(value) => Ok((self, value)),
            Err(error) => {
                self.release().await;
                Err(error)
            }
        }
    }

    /// Lets go as part of the transaction that records what was done, and commits it.
    pub async fn release_and_commit(&self, mut tx: Tx, step: Step) -> Result<()> {
        tx.unlock(self.id).await?;
        tx.commit_as(step).await?;
        self.held.store(false, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for RequestLocks {
    fn drop(&mut self) {
        let (inner, id) = (self.inner.clone(), self.id);
        if !self.held.load(Ordering::Relaxed) {
            return;
        }
        // Without a runtime the process is ending: the next start, or another process, takes the locks away.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { unlock(&inner, id).await });
        }
    }
}

async fn begin(inner: &Inner, id: Uuid) -> Result<Tx> {
    let mut tx = inner.store.begin().await?;
    if tx.holds_lock(id).await? {
        return Ok(tx);
    }
    let public = "the request was held up for so long that its image was given to others; try again";
    Err(ServiceError::new(ErrorCode::LeaseLost, public))
}

/// Lets go, now or later: locks of a process that lives do not lapse.
async fn unlock(inner: &Arc<Inner>, id: Uuid) {
    if try_to_unlock(inner, id).await || try_to_unlock(inner, id).await {
        return;
    }
    let inner = inner.clone();
    tokio::spawn(async move {
        let mut pause = FIRST_PAUSE;
        loop {
            tokio::select! {
                // The next start lets go of them.
                () = inner.stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            if try_to_unlock(&inner, id).await {
                return;
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    });
}

async fn try_to_unlock(inner: &Inner, id: Uuid) -> bool {
    let unlocked = async {
        let mut tx = inner.store.begin().await?;
        tx.unlock(id).await?;
        tx.commit_as(Step::ReleaseLocks).await
    };
    let unlocked: Result<()> = unlocked.await;
    unlocked
        .inspect_err(|error| tracing::warn!(%error, "a request's locks were not let go; trying again"))
        .is_ok()
}
