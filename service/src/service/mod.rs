//! The object both transports call. One file a noun.

mod access;
mod audit;
mod background;
mod chains;
mod events;
mod formats;
mod images;
mod imports;
mod inspect;
mod jobs;
#[cfg(test)]
mod lock_tests;
mod locks;
mod look;
mod notice;
mod open;
mod paging;
mod plans;
#[cfg(test)]
mod pool_tests;
mod pools;
#[cfg(test)]
mod postgres_tests;
#[cfg(test)]
mod read_tests;
mod receive;
#[cfg(test)]
mod recover_tests;
mod secrets;
mod snapshots;
mod statistics;
mod stream;
#[cfg(test)]
mod test_service;
mod transfer;
mod upload;
mod verbs;
mod webhooks;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use vdisk_engine::Limits;

use crate::config::ServiceConfig;
use crate::disk::{Layer, OpenSecrets};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::{AuditEntry, ImageId, JobId};
use crate::pool::{Alone, PoolFolder};
use crate::queue::{Pulse, Running, StopReason};
use crate::request::SecretRefs;
use crate::secrets::Vault;
use crate::store::Store;
use crate::store::images::ImageRecord;

pub use access::TokenText;
pub use audit::Audited;
pub use chains::ExtentStream;
pub(crate) use look::Wanted;
pub use transfer::{Content, Download};
pub(crate) use upload::take_back;

/// How long jobs that were told to stop may take until they have, and how long the database until it is closed.
const HAND_BACK: Duration = Duration::from_secs(10);
const CLOSING: Duration = Duration::from_secs(5);

/// Disk-image management, ready to be called from any thread. Clones are handles to the same service.
#[derive(Clone)]
pub struct Service {
    inner: Arc<Inner>,
}

/// What the service's parts share.
pub struct Inner {
    pub(crate) config: ServiceConfig,
    pub(crate) store: Store,
    /// Keeps the leases of running jobs.
    pub(crate) pulse: Pulse,
    pub(crate) pools: BTreeMap<String, Arc<PoolFolder>>,
    pub(crate) vault: Vault,
    /// Bounds that go with every open.
    pub(crate) limits: Limits,
    /// This start of this process, as the database knows it.
    pub(crate) process: Uuid,
    pub(crate) stop: CancellationToken,
    /// For bodies that are open.
    places: Arc<Semaphore>,
    audit: mpsc::Sender<AuditEntry>,
    running: Mutex<HashMap<JobId, Running>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    /// Held as long as this process owns the data folder.
    _owner: Option<Alone>,
}

impl Service {
    /// Stops taking jobs, waits up to `grace` for those that run, and hands the rest back to the queue. What does not
    /// stop then, or keeps the database, is left behind after some seconds: its jobs are taken over as from a process
    /// that died.
    pub async fn shutdown(&self, grace: Duration) {
        self.inner.stop.cancel();
        let tasks = std::mem::take(&mut *lock(&self.inner.tasks));
        let mut all = std::pin::pin!(futures::future::join_all(tasks));
        if tokio::time::timeout(grace, &mut all).await.is_err() {
            self.inner.stop_running(StopReason::Shutdown);
            if tokio::time::timeout(HAND_BACK, all).await.is_err() {
                tracing::warn!("some jobs did not stop in time; they are left to be taken over");
                // The leases end here: nothing may be written from now on.
                self.inner.stop_running(StopReason::LeaseLost);
            }
        }
        let closing = async {
            self.inner.pulse.end().await;
            self.inner.store.close().await;
        };
        if tokio::time::timeout(CLOSING, closing).await.is_err() {
            tracing::warn!("the database is still in use; it is not waited for");
        }
    }

    /// Whether requests can be served now: the database answers and the pools are there.
    ///
    /// # Errors
    /// [`ErrorCode::Unavailable`] with what is wrong.
    pub async fn ready(&self) -> Result<()> {
        if self.inner.stop.is_cancelled() {
            return Err(ServiceError::new(ErrorCode::Unavailable, "the service is stopping"));
        }
        self.inner.store.ping().await?;
        for pool in self.inner.pools.values() {
            pool.space().map_err(|error| ServiceError {
                code: ErrorCode::Unavailable,
                ..error
            })?;
        }
        Ok(())
    }

    /// The configuration the service was opened with.
    pub fn config(&self) -> &ServiceConfig {
        &self.inner.config
    }
}

impl Inner {
    /// The jobs that run in this process.
    pub(crate) fn running(&self) -> MutexGuard<'_, HashMap<JobId, Running>> {
        lock(&self.running)
    }

    fn stop_running(&self, reason: StopReason) {
        for running in self.running().values() {
            running.control.stop(reason);
        }
    }

    /// Makes the supervisor of a job look at its row now, if the job runs here.
    pub(crate) fn poke(&self, job: JobId) {
        if let Some(running) = self.running().get(&job) {
            running.poked.notify_one();
        }
    }

    /// The chain of an image with the folders of its files.
    pub(crate) async fn layers(&self, image: ImageId) -> Result<Vec<Layer>> {
        let chain = self.store.chain(image, self.config.limits.chain_depth).await?;
        self.with_folders(chain).await
    }

    /// Records with the folders of their files, and what opens them.
    pub(crate) async fn with_folders(&self, chain: Vec<ImageRecord>) -> Result<Vec<Layer>> {
        let mut layers = Vec::with_capacity(chain.len());
        for record in chain {
            let pool = self.pool(&record.image.pool)?;
            let keys = self.open_secrets(&record.image.secrets).await?;
            layers.push(Layer {
                record,
                pool,
                keys,
                first_write: None,
            });
        }
        Ok(layers)
    }

    /// A record with the folder of its file, for what needs no key.
    ///
    /// # Errors
    /// `not_found` when its pool is not configured.
    pub(crate) fn without_keys(&self, record: ImageRecord) -> Result<Layer> {
        Ok(Layer {
            pool: self.pool(&record.image.pool)?,
            keys: OpenSecrets::default(),
            first_write: None,
            record,
        })
    }

    /// The folder of a pool.
    ///
    /// # Errors
    /// `not_found`.
    pub(crate) fn pool(&self, name: &str) -> Result<Arc<PoolFolder>> {
        self.pools
            .get(name)
            .cloned()
            .ok_or_else(|| ServiceError::no_such_name("pool", name))
    }

    /// The values of the secrets that a request named.
    pub(crate) async fn open_secrets(&self, refs: &SecretRefs) -> Result<OpenSecrets> {
        let mut opened = OpenSecrets::default();
        for (name, id) in refs {
            let sealed = self.store.sealed_secret(*id).await?;
            opened
                .values
                .insert(name.clone(), self.vault.open_secret(*id, &sealed)?);
        }
        Ok(opened)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
