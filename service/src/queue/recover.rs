//! Bringing disk and inventory in line at the start, after whatever ended the process before.

use std::collections::HashMap;
use std::sync::Arc;

use uuid::Uuid;

use crate::error::Result;
use crate::fault::Step;
use crate::jobs::bring_back;
use crate::model::{ImageId, ImageState};
use crate::pool::{FileName, PoolFolder};
use crate::service::{Inner, take_back};
use crate::store::Database;
use crate::store::images::ImageRecord;

/// Makes dead jobs claimable, frees what dead requests and deliveries held, sweeps what is half made, notes what is missing.
pub async fn recover(inner: &Inner) -> Result<()> {
    // On SQLite nobody else can be alive. On PostgreSQL leases and expiry times tell.
    let alone = inner.store.database() == Database::Sqlite;
    if alone {
        let mut tx = inner.store.begin().await?;
        let dead = tx.expire_all_leases().await?;
        tx.drop_all_request_locks().await?;
        tx.give_back_all_webhooks().await?;
        tx.commit_as(Step::ExpireLeases).await?;
        if dead > 0 {
            tracing::warn!(jobs = dead, "jobs of an ended process will run again");
        }
    }
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

async fn recover_pool(inner: &Inner, pool: &Arc<PoolFolder>, alone: bool) -> Result<()> {
    let records = inner.store.pool_records(pool.name()).await?;
    let open_jobs = inner.store.open_jobs().await?;
    let unfinished = inner.store.files_to_go_on_with(pool.name()).await?;
    let by_id: HashMap<ImageId, &ImageRecord> = records.iter().map(|record| (record.image.id, record)).collect();
    for name in pool.file_names()? {
        let keep = match FileName::parse(&name) {
            FileName::Staged { .. } if unfinished.contains(&name) => true,
            FileName::Staged { maker, .. } => !alone && is_live(inner, maker, &open_jobs).await?,
            FileName::Upload(image) => by_id
                .get(&image)
                .is_some_and(|record| record.image.state == ImageState::Uploading),
            FileName::Trash(file) => {
                undelete(inner, pool, &name, &file, &records).await?;
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
            pool.remove(&name)?;
        }
    }
    drop_dead_reservations(inner, pool, &records, alone, &open_jobs).await?;
    note_missing(inner, pool, &records).await
}

/// A complete upload that has its name, but no record of that: one step back, so that its client can send it again.
async fn hide(inner: &Inner, pool: &PoolFolder, image: ImageId) -> Result<()> {
    if is_locked(inner, image).await? {
        return Ok(());
    }
    take_back(pool, image)
}

/// A file on its way out comes back if its record is still there: the deletion had not been decided.
async fn undelete(inner: &Inner, pool: &PoolFolder, trash: &str, file: &str, records: &[ImageRecord]) -> Result<()> {
    let Some(record) = records.iter().find(|record| record.file == file) else {
        return pool.remove(trash).map(drop);
    };
    bring_back(inner, pool, trash, record).await
}

/// Whether somebody alive changes an image.
async fn is_locked(inner: &Inner, image: ImageId) -> Result<bool> {
    inner.store.begin().await?.is_locked_exclusively(image).await
}

async fn is_live(inner: &Inner, maker: Uuid, open_jobs: &[Uuid]) -> Result<bool> {
    if open_jobs.contains(&maker) {
        return Ok(true);
    }
    inner.store.begin().await?.holds_lock(maker).await
}

/// Rows that a dead request had reserved, and the file if it had its name already. Jobs keep theirs: they run again.
async fn drop_dead_reservations(
    inner: &Inner,
    pool: &PoolFolder,
    records: &[ImageRecord],
    alone: bool,
    open_jobs: &[Uuid],
) -> Result<()> {
    for record in records {
        let Some(holder) = record.reserved_by.as_deref().and_then(|id| id.parse::<Uuid>().ok()) else {
            continue;
        };
        if open_jobs.contains(&holder) || (!alone && is_live(inner, holder, open_jobs).await?) {
            continue;
        }
        // The file first: without the row nobody knew whose it is.
        let published = FileName::published(record.image.id, 1);
        if record.file == published {
            pool.remove(&published)?;
        }
        let mut tx = inner.store.begin().await?;
        tx.delete_reserved(holder).await?;
        tx.forget_outcome(crate::store::idempotency::Outcome::Image(record.image.id))
            .await?;
        tx.commit_as(Step::DropReservation).await?;
    }
    Ok(())
}

async fn note_missing(inner: &Inner, pool: &PoolFolder, records: &[ImageRecord]) -> Result<()> {
    for record in records.iter().filter(|record| record.reserved_by.is_none()) {
        if pool.stat(&FileName::trash(&record.file))?.is_some() {
            continue; // A job of an ended process put it aside: it runs again, and brings it back.
        }
        let there = pool.stat(&record.file)?.is_some();
        let change = match record.image.state {
            ImageState::Ready | ImageState::Busy if !there => {
                Some((ImageState::Missing, Some("its file is gone from the pool")))
            }
            ImageState::Missing if there => Some((ImageState::Ready, None)),
            _ => None,
        };
        if let Some((state, problem)) = change {
            tracing::warn!(image = %record.image.id, %state, "the state of an image changed while the service was down");
            let mut tx = inner.store.begin().await?;
            tx.set_image_state(record.image.id, state, problem).await?;
            tx.commit_as(Step::NoteMissing).await?;
        }
    }
    Ok(())
}
