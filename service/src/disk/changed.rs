//! Files that others changed: they are not what the inventory has on record.

use vdisk_engine::Limits;

use super::facts::{file_facts, file_stamp, is_as_left, stat_of};
use super::first_write::FirstWrite;
use super::open::{Layer, Opening, open_chain};
use super::secrets::OpenSecrets;
use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::ImageId;
use crate::store::images::FileFacts;

/// A base must be what it was when its overlay was bound to it: our generation, and the file as we left it.
///
/// # Errors
/// `base_changed`.
pub fn require_as_bound(layers: &[Layer]) -> Result<()> {
    for pair in layers.windows(2) {
        let [overlay, base] = pair else { continue };
        let bound = overlay.record.backing_generation;
        let changed_by_us = bound != Some(base.record.image.generation);
        if changed_by_us || was_changed_by_others(base)? {
            return Err(base_changed(base.record.image.id, overlay.record.image.id));
        }
    }
    Ok(())
}

/// Whether the file is another than the one we left. Unknown, so no, while somebody of ours changes it.
pub fn was_changed_by_others(layer: &Layer) -> Result<bool> {
    let ours = layer.first_write.as_ref().is_some_and(FirstWrite::has_begun);
    let Some(left) = layer.record.file_stamp.as_ref().filter(|_| !ours) else {
        return Ok(false);
    };
    let found = layer.pool.stat(&layer.record.file)?;
    Ok(found.is_some_and(|stat| !is_as_left(&stat, left)))
}

/// The error for a base that is not what an overlay was made on.
pub fn base_changed(base: ImageId, overlay: ImageId) -> ServiceError {
    let public = format!(
        "image {base} is not what it was when image {overlay} was made on it; rebase image {overlay} onto it with mode 'unsafe' to accept it \
         as it is"
    );
    ServiceError::new(ErrorCode::BaseChanged, public)
}

/// What the file of a layer is like.
///
/// # Errors
/// Those of opening it.
pub fn facts_of(layer: &Layer, limits: &Limits) -> Result<FileFacts> {
    let secrets = OpenSecrets::default();
    let opening = Opening {
        top_only: true,
        metadata_only: true,
        ..Opening::read(limits, &secrets)
    };
    let chain = open_chain(std::slice::from_ref(layer), &opening)?;
    file_facts(chain.top(), &layer.pool, &layer.record.file)
}

/// What the file of a layer is like now; `None` when that is on record.
///
/// # Errors
/// `image_not_ready` when it is gone; those of opening it.
pub fn look_again(layer: &Layer, limits: &Limits) -> Result<Option<FileFacts>> {
    let stat = stat_of(layer)?;
    let left = layer.record.file_stamp.as_deref();
    if left.is_some_and(|left| is_as_left(&stat, left)) {
        return Ok(None);
    }
    let facts = facts_of(layer, limits)?;
    // With the time from before: what is written meanwhile is noticed by the next look.
    let stamp = file_stamp(&stat);
    Ok(Some(FileFacts { stamp, ..facts }))
}

/// What the first of these layers, which is to be a base, is like now; `None` when that is on record.
///
/// # Errors
/// `image_not_ready` when a file is gone, `base_changed` when what is below is not what it was; those of opening the base.
pub fn look_at_base(layers: &[Layer], limits: &Limits) -> Result<Option<FileFacts>> {
    layers.iter().try_for_each(|layer| stat_of(layer).map(drop))?;
    require_as_bound(layers)?;
    layers.first().map_or(Ok(None), |base| look_again(base, limits))
}
