//! Binding a new overlay to its base: to what the base's file is now, whoever wrote to it last.

use super::JobContext;
use crate::disk::{base_changed, look_at_base, require_as_bound};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::ImageId;
use crate::service::Inner;
use crate::store::Tx;
use crate::store::images::{FileFacts, ImageRecord};

/// The record of an image that something is to stand on, the first of this chain, as its file is now. The caller locks it in the same
/// transaction.
///
/// # Errors
/// `image_busy` while a layer is being changed, or a guest writes to a base that changed; `image_not_ready` when a file is gone;
/// `base_changed` when a layer with overlays is not what they were made on.
pub async fn bind(tx: &mut Tx, inner: &Inner, chain: Vec<ImageRecord>) -> Result<ImageRecord> {
    for layer in &chain {
        let image = layer.image.id;
        if tx.is_locked_exclusively(image).await? {
            let public = format!("image {image} is being changed by another job or request; wait for that to end");
            return Err(ServiceError::new(ErrorCode::ImageBusy, public));
        }
    }
    let base = chain.first().ok_or_else(|| ServiceError::internal("an empty chain"))?;
    let base = base.clone();
    let layers = chain.into_iter().map(|record| inner.without_keys(record));
    let (layers, limits) = (layers.collect::<Result<Vec<_>>>()?, inner.limits.clone());
    let looked = tokio::task::spawn_blocking(move || look_at_base(&layers, &limits)).await;
    match looked.map_err(ServiceError::internal)?? {
        None => Ok(base),
        Some(facts) => {
            accept(tx, &base, &facts).await?;
            tx.image(base.image.id).await
        }
    }
}

/// Takes a base that others changed for what it is now, unless overlays stand on what it was.
///
/// # Errors
/// `base_changed`.
pub async fn accept(tx: &mut Tx, base: &ImageRecord, facts: &FileFacts) -> Result<()> {
    let id = base.image.id;
    // Without a stamp nobody knows of a change by others.
    let changed = base.file_stamp.is_some();
    if changed && let Some(overlay) = tx.dependents(id).await?.first() {
        return Err(base_changed(id, *overlay));
    }
    tx.record_change(id, facts, changed).await
}

/// Makes sure that the base of an image that a job makes is still what the image was bound to when the job was queued.
///
/// # Errors
/// `base_changed`, `lease_lost`.
pub async fn require_bound(context: &JobContext, image: ImageId) -> Result<()> {
    let inner = &context.inner;
    let made = context.begin().await?.any_image(image).await?;
    let Some((made, base)) = made.and_then(|made| made.image.backing_id.map(|base| (made, base))) else {
        return Ok(());
    };
    let base = inner.store.image(base).await?;
    let layers = [inner.without_keys(made)?, inner.without_keys(base)?];
    context.blocking(move |_| require_as_bound(&layers)).await
}
