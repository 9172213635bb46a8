//! Making sure that what was written shows what it should: by digests of what the guest sees, before and after.

use vdisk_engine::ops::digest;
use vdisk_engine::{Chain, Control};

use super::JobContext;
use super::context::open_patiently;
use crate::disk::{Layer, OpenSecrets, Opening};
use crate::error::{ErrorCode, Result, ServiceError};

/// Compares what two chains show, by digest; both are read at the same time.
///
/// # Errors
/// `corrupt_image` when they differ.
pub fn compare(source: &Chain, target: &Chain, control: &Control) -> Result<String> {
    let (ours, theirs) = std::thread::scope(|scope| {
        let theirs = scope.spawn(|| digest::nonzero(target, u64::MAX, control));
        (digest::nonzero(source, u64::MAX, control), theirs.join())
    });
    let theirs = theirs.map_err(|_| ServiceError::internal("the thread that reads the new image ended"))?;
    let (ours, theirs) = (ours?, theirs?);
    same(&ours, &theirs).map(|()| ours)
}

/// Refuses two digests that differ.
///
/// # Errors
/// `corrupt_image`.
fn same(before: &str, after: &str) -> Result<()> {
    if before == after {
        return Ok(());
    }
    let public = format!("what was written does not show what it should: its digest is {after}, not {before}");
    Err(ServiceError::new(ErrorCode::CorruptImage, public))
}

/// The digest of what a chain shows before a guest byte.
fn digest_of(chain: &Chain, end: u64, control: &Control) -> Result<String> {
    Ok(digest::nonzero(chain, end, &control.uncounted())?)
}

/// What the guest sees before an in-place job changes anything, up to a byte. Kept for later attempts, which find it changed.
pub async fn digest_before(context: &JobContext, layers: &[Layer], end: u64) -> Result<String> {
    let mut entry = context.journal().await?;
    if let Some(digest) = entry.digest_before {
        return Ok(digest);
    }
    context.step("reading what the guest sees").await?;
    let digest = read_digest(context, layers, end).await?;
    entry.digest_before = Some(digest.clone());
    context.keep(&entry).await?;
    Ok(digest)
}

/// Makes sure that the guest sees the same after an in-place job.
///
/// # Errors
/// `corrupt_image`.
pub async fn require_digest(context: &JobContext, layers: &[Layer], end: u64, before: &str) -> Result<()> {
    context.step("comparing what the guest sees now").await?;
    same(before, &read_digest(context, layers, end).await?)
}

async fn read_digest(context: &JobContext, layers: &[Layer], end: u64) -> Result<String> {
    let (layers, limits) = (layers.to_vec(), context.inner.limits.clone());
    context
        .blocking(move |control| {
            let secrets = OpenSecrets::none_until(control);
            let chain = open_patiently(&layers, &Opening::read(&limits, &secrets), control)?;
            digest_of(&chain, end, control)
        })
        .await
}
