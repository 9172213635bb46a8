//! Jobs that change images in place: what is asked before they begin, noted before the first write, and on record when they end.

use super::{JobContext, open_patiently};
use crate::disk::{Layer, OpenSecrets, Opening, facts_of};
use crate::error::{Result, ServiceError};
use crate::fault::Step;
use crate::jobs::plan;
use crate::model::{ImageId, ImageState, JobId};
use crate::service::Inner;
use crate::store::images::FileFacts;

impl JobContext {
    /// Before the first change: makes sure that nothing of it is protected by now and that what others build on is as we left it, and
    /// notes that it may be different from now on until the job ends.
    ///
    /// # Errors
    /// `image_protected`, `base_changed`.
    pub async fn prepare_changes(&self) -> Result<()> {
        if !self.inner.store.holds_exclusively(self.job()).await? {
            return Ok(());
        }
        let images = self.inner.store.job(self.job()).await?.image_ids;
        let mut tx = self.begin().await?;
        for image in images {
            let Some(record) = tx
                .any_image(image)
                .await?
                .filter(|record| record.image.state == ImageState::Busy)
            else {
                continue;
            };
            plan::require_unprotected(&record)?;
            let layer = self.inner.without_keys(record)?;
            plan::refuse_changed_base(&mut tx, Some(&layer)).await?;
        }
        tx.forget_stamps(self.job()).await?;
        tx.commit_as(Step::PrepareChanges).await
    }

    /// Makes sure once more that images that are about to go are not protected by now.
    ///
    /// # Errors
    /// `image_protected`, `lease_lost`.
    pub async fn require_unprotected(&self, images: impl Iterator<Item = ImageId>) -> Result<()> {
        let mut tx = self.begin().await?;
        for image in images {
            plan::require_unprotected(&tx.image(image).await?)?;
        }
        Ok(())
    }

    /// The virtual size that an image had before this job changed anything, as its file has it: others may have changed it since it came
    /// on record. Kept for later attempts, which may find it changed by this job.
    ///
    /// # Errors
    /// Those of opening it; `lease_lost`.
    pub async fn size_before(&self, layers: &[Layer]) -> Result<u64> {
        let mut entry = self.journal().await?;
        if let Some(size) = entry.size_before {
            return Ok(size);
        }
        let (layers, limits) = (layers.to_vec(), self.inner.limits.clone());
        let look = move |control: &_| {
            let secrets = OpenSecrets::default();
            let opening = Opening {
                top_only: true,
                metadata_only: true,
                ..Opening::read(&limits, &secrets)
            };
            Ok(open_patiently(&layers, &opening, control)?.virtual_size())
        };
        let size = self.blocking(look).await?;
        entry.size_before = Some(size);
        self.keep(&entry).await?;
        Ok(size)
    }

    /// Before the first write that lets an image show something else: whatever becomes of the job, nobody takes the image for what it was.
    /// Its overlays go with it: only work that keeps what they show changes an image that has any.
    ///
    /// # Errors
    /// `lease_lost`.
    pub async fn begin_new_content(&self, image: ImageId) -> Result<()> {
        let mut tx = self.begin().await?;
        tx.raise_generation(image).await?;
        tx.rebind_overlays(image).await?;
        tx.commit_as(Step::PrepareChanges).await
    }
}

/// What the images are like that a job without success was to change, as far as it may have begun to.
///
/// # Errors
/// What the database says. An image that cannot be opened is passed over: what it is like is not known.
pub async fn changed_by_then(inner: &Inner, job: JobId) -> Result<Vec<(ImageId, FileFacts)>> {
    let mut changed = Vec::new();
    for record in inner.store.records_to_change(job).await? {
        changed.push(inner.without_keys(record)?);
    }
    if changed.is_empty() {
        return Ok(Vec::new());
    }
    let limits = inner.limits.clone();
    let looked = tokio::task::spawn_blocking(move || {
        let found = changed
            .into_iter()
            .map(|layer| (layer.record.image.id, facts_of(&layer, &limits)));
        found.collect::<Vec<_>>()
    });
    let mut all = Vec::new();
    for (image, facts) in looked.await.map_err(ServiceError::internal)? {
        match facts {
            Ok(facts) => all.push((image, facts)),
            Err(error) => tracing::warn!(%image, %error, "what a job left of an image could not be looked at"),
        }
    }
    Ok(all)
}
