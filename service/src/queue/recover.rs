//! Bringing disk and inventory in line at the start, after whatever ended the process before.

use std::collections::HashMap;
use std::sync::Arc;

use uuid::Uuid;

use super::adopt::adopt;
use crate::error::Result;
use crate::fault::Step;
use crate::jobs::{bring_back, close_abandoned};
use crate::model::{ImageId, ImageState};
use crate::pool::{FileName, PoolFolder};
use crate::service::{Inner, take_back};
use crate::store::images::ImageRecord;
use crate::store::{Database, Tx};

/// Makes dead jobs claimable, frees what dead requests and deliveries held, sweeps what is half made, notes what is missing.
pub async fn recover(inner: &Inner) -> Result<()> {
    // On SQLite nobody else can be alive. On PostgreSQL leases and expiry times tell.
    let alone = inner.store.database() == Database::Sqlite;
    for pool in inner.pools.values() {
        adopt(inner, pool).await?;
    }
    free(inner, alone).await?;
    close_abandoned(inner).await?;
    for pool in inner.pools.values() {
        recover_pool(inner, pool, alone).await?;
    }
    for pool in inner.store.pools_on_record().await? {
        if !inner.pools.contains_key(&pool) {
            tracing::error!(pool, "images of this pool are on record, but it is not configured");
            // Other nodes may have it.
            if alone {
                note_unreachable(inner, &pool).await?;
            }
        }
    }
    Ok(())
}

/// Images whose pool this service does not have. They are ready again when it has.
async fn note_unreachable(inner: &Inner, pool: &str) -> Result<()> {
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

/// Ends what the dead held.
async fn free(inner: &Inner, alone: bool) -> Result<()> {
    let mut tx = inner.store.begin().await?;
    tx.end_delays().await?;
    tx.sweep_request_locks().await?;
    let mut dead = 0;
    if alone {
        dead = tx.expire_all_leases().await?;
        tx.drop_all_request_locks().await?;
        tx.give_back_all_webhooks().await?;
    }
    tx.commit_as(Step::ExpireLeases).await?;
    if dead > 0 {
        tracing::warn!(jobs = dead, "jobs of an ended process will run again");
    }
    Ok(())
}

/// A pool as it was a moment ago. Other processes go on meanwhile: before anything is done about it, the inventory is asked again.
pub struct Seen {
    /// Names of the files.
    pub names: Vec<String>,
    /// Every record.
    pub records: Vec<ImageRecord>,
}

impl Seen {
    /// Looks at a pool: the names first, so that what has a name has a record already.
    pub async fn look(inner: &Inner, pool: &PoolFolder) -> Result<Self> {
        Ok(Self {
            names: pool.file_names()?,
            records: inner.store.pool_records(pool.name()).await?,
        })
    }
}

async fn recover_pool(inner: &Inner, pool: &Arc<PoolFolder>, alone: bool) -> Result<()> {
    let seen = Seen::look(inner, pool).await?;
    bring_in_line(inner, pool, &seen, alone).await
}

/// Brings a pool's folder and its records in line.
pub async fn bring_in_line(inner: &Inner, pool: &PoolFolder, seen: &Seen, alone: bool) -> Result<()> {
    let unfinished = inner.store.files_to_go_on_with(pool.name()).await?;
    let by_id: HashMap<ImageId, &ImageRecord> = seen.records.iter().map(|record| (record.image.id, record)).collect();
    for name in &seen.names {
        let keep = match FileName::parse(name) {
            FileName::Staged { .. } if unfinished.contains(name) => true,
            FileName::Staged { maker, .. } => !alone && is_live(&mut inner.store.begin().await?, maker).await?,
            FileName::Upload(image) => is_uploading(&mut inner.store.begin().await?, image).await?,
            FileName::Trash(file) => {
                undelete(inner, pool, name, &file).await?;
                continue;
            }
            FileName::Published(image) => {
                match by_id.get(&image) {
                    Some(record) if record.image.state == ImageState::Uploading => hide(inner, pool, image).await?,
                    Some(_) => {}
                    None => tracing::warn!(
                        pool = pool.name(),
                        file = name,
                        "a file without a record; a scan registers it"
                    ),
                }
                continue;
            }
            FileName::Hidden | FileName::Foreign => continue,
        };
        if !keep {
            tracing::info!(pool = pool.name(), file = name, "removing an unfinished file");
            pool.remove(name)?;
        }
    }
    drop_dead_reservations(inner, pool, &seen.records).await?;
    note_missing(inner, pool, &seen.records).await
}

/// Whether a job or a request has not ended.
async fn is_live(tx: &mut Tx, maker: Uuid) -> Result<bool> {
    Ok(tx.holds_lock(maker).await? || tx.is_open_job(maker).await?)
}

/// Whether an image waits for its file.
async fn is_uploading(tx: &mut Tx, image: ImageId) -> Result<bool> {
    let record = tx.any_image(image).await?;
    Ok(record.is_some_and(|record| record.image.state == ImageState::Uploading))
}

/// A complete upload that has its name, but no record of that: one step back, so that its client can send it again. The transaction keeps
/// who may be completing it from doing so in between.
async fn hide(inner: &Inner, pool: &PoolFolder, image: ImageId) -> Result<()> {
    let mut tx = inner.store.begin().await?;
    if tx.is_locked_exclusively(image).await? || !is_uploading(&mut tx, image).await? {
        return Ok(());
    }
    take_back(pool, image)
}

/// A file on its way out comes back if its record is still there: the deletion had not been decided.
async fn undelete(inner: &Inner, pool: &PoolFolder, trash: &str, file: &str) -> Result<()> {
    let record = inner.store.begin().await?.image_of_file(pool.name(), file).await?;
    match record {
        Some(record) => bring_back(inner, pool, trash, &record).await,
        None => pool.remove(trash).map(drop),
    }
}

/// Rows that a dead request had reserved, and the file if it had its name already. Jobs keep theirs: they run again.
async fn drop_dead_reservations(inner: &Inner, pool: &PoolFolder, records: &[ImageRecord]) -> Result<()> {
    let open_jobs = inner.store.open_jobs().await?;
    for record in records {
        let Some(holder) = record.reserved_by.as_deref().and_then(|id| id.parse::<Uuid>().ok()) else {
            continue;
        };
        if open_jobs.contains(&holder) {
            continue;
        }
        let mut tx = inner.store.begin().await?;
        let now = tx.any_image(record.image.id).await?;
        let still_reserved = now.is_some_and(|now| now.reserved_by == record.reserved_by);
        if !still_reserved || is_live(&mut tx, holder).await? {
            continue;
        }
        // The file first: without the row nobody knew whose it is.
        let published = FileName::published(record.image.id, 1);
        if record.file == published {
            pool.remove(&published)?;
        }
        tx.delete_reserved(holder).await?;
        tx.forget_outcome(crate::store::idempotency::Outcome::Image(record.image.id))
            .await?;
        tx.commit_as(Step::DropReservation).await?;
    }
    Ok(())
}

async fn note_missing(inner: &Inner, pool: &PoolFolder, records: &[ImageRecord]) -> Result<()> {
    for record in records {
        if changed_state(pool, record)?.is_none() {
            continue;
        }
        let mut tx = inner.store.begin().await?;
        let Some(record) = tx.any_image(record.image.id).await? else {
            continue;
        };
        if let Some((state, problem)) = changed_state(pool, &record)? {
            tracing::warn!(image = %record.image.id, %state, "the state of an image changed while the service was down");
            tx.set_image_state(record.image.id, state, problem).await?;
            tx.commit_as(Step::NoteMissing).await?;
        }
    }
    Ok(())
}

/// The state that an image is in by its file, if its record says otherwise.
fn changed_state(pool: &PoolFolder, record: &ImageRecord) -> Result<Option<(ImageState, Option<&'static str>)>> {
    if record.reserved_by.is_some() {
        return Ok(None);
    }
    let there = pool.stat(&record.file)?.is_some();
    if pool.stat(&FileName::trash(&record.file))?.is_some() {
        return Ok(None); // A job of an ended process put it aside: it runs again, and brings it back.
    }
    Ok(match record.image.state {
        ImageState::Ready | ImageState::Busy if !there => {
            Some((ImageState::Missing, Some("its file is gone from the pool")))
        }
        ImageState::Missing if there => Some((ImageState::Ready, None)),
        _ => None,
    })
}
