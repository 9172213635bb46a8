//! What a change of a chain must not take from an image that stays.

use vdisk_engine::Image;

use super::JobContext;
use super::context::open_patiently;
use crate::disk::{Layer, OpenSecrets, Opening};
use crate::error::{ErrorCode, Result, ServiceError};

/// Refuses an image whose internal snapshots would show something else when what lies below it changes: they take from it what they do
/// not hold themselves.
///
/// # Errors
/// `unsupported`.
pub fn refuse_snapshots(image: &dyn Image) -> Result<()> {
    let count = image.info()?.snapshots.len();
    if count == 0 {
        return Ok(());
    }
    let public = format!(
        "the image has {count} internal snapshot(s), which would show something else when what lies below them changes; delete them first"
    );
    Err(ServiceError::new(ErrorCode::Unsupported, public))
}

/// The same for the top of a chain that a job is about to change.
///
/// # Errors
/// `unsupported`; as [`open_patiently`].
pub async fn refuse_snapshots_of(context: &JobContext, layers: &[Layer]) -> Result<()> {
    let (top, limits) = (
        layers.get(..1).unwrap_or_default().to_vec(),
        context.inner.limits.clone(),
    );
    context
        .blocking(move |control| {
            let secrets = OpenSecrets::default();
            let opening = Opening {
                top_only: true,
                metadata_only: true,
                ..Opening::read(&limits, &secrets)
            };
            refuse_snapshots(open_patiently(&top, &opening, control)?.top())
        })
        .await
}
