//! The end of a job: what it did is recorded in the same transaction that ends it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::register::{NamedBase, register};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::fault::Step;
use crate::jobs::{Left, require_unprotected};
use crate::model::{ImageId, Job, JobId, JobProgress, JobState};
use crate::pool::PoolFolder;
use crate::store::images::{Backing, FileFacts, NewImage};
use crate::store::jobs::{Ending, Fence};
use crate::store::{Store, Tx};

/// Between the tries to record what a job did, well within its lease: an overlay that has another base by now is readable by nobody until
/// the inventory knows.
const RECORD_PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];

/// What a job brought about, to be recorded when it ends.
#[derive(Default)]
pub struct Done {
    /// For the user.
    pub result: Value,
    /// For the inventory.
    pub effects: Vec<Effect>,
    /// Files that are visible already and must go if the record cannot be made.
    pub published: Vec<(Arc<PoolFolder>, String)>,
    /// Files that go once the record is made.
    pub obsolete: Vec<(Arc<PoolFolder>, String)>,
}

/// A change of the inventory.
#[derive(Debug)]
pub enum Effect {
    /// The image that the job had reserved is there.
    Published {
        /// The image.
        image: ImageId,
        /// Its file.
        file: String,
        /// What it is like.
        facts: FileFacts,
    },
    /// The file of an image changed.
    Changed {
        /// The image.
        image: ImageId,
        /// What it is like now.
        facts: FileFacts,
        /// Whether the guest sees other bytes.
        new_content: bool,
    },
    /// A file that was found is an image from now on, unless it is one already, is not what was found any more or has lost its base.
    Registered {
        /// Where it lies.
        pool: Arc<PoolFolder>,
        /// The row to make, without its base; its name gets a suffix if it is taken.
        new: Box<NewImage>,
        /// The base that it names.
        base: Option<NamedBase>,
        /// What the file is like.
        facts: FileFacts,
    },
    /// An overlay has another base, or none.
    Rebased {
        /// The overlay.
        image: ImageId,
        /// The base.
        backing: Option<Backing>,
    },
    /// An image is gone.
    Deleted(ImageId),
}

impl Effect {
    async fn record(&self, tx: &mut Tx, job: JobId, result: &mut Value) -> Result<()> {
        match self {
            Self::Published { image, file, facts } => tx.publish_image(*image, job, file, facts).await,
            Self::Changed {
                image,
                facts,
                new_content,
            } => tx.record_change(*image, facts, *new_content).await,
            Self::Registered { pool, new, base, facts } => {
                register(tx, job, pool, (new, base.as_ref()), facts, result).await
            }
            Self::Rebased { image, backing } => tx.set_backing(*image, backing.as_ref()).await,
            Self::Deleted(image) => {
                require_unprotected(&tx.image(*image).await?)?;
                tx.delete_image(*image).await
            }
        }
    }
}

/// Ends a job well, with its effects, or not at all.
///
/// # Errors
/// `lease_lost` when the job is another worker's by now: nothing was recorded, and what was published is removed.
pub async fn succeed(store: &Store, fence: Fence, done: Done, progress: &JobProgress) -> Result<Job> {
    let mut recorded = record(store, fence, &done, progress).await;
    for pause in RECORD_PAUSES {
        match &recorded {
            Err(error) if may_pass(error.code) && !has_succeeded(store, fence).await => {}
            _ => break,
        }
        tokio::time::sleep(pause).await;
        recorded = record(store, fence, &done, progress).await;
    }
    match recorded {
        Ok(job) => {
            remove_files(&done.obsolete);
            Ok(job)
        }
        Err(error) => after_failed_record(store, fence, &done, error).await,
    }
}

/// Whether a database that said this may say something else a moment later.
fn may_pass(code: ErrorCode) -> bool {
    use ErrorCode::{InsufficientStorage, Internal, Io, Unavailable};
    matches!(code, InsufficientStorage | Internal | Io | Unavailable)
}

async fn has_succeeded(store: &Store, fence: Fence) -> bool {
    let job = store.job(fence.job).await;
    job.is_ok_and(|job| job.state == JobState::Succeeded)
}

/// A failed commit may have been carried out all the same: only the database knows. What is on record stays.
async fn after_failed_record(store: &Store, fence: Fence, done: &Done, error: ServiceError) -> Result<Job> {
    match store.job(fence.job).await {
        Ok(job) if job.state == JobState::Succeeded => {
            remove_files(&done.obsolete);
            Ok(job)
        }
        Ok(_) => {
            remove_files(&done.published);
            Err(error)
        }
        // Nothing is known: another attempt, or the next start, finds out.
        Err(_) => Err(ServiceError {
            code: ErrorCode::LeaseLost,
            ..error
        }),
    }
}

async fn record(store: &Store, fence: Fence, done: &Done, progress: &JobProgress) -> Result<Job> {
    let mut tx = store.begin().await?;
    tx.set_progress(fence, progress).await?;
    let mut result = done.result.clone();
    for effect in &done.effects {
        effect.record(&mut tx, fence.job, &mut result).await?;
    }
    let job = tx.finish(fence, &Ending::Succeeded(result)).await?;
    tx.commit_as(Step::SucceedJob).await?;
    Ok(job)
}

/// Ends a job otherwise; `left` is what the images are like that it had begun to change.
///
/// # Errors
/// `lease_lost`.
pub async fn end(store: &Store, fence: Fence, ending: &Ending, left: &[Left]) -> Result<Job> {
    let mut tx = store.begin().await?;
    for (image, found) in left {
        tx.close_change(*image, found.as_ref()).await?;
    }
    let job = tx.finish(fence, ending).await?;
    tx.commit_as(Step::EndJob).await?;
    Ok(job)
}

fn remove_files(files: &[(Arc<PoolFolder>, String)]) {
    for (pool, file) in files {
        if let Err(error) = pool.remove(file) {
            tracing::warn!(pool = pool.name(), file, %error, "a file could not be removed; the next start tries again");
        }
    }
}
