//! Images whose file is not there, and those whose file is there again.

use super::recover::tell;
use crate::error::Result;
use crate::fault::Step;
use crate::model::ImageState;
use crate::pool::PoolFolder;
use crate::service::Inner;
use crate::store::images::ImageRecord;

/// Images whose pool this service does not have. They are ready again when it has.
pub async fn note_unreachable(inner: &Inner, pool: &str) -> Result<()> {
    let records = inner.store.pool_records(pool).await?;
    let shown = |record: &&ImageRecord| matches!(record.image.state, ImageState::Ready | ImageState::Busy);
    let mut tx = inner.store.begin().await?;
    for record in records
        .iter()
        .filter(|record| record.reserved_by.is_none())
        .filter(shown)
    {
        let problem = Some("its pool is not configured");
        tx.set_image_state(record.image.id, ImageState::Missing, problem)
            .await?;
    }
    tx.commit_as(Step::NoteMissing).await
}

/// Puts the state of each image right by its file.
pub async fn note_missing(inner: &Inner, pool: &PoolFolder, records: &[ImageRecord]) -> Result<()> {
    for record in records {
        if change_of(pool, record).is_none() {
            continue;
        }
        let mut tx = inner.store.begin().await?;
        let Some(record) = tx.any_image(record.image.id).await? else {
            continue;
        };
        let Some(change) = change_of(pool, &record) else {
            continue;
        };
        // A job of an ended process put it aside: it runs again, and brings it back.
        if change.is_aside && tx.is_locked_exclusively(record.image.id).await? {
            continue;
        }
        let Change { state, problem, .. } = change;
        tracing::warn!(image = %record.image.id, %state, "the state of an image changed while the service was down");
        tx.set_image_state(record.image.id, state, problem).await?;
        tx.commit_as(Step::NoteMissing).await?;
    }
    Ok(())
}

/// What the file of an image says about its state.
struct Change {
    state: ImageState,
    problem: Option<&'static str>,
    /// Whether the file is there under the name that it has while it is deleted.
    is_aside: bool,
}

/// The state that an image is in by its file, if its record says otherwise.
fn change_of(pool: &PoolFolder, record: &ImageRecord) -> Option<Change> {
    changed_state(pool, record).unwrap_or_else(|error| {
        tell(pool, &record.file, &error);
        None
    })
}

fn changed_state(pool: &PoolFolder, record: &ImageRecord) -> Result<Option<Change>> {
    if record.reserved_by.is_some() {
        return Ok(None);
    }
    let there = pool.stat(&record.file)?.is_some();
    Ok(match record.image.state {
        ImageState::Ready | ImageState::Busy if !there => {
            let is_aside = pool.aside(record.image.id, &record.file)?.is_some();
            let problem = match is_aside {
                true => "its file is aside, and could not be brought back",
                false => "its file is gone from the pool",
            };
            Some(Change {
                state: ImageState::Missing,
                problem: Some(problem),
                is_aside,
            })
        }
        ImageState::Missing if there => Some(Change {
            state: ImageState::Ready,
            problem: None,
            is_aside: false,
        }),
        _ => None,
    })
}
