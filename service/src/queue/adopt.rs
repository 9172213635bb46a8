//! Whether the folder of a pool is the one that the inventory means. Another service's files are not ours to clear away, and images are not
//! gone because their disk is not mounted.

use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::ImageState;
use crate::pool::{FileName, OWNER, Owner, PoolFolder};
use crate::service::Inner;
use crate::store::images::ImageRecord;

/// Makes sure that a pool's folder belongs to our database; one that is nobody's does from now on.
///
/// # Errors
/// `unavailable` when it is another database's, or has none of the images that it should have.
pub async fn adopt(inner: &Inner, pool: &PoolFolder) -> Result<()> {
    let owner = pool.owner()?;
    if owner != Owner::Nobody {
        return require_ours(inner, pool, owner);
    }
    let records = inner.store.pool_records(pool.name()).await?;
    if is_another_folder(pool, &records)? {
        return Err(not_mounted(inner, pool));
    }
    if !pool.is_writable() {
        return Ok(());
    }
    match pool.give_to(inner.store.id()) {
        Ok(owner) => require_ours(inner, pool, owner),
        // A full pool can still be read, and be made room in.
        Err(error) if error.code == ErrorCode::InsufficientStorage => {
            tracing::warn!(pool = pool.name(), %error, "the pool's folder was not marked as ours; the next start tries again");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

fn require_ours(inner: &Inner, pool: &PoolFolder, owner: Owner) -> Result<()> {
    match owner {
        Owner::Database(id) if id == inner.store.id() => Ok(()),
        Owner::Untold => Ok(()),
        _ => Err(foreign(pool)),
    }
}

/// Whether there are files on record, and none of them is in the folder. One that cannot be looked at says nothing about the others.
fn is_another_folder(pool: &PoolFolder, records: &[ImageRecord]) -> Result<bool> {
    let mut expected = false;
    let mut untold = None;
    for record in records {
        let Some(there) = is_there(pool, record).transpose() else {
            continue;
        };
        expected = true;
        match there {
            Ok(true) => return Ok(false),
            Ok(false) => {}
            Err(error) => untold = Some(error),
        }
    }
    untold.map_or(Ok(expected), Err)
}

/// Whether the file is there that a record says is there.
fn is_there(pool: &PoolFolder, record: &ImageRecord) -> Result<Option<bool>> {
    let image = &record.image;
    if record.reserved_by.is_some() {
        return Ok(None);
    }
    Ok(match image.state {
        ImageState::Ready | ImageState::Busy | ImageState::Missing => {
            Some(pool.stat(&record.file)?.is_some() || pool.aside(image.id, &record.file)?.is_some())
        }
        ImageState::Uploading if image.uploaded_bytes > Some(0) => {
            Some(pool.stat(&FileName::upload(image.id))?.is_some())
        }
        _ => None,
    })
}

fn foreign(pool: &PoolFolder) -> ServiceError {
    let public = format!("pool '{}' belongs to a service with another database", pool.name());
    let folder = pool.path().display();
    ServiceError::new(ErrorCode::Unavailable, public).with_internal(format!(
        "{folder}: use another folder; if that database is lost, take the folder's mark away (setfattr -x {OWNER} {folder}), start \
         again and scan the pool"
    ))
}

fn not_mounted(inner: &Inner, pool: &PoolFolder) -> ServiceError {
    let public = format!(
        "pool '{}' has images on record, and its folder has none of their files",
        pool.name()
    );
    let (folder, id) = (pool.path().display(), inner.store.id());
    ServiceError::new(ErrorCode::Unavailable, public).with_internal(format!(
        "{folder}: is its disk mounted? If the files are gone for good, mark the folder (setfattr -n {OWNER} -v {id} \
         {folder}) and start again: the images will be missing"
    ))
}
