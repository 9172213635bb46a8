//! Jobs that change images in place: what is asked before they begin, noted before the first write, and on record when they end.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::runtime::Handle;
use uuid::Uuid;

use super::{JobContext, open_patiently};
use crate::clock::Timestamp;
use crate::disk::{Changes, FirstWrite, Layer, OpenSecrets, Opening, facts_of};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::fault::Step;
use crate::jobs::plan;
use crate::model::{ImageId, ImageState};
use crate::service::Inner;
use crate::store::Tx;
use crate::store::idempotency::{IdempotentRequest, Outcome};
use crate::store::images::{FileFacts, ImageRecord};

/// What a change came to that somebody had begun; `None` where the file cannot be opened.
pub type Left = (ImageId, Option<FileFacts>);

/// Begins transactions of whoever holds an image, as long as that is so.
pub type BeginAsHolder = Arc<dyn Fn() -> BoxFuture<'static, Result<Tx>> + Send + Sync>;

impl JobContext {
    /// Before anything else: makes sure that nothing that the job changes is protected by now and that what others build on is as we left
    /// it. Guests may write until the files are locked: there it is looked at again.
    ///
    /// # Errors
    /// `image_protected`, `base_changed`.
    pub async fn require_unchanged(&self) -> Result<()> {
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
            plan::refuse_changed_base(&mut tx, &layer).await?;
        }
        Ok(())
    }

    /// Layers that tell this job before their files change.
    pub(super) fn to_change(&self, layers: Vec<Layer>) -> Vec<Layer> {
        let context = self.clone();
        let begin: BeginAsHolder = Arc::new(move || {
            let context = context.clone();
            async move { context.begin().await }.boxed()
        });
        to_change(&self.inner, layers, &begin, None)
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

/// A request that changes an image in place, for which no job remembers that it was begun.
#[derive(Clone)]
pub struct ChangeRequest {
    /// Its idempotency key.
    pub key: Option<IdempotentRequest>,
    /// When it came.
    pub at: Timestamp,
    /// Whether the guest is to see other bytes.
    pub new_content: bool,
    /// Whether it was begun before and may have been carried out.
    pub again: bool,
}

impl ChangeRequest {
    /// The answer where it cannot be told whether the request was carried out, and doing it again could undo what others did since.
    pub fn overtaken() -> ServiceError {
        let public = "the first request with this idempotency key was cut off, and the image was changed since: whether it was carried out is \
             not known; look at the image and use a new key";
        ServiceError::new(ErrorCode::IdempotencyConflict, public)
    }
}

/// Layers that tell whoever holds their images before their files change.
pub fn to_change(
    inner: &Arc<Inner>,
    mut layers: Vec<Layer>,
    begin: &BeginAsHolder,
    request: Option<&ChangeRequest>,
) -> Vec<Layer> {
    for layer in &mut layers {
        layer.first_write = Some(FirstWrite::new(InPlace {
            inner: inner.clone(),
            image: layer.record.image.id,
            begin: begin.clone(),
            request: request.cloned(),
            runtime: Handle::current(),
        }));
    }
    layers
}

/// A change of an image's file in place.
struct InPlace {
    inner: Arc<Inner>,
    image: ImageId,
    begin: BeginAsHolder,
    request: Option<ChangeRequest>,
    runtime: Handle,
}

impl InPlace {
    /// A transaction in which the file is the one that the overlays of the image were made on.
    async fn unchanged(&self) -> Result<Tx> {
        let mut tx = (self.begin)().await?;
        let layer = self.inner.without_keys(tx.image(self.image).await?)?;
        plan::refuse_changed_base(&mut tx, &layer).await?;
        Ok(tx)
    }
}

impl Changes for InPlace {
    fn is_another(&self) -> Result<()> {
        if self
            .request
            .as_ref()
            .is_some_and(|request| request.again && request.new_content)
        {
            return Err(ChangeRequest::overtaken());
        }
        self.runtime.block_on(self.unchanged()).map(drop)
    }

    fn begin(&self) -> Result<()> {
        self.runtime.block_on(async {
            let mut tx = self.unchanged().await?;
            tx.open_change(self.image).await?;
            if let Some(request) = &self.request {
                if request.new_content {
                    tx.raise_generation(self.image).await?;
                }
                let begun = Outcome::Begun(self.image, request.at);
                tx.remember_again(request.key.as_ref(), begun).await?;
            }
            tx.commit_as(Step::PrepareChanges).await
        })
    }
}

/// What the images are like that a job or a request without success had begun to change.
///
/// # Errors
/// What the database says.
pub async fn changed_by_then(inner: &Inner, holder: Uuid) -> Result<Vec<Left>> {
    look_at(inner, inner.store.records_to_change(holder).await?).await
}

/// Puts on record what changes came to that nobody goes on with, because whoever made them is dead. What others did between that death and
/// now cannot be told from it.
///
/// # Errors
/// What the database says.
pub async fn close_abandoned(inner: &Inner) -> Result<()> {
    for (image, found) in look_at(inner, inner.store.abandoned_changes().await?).await? {
        let mut tx = inner.store.begin().await?;
        let now = tx.any_image(image).await?;
        if now.is_some_and(|now| now.file_stamp.is_none() && now.image.state != ImageState::Busy) {
            tx.close_change(image, found.as_ref()).await?;
            tx.commit_as(Step::CloseChanges).await?;
        }
    }
    Ok(())
}

async fn look_at(inner: &Inner, records: Vec<ImageRecord>) -> Result<Vec<Left>> {
    // What lies elsewhere is for another node.
    let here = records
        .into_iter()
        .filter(|record| inner.pools.contains_key(&record.image.pool));
    let layers = here
        .map(|record| inner.without_keys(record))
        .collect::<Result<Vec<_>>>()?;
    if layers.is_empty() {
        return Ok(Vec::new());
    }
    let limits = inner.limits.clone();
    let look = move |layer: Layer| {
        let image = layer.record.image.id;
        let facts = facts_of(&layer, &limits)
            .inspect_err(|error| tracing::warn!(%image, %error, "what was left of an image could not be looked at"));
        (image, facts.ok())
    };
    let looked = tokio::task::spawn_blocking(move || layers.into_iter().map(look).collect());
    looked.await.map_err(ServiceError::internal)
}
