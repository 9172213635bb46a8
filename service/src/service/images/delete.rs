//! An image that goes: its file is put aside, then the row goes, then the file.

use std::sync::Arc;

use vdisk_engine::storage::{FileOptions, FileStorage};

use super::undo;
use crate::error::{ErrorCode, Result};
use crate::fault::Step;
use crate::jobs::require_unprotected;
use crate::model::ImageId;
use crate::pool::{Access, FileName, PoolFolder};
use crate::service::Inner;
use crate::service::locks::RequestLocks;
use crate::store::Tx;
use crate::store::images::ImageRecord;
use crate::store::locks::LockMode;

/// The file is put aside, then the row goes, then the file: at each point a new start knows what to do.
pub(super) async fn delete(inner: &Arc<Inner>, id: ImageId) -> Result<()> {
    let locks = RequestLocks::new(inner);
    let mut tx = inner.store.begin().await?;
    let record = tx.image(id).await?;
    require_unprotected(&record)?;
    tx.require_free_of_dependents(id, &[]).await?;
    locks.take(&mut tx, &[(id, LockMode::Exclusive)]).await?;
    tx.commit_as(Step::BeginDelete).await?;
    let pool = inner.pool(&record.image.pool)?;
    let removed = async {
        let tx = remove(&locks, &pool, &record).await?;
        locks.release_and_commit(tx, Step::RecordDelete).await
    };
    if let Err(error) = removed.await {
        undo_delete(inner, &pool, &record).await;
        locks.release().await;
        return Err(error);
    }
    for leftover in [FileName::trash(id), FileName::upload(id)] {
        if let Err(error) = pool.remove(&leftover) {
            tracing::warn!(image = %id, %error, "a file of a deleted image could not be removed; the next start tries again");
        }
    }
    Ok(())
}

/// Undoes a deletion that failed, while its locks are held; what cannot be undone now is undone at the next start.
async fn undo_delete(inner: &Inner, pool: &PoolFolder, record: &ImageRecord) {
    let image = record.image.id;
    let attempt = || try_to_undo_delete(inner, pool, record);
    if !undo(image, "the file of an image that stays is still aside", attempt).await {
        tracing::error!(%image, "the image's file is aside; the next start brings it back");
    }
}

/// A commit that failed may have been carried out all the same: only the database knows whether the file comes back or goes.
async fn try_to_undo_delete(inner: &Inner, pool: &PoolFolder, record: &ImageRecord) -> Result<()> {
    let trash = FileName::trash(record.image.id);
    if pool.stat(&trash)?.is_none() {
        return Ok(());
    }
    if inner.store.begin().await?.any_image(record.image.id).await?.is_none() {
        return pool.remove(&trash).map(drop);
    }
    pool.put_back(&trash, &record.file).map(drop)
}

/// Locks a file that is about to go, so that no other program is using it, a guest for one; `None` when there is no file that could be
/// used.
fn unused(pool: &PoolFolder, file: &str) -> Result<Option<FileStorage>> {
    match pool.open_file(file, Access::Write) {
        Ok(handle) => Ok(Some(FileStorage::from_file(handle, file, FileOptions::write())?)),
        Err(error) if [ErrorCode::NotFound, ErrorCode::Denied].contains(&error.code) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Puts the file aside and takes the row out, in a transaction that is still open.
async fn remove(locks: &RequestLocks, pool: &PoolFolder, record: &ImageRecord) -> Result<Tx> {
    let _held = unused(pool, &record.file)?;
    match pool.put_aside(record.image.id, &record.file) {
        Err(error) if error.code != ErrorCode::NotFound => return Err(error),
        _ => {}
    }
    let mut tx = locks.begin().await?;
    tx.delete_image(record.image.id).await?;
    Ok(tx)
}
