//! Bringing disk and inventory in line at the start, after whatever ended the process before.

use std::collections::HashMap;
use std::sync::Arc;

use uuid::Uuid;

use super::adopt::adopt;
use super::missing::{note_missing, note_unreachable};
use crate::error::{Result, ServiceError};
use crate::fault::Step;
use crate::jobs::{close_abandoned, to_bring_back};
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

/// Brings a pool's folder and its records in line. What a single file refuses is told, and left to the next start.
pub async fn bring_in_line(inner: &Inner, pool: &PoolFolder, seen: &Seen, alone: bool) -> Result<()> {
    let unfinished = inner.store.files_to_go_on_with(pool.name()).await?;
    let by_id: HashMap<ImageId, &ImageRecord> = seen.records.iter().map(|record| (record.image.id, record)).collect();
    for name in &seen.names {
        let keep = match FileName::parse(name) {
            FileName::Staged { .. } if unfinished.contains(name) => true,
            FileName::Staged { file, .. } if !is_ours(&file, seen) => continue,
            FileName::Staged { maker, .. } => !alone && is_live(&mut inner.store.begin().await?, maker).await?,
            FileName::Upload(image) => is_uploading(&mut inner.store.begin().await?, image).await?,
            FileName::Trash(file) => {
                undelete(inner, pool, name, &file).await?;
                continue;
            }
            FileName::Published(image) => {
                match by_id.get(&image) {
                    Some(record) if record.image.state == ImageState::Uploading => {
                        hide(inner, pool, image, name).await?
                    }
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
            remove_unfinished(pool, name);
        }
    }
    drop_dead_reservations(inner, pool, &seen.records).await?;
    note_missing(inner, pool, &seen.records).await
}

/// Whether a file that is made under this name is of our making: an image that is made anew keeps the name that its file came with.
fn is_ours(file: &str, seen: &Seen) -> bool {
    matches!(FileName::parse(file), FileName::Published(_)) || seen.records.iter().any(|record| record.file == file)
}

fn remove_unfinished(pool: &PoolFolder, name: &str) {
    tracing::info!(pool = pool.name(), file = name, "removing an unfinished file");
    if let Err(error) = pool.remove(name) {
        tell(pool, name, &error);
    }
}

/// One file does not keep the service from its other images.
pub(super) fn tell(pool: &PoolFolder, file: &str, error: &ServiceError) {
    tracing::error!(pool = pool.name(), file, %error, "a file is left as it is; the next start tries again");
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
async fn hide(inner: &Inner, pool: &PoolFolder, image: ImageId, name: &str) -> Result<()> {
    let mut tx = inner.store.begin().await?;
    if tx.is_locked_exclusively(image).await? || !is_uploading(&mut tx, image).await? {
        return Ok(());
    }
    if let Err(error) = take_back(pool, image) {
        tell(pool, name, &error);
    }
    Ok(())
}

/// A file on its way out comes back if its record is still there: the deletion had not been decided. One that only has a name like that
/// is somebody else's.
async fn undelete(inner: &Inner, pool: &PoolFolder, trash: &str, named: &str) -> Result<()> {
    let mut tx = inner.store.begin().await?;
    let of_image = match named.parse() {
        Ok(image) => tx.any_image(image).await?,
        Err(_) => None,
    };
    let of_file = tx.image_of_file(pool.name(), named).await?;
    drop(tx);
    let is_ours = matches!(FileName::parse(named), FileName::Published(_));
    if of_image.is_none() && of_file.is_none() {
        if is_ours {
            remove_unfinished(pool, trash);
        }
        return Ok(());
    }
    for record in of_image.iter().chain(&of_file) {
        if record.image.pool != pool.name() || record.reserved_by.is_some() {
            continue;
        }
        let Some(_held) = to_bring_back(inner, record.image.id).await? else {
            return Ok(());
        };
        match pool.put_back(trash, &record.file) {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) => {
                tell(pool, trash, &error);
                return Ok(());
            }
        }
    }
    tracing::warn!(
        pool = pool.name(),
        file = trash,
        "it looks like the file of an image that was put aside, but the image has its file, or is in another pool: left alone"
    );
    Ok(())
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
        if record.file == published
            && let Err(error) = pool.remove(&published)
        {
            tell(pool, &published, &error);
            continue;
        }
        tx.delete_reserved(holder).await?;
        tx.commit_as(Step::DropReservation).await?;
    }
    Ok(())
}
