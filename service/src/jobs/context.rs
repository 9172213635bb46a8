mod changes;
mod leaks;

use std::sync::Arc;
use std::time::{Duration, Instant};

use vdisk_engine::{Chain, Control};

use crate::disk::{Layer, OpenSecrets, Opening, open_chain};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::fault::{Step, around};
use crate::model::{ImageId, JobId, SecretId};
use crate::pool::{FileName, PoolFolder};
use crate::queue::{JobControl, StopReason};
use crate::request::SecretRefs;
use crate::service::Inner;
use crate::store::Tx;
use crate::store::images::ImageRecord;
use crate::store::jobs::{Claimed, Fence, JournalEntry};

pub use changes::{BeginAsHolder, ChangeRequest, Left, changed_by_then, close_abandoned, to_change};

/// How long a job waits for somebody who just reads the image's metadata, or for a dying worker's file locks.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// What a running job has at hand.
#[derive(Clone)]
pub struct JobContext {
    /// The service.
    pub inner: Arc<Inner>,
    fence: Fence,
    control: Arc<JobControl>,
}

impl JobContext {
    /// For a job that was claimed.
    pub fn new(inner: Arc<Inner>, claimed: &Claimed, control: Arc<JobControl>) -> Self {
        Self {
            inner,
            fence: claimed.fence,
            control,
        }
    }

    /// The job.
    pub fn job(&self) -> JobId {
        self.fence.job
    }

    /// The name that a new image's file gets from this attempt.
    pub fn new_file_name(&self, image: ImageId) -> String {
        FileName::published(image, self.fence.token)
    }

    /// Adds a line to the job's log.
    ///
    /// # Errors
    /// `lease_lost`.
    pub async fn step(&self, text: &str) -> Result<()> {
        let mut tx = self.inner.store.begin().await?;
        tx.record_step(self.fence, text).await?;
        tx.commit_as(Step::NoteStep).await
    }

    /// Runs engine code on a thread of its own.
    ///
    /// # Errors
    /// What the work says; `cancelled` when the job was told to stop.
    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Control) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let control = self.control.for_engine();
        let span = tracing::Span::current();
        let done = tokio::task::spawn_blocking(move || span.in_scope(|| work(&control))).await;
        done.map_err(|error| ServiceError::internal(format!("the job's thread ended: {error}")))?
    }

    /// Last question before something becomes visible: is the job still ours, and still wanted?
    ///
    /// # Errors
    /// `lease_lost`, `cancelled`.
    pub async fn require_lease(&self) -> Result<()> {
        self.control.for_engine().check_cancelled()?;
        let mut tx = self.inner.store.begin().await?;
        tx.renew(self.fence, self.inner.config.lease).await?;
        tx.commit_as(Step::RenewLease).await
    }

    /// The chain of an image as the inventory has it, for this job to change.
    pub async fn layers(&self, image: ImageId) -> Result<Vec<Layer>> {
        Ok(self.to_change(self.inner.layers(image).await?))
    }

    /// The values of the secrets that a request named. Deriving keys from them ends when the job is told to stop.
    pub async fn secrets(&self, refs: &SecretRefs) -> Result<OpenSecrets> {
        let secrets = self.inner.open_secrets(refs).await?;
        Ok(secrets.until(&self.control.for_engine()))
    }

    /// A transaction of a job that is still ours.
    ///
    /// # Errors
    /// `lease_lost`.
    pub async fn begin(&self) -> Result<Tx> {
        let mut tx = self.inner.store.begin().await?;
        tx.require_fence(self.fence).await?;
        Ok(tx)
    }

    /// Lets an image name another secret in a role, if it names the old one there.
    ///
    /// # Errors
    /// `not_found` when the new secret is gone; `lease_lost`.
    pub async fn name_secret(&self, image: ImageId, role: &str, old: SecretId, new: SecretId) -> Result<()> {
        let mut tx = self.begin().await?;
        tx.replace_role(image, role, old, new).await?;
        tx.commit_as(Step::UpdateImage).await
    }

    /// Removes what an earlier attempt of this job left, but for the file that it can go on with, and brings back what it was about to
    /// delete.
    pub async fn sweep(&self) -> Result<()> {
        if self.fence.is_first() {
            return undelete(&self.inner, self.job()).await;
        }
        sweep(&self.inner, self.job()).await
    }

    /// What this attempt has kept so far, and those before it.
    pub async fn journal(&self) -> Result<JournalEntry> {
        self.inner.store.journal(self.job()).await
    }

    /// Keeps this for the next attempt.
    ///
    /// # Errors
    /// `lease_lost`.
    pub async fn keep(&self, entry: &JournalEntry) -> Result<()> {
        let mut tx = self.inner.store.begin().await?;
        tx.write_journal(self.fence, entry).await?;
        tx.commit_as(Step::WriteJournal).await
    }

    /// Makes sure that what the job writes has room in a pool beside what other jobs there were promised and have not written yet, and adds
    /// to the job's log what is done with it.
    ///
    /// # Errors
    /// `insufficient_storage`, `lease_lost`.
    pub async fn reserve(&self, pool: &PoolFolder, bytes: u64, doing: &str) -> Result<()> {
        let mut tx = self.inner.store.begin().await?;
        let reservations = tx.reservations(pool.name(), self.job()).await?;
        let mut promised = reservations
            .iter()
            .fold(0_u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
        let free = pool.space()?.free;
        // Only where it is tight the pool is searched for what they have written.
        if bytes > free.saturating_sub(promised) {
            promised = 0;
            for (job, reserved) in reservations {
                let written = pool.staged_bytes(job)?.saturating_add(grown(&mut tx, pool, job).await?);
                promised = promised.saturating_add(reserved.saturating_sub(written));
            }
        }
        if bytes > free.saturating_sub(promised) {
            let public = format!(
                "the job needs {bytes} bytes; pool '{}' has {free} free, {promised} of them promised to other jobs",
                pool.name()
            );
            return Err(ServiceError::new(ErrorCode::InsufficientStorage, public));
        }
        tx.reserve_space(self.fence, bytes).await?;
        tx.note_step(self.job(), doing).await?;
        tx.commit_as(Step::ReserveSpace).await
    }

    /// Whether no attempt was made before this one.
    pub fn is_first(&self) -> bool {
        self.fence.is_first()
    }

    /// Whether the job will go on elsewhere or later: what it has done so far is wanted.
    pub fn is_handed_on(&self) -> bool {
        matches!(
            self.control.stop_reason(),
            Some(StopReason::LeaseLost | StopReason::Shutdown)
        )
    }
}

/// Bytes by which the images of a pool have grown that a job is changing.
async fn grown(tx: &mut Tx, pool: &PoolFolder, job: JobId) -> Result<u64> {
    let mut bytes = 0_u64;
    for record in tx.records_to_change(job).await? {
        if record.image.pool == pool.name()
            && let Some(stat) = pool.stat(&record.file)?
        {
            let now = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
            bytes = bytes.saturating_add(now.saturating_sub(record.image.allocated_size));
        }
    }
    Ok(bytes)
}

/// Before a job's first attempt: there is nothing of its own yet, but a request that died may have put a file of its images aside.
async fn undelete(inner: &Inner, job: JobId) -> Result<()> {
    for record in inner.store.job_records(job).await? {
        let Some(pool) = inner.pools.get(&record.image.pool) else {
            continue;
        };
        if record.reserved_by.is_none()
            && let Some(trash) = pool.aside(record.image.id, &record.file)?
        {
            pool.put_back(&trash, &record.file)?;
        }
    }
    Ok(())
}

/// Before a job ends without success: a new file that got its name and then failed to be what it should goes while the record still
/// tells whose it is. The name is that of this attempt alone, so that a worker that lost its job harms no other.
pub async fn unpublish(inner: &Inner, fence: Fence) {
    let removed = async {
        let ours = fence.job.to_string();
        for record in inner.store.job_records(fence.job).await? {
            let pool = inner.pools.get(&record.image.pool);
            if let Some(pool) = pool.filter(|_| record.reserved_by.as_ref() == Some(&ours)) {
                pool.remove(&FileName::published(record.image.id, fence.token))?;
            }
        }
        Ok::<_, ServiceError>(())
    };
    if let Err(error) = removed.await {
        tracing::warn!(job = %fence.job, %error, "a new file of a job that failed was not removed");
    }
}

/// Removes what a job left that nobody goes on with, and brings back what it was about to delete.
pub async fn sweep(inner: &Inner, job: JobId) -> Result<()> {
    let open = !inner.store.job(job).await?.is_finished();
    let keep = inner.store.journal(job).await?.filling.map(|filling| filling.file);
    let all = inner.store.job_records(job).await?;
    for pool in inner.pools.values() {
        let records: Vec<&ImageRecord> = all.iter().filter(|record| record.image.pool == pool.name()).collect();
        let made = |image| {
            let ours = job.to_string();
            records
                .iter()
                .any(|r| r.image.id == image && r.reserved_by.as_ref() == Some(&ours))
        };
        let names = pool.file_names()?;
        let lost = keep.as_ref().filter(|keep| !names.contains(keep)).cloned();
        for name in names {
            match FileName::parse(&name) {
                FileName::Staged { .. } if keep.as_ref() == Some(&name) => {}
                FileName::Staged { maker, .. } if maker == job => drop(pool.remove(&name)?),
                FileName::Published(image) if made(image) => match &lost {
                    // It had its name, but no record yet: one step back.
                    Some(unfinished) => around(Step::Unpublish, || pool.rename(&name, unfinished, false))?,
                    None => drop(pool.remove(&name)?),
                },
                _ => {}
            }
        }
        for record in records {
            let Some(trash) = pool.aside(record.image.id, &record.file)? else {
                continue;
            };
            let held = match open {
                // The job holds the image: nobody else can have put the file aside.
                true => None,
                false => to_bring_back(inner, record.image.id).await?,
            };
            if open || held.is_some() {
                pool.put_back(&trash, &record.file)?;
            }
        }
    }
    Ok(())
}

/// A transaction in which an image's file that was put aside may come back; none where the image is gone or somebody is deleting it just
/// now, and neither begins before its end.
///
/// # Errors
/// What the database says.
pub async fn to_bring_back(inner: &Inner, image: ImageId) -> Result<Option<Tx>> {
    let mut tx = inner.store.begin().await?;
    let stays = !tx.is_locked_exclusively(image).await? && tx.any_image(image).await?.is_some();
    Ok(stays.then_some(tx))
}

/// Opens a chain, waiting a little for locks of others to go.
///
/// # Errors
/// As [`open_chain`].
pub fn open_patiently(layers: &[Layer], opening: &Opening<'_>, control: &Control) -> Result<Chain> {
    patiently(control, || open_chain(layers, opening))
}

/// For an opening that comes before all changes of an attempt: deriving keys ends when the job is told to stop, if no earlier attempt left
/// something that has to be put in order.
pub fn until_changed(is_first: bool, control: &Control) -> OpenSecrets {
    if is_first {
        OpenSecrets::none_until(control)
    } else {
        OpenSecrets::default()
    }
}

/// Tries to open something, waiting a little for locks of others to go.
///
/// # Errors
/// What the try says.
pub fn patiently<T>(control: &Control, attempt: impl Fn() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(error) if error.code == ErrorCode::ImageBusy && start.elapsed() < LOCK_PATIENCE => {
                control.check_cancelled()?;
                std::thread::sleep(Duration::from_millis(100));
            }
            other => return other,
        }
    }
}

/// The folder of a pool by name.
pub fn pool_of(inner: &Inner, name: &str) -> Result<Arc<PoolFolder>> {
    inner
        .pools
        .get(name)
        .cloned()
        .ok_or_else(|| ServiceError::no_such_name("pool", name))
}
