//! Whether the folder of a pool is the one that the inventory means. Another service's files are not ours to clear away, and images are not
//! gone because their disk is not mounted.

use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::ImageState;
use crate::pool::{FileName, OWNER_FILE, Owner, PoolFolder};
use crate::service::Inner;
use crate::store::images::ImageRecord;

/// Makes sure that a pool's folder belongs to our database; one that is nobody's does from now on.
///
/// # Errors
/// `unavailable` when it is another database's, or has none of the images that it should have.
pub async fn adopt(inner: &Inner, pool: &PoolFolder) -> Result<()> {
    match pool.owner()? {
        Owner::Database(owner) if owner == inner.store.id() => return Ok(()),
        Owner::Nobody => {}
        _ => return Err(foreign(pool)),
    }
    let records = inner.store.pool_records(pool.name()).await?;
    if is_another_folder(pool, &records)? {
        return Err(not_mounted(inner, pool));
    }
    if !pool.is_writable() {
        return Ok(());
    }
    match pool.give_to(inner.store.id()) {
        Err(error) if error.code == ErrorCode::NameTaken => match pool.owner()? {
            Owner::Database(owner) if owner == inner.store.id() => Ok(()),
            _ => Err(foreign(pool)),
        },
        // A full pool can still be read, and be made room in.
        Err(error) if error.code == ErrorCode::InsufficientStorage => {
            tracing::warn!(pool = pool.name(), %error, "the pool's folder was not marked as ours; the next start tries again");
            Ok(())
        }
        given => given,
    }
}

/// Whether there are files on record, and none of them is in the folder.
fn is_another_folder(pool: &PoolFolder, records: &[ImageRecord]) -> Result<bool> {
    let mut expected = false;
    for file in records.iter().filter_map(file_of) {
        expected = true;
        if pool.stat(&file)?.is_some() || pool.stat(&FileName::trash(&file))?.is_some() {
            return Ok(false);
        }
    }
    Ok(expected)
}

/// The file that a record says is there.
fn file_of(record: &ImageRecord) -> Option<String> {
    if record.reserved_by.is_some() {
        return None;
    }
    let image = &record.image;
    match image.state {
        ImageState::Ready | ImageState::Busy | ImageState::Missing => Some(record.file.clone()),
        ImageState::Uploading if image.uploaded_bytes > Some(0) => Some(FileName::upload(image.id)),
        _ => None,
    }
}

fn foreign(pool: &PoolFolder) -> ServiceError {
    let public = format!("pool '{}' belongs to a service with another database", pool.name());
    let folder = pool.path().display();
    ServiceError::new(ErrorCode::Unavailable, public).with_internal(format!(
        "{folder}: use another folder; if that database is lost, remove {folder}/{OWNER_FILE}, start again and scan the pool"
    ))
}

fn not_mounted(inner: &Inner, pool: &PoolFolder) -> ServiceError {
    let public = format!(
        "pool '{}' has images on record, and its folder has none of their files",
        pool.name()
    );
    let (folder, id) = (pool.path().display(), inner.store.id());
    ServiceError::new(ErrorCode::Unavailable, public).with_internal(format!(
        "{folder}: is its disk mounted? If the files are gone for good, write {id} to {folder}/{OWNER_FILE} and start again: \
         the images will be missing"
    ))
}
