use uuid::Uuid;
use vdisk_engine::formats;

use super::Service;
use crate::error::{ErrorCode, Result, ServiceError};
use crate::fault::Step;
use crate::jobs::{ImportFrom, bind_base, plan_import, require_ready, require_same_pool};
use crate::model::Image;
use crate::pool::check_image_name;
use crate::request::{Call, ImportImage, ImportOutcome, ImportSource, SecretRefs};
use crate::store::idempotency::Outcome;
use crate::store::images::{Backing, NewImage, Origin};

impl Service {
    /// Records an image whose bytes exist: starts an upload, or queues a job that takes a file of the pool in or fetches
    /// it.
    ///
    /// # Errors
    /// As [`Service::create_image`]; `image_busy` while a layer of an upload's base is changed; `unsupported` for an upload with `target_format` (convert the image afterwards).
    pub async fn import_image(&self, request: ImportImage, call: &Call) -> Result<ImportOutcome> {
        check_image_name(&request.name)?;
        self.check_labels(&request.labels)?;
        if let Some(format) = &request.format {
            formats::by_name(format)
                .map_err(|error| ServiceError::new(ErrorCode::Unsupported, error.to_string()).with_field("format"))?;
        }
        let pool = request
            .pool
            .clone()
            .unwrap_or_else(|| self.inner.config.default_pool.clone());
        self.inner.pool(&pool)?;
        match request.source.clone() {
            ImportSource::Upload(true) => {
                if request
                    .target_format
                    .as_ref()
                    .is_some_and(|target| Some(target) != request.format.as_ref())
                {
                    let public = "an upload is not converted on the way in; upload the file, then convert the image";
                    return Err(ServiceError::new(ErrorCode::Unsupported, public).with_field("target_format"));
                }
                self.start_upload(&pool, request, call)
                    .await
                    .map(ImportOutcome::Uploading)
            }
            ImportSource::Upload(false) => Err(ServiceError::invalid(
                "source",
                "'upload' must be true; or name a 'pool_file' or a 'url'",
            )),
            ImportSource::Url(url) => self.queue_import(&pool, ImportFrom::Url(url), request, call).await,
            ImportSource::PoolFile(file) => {
                self.queue_import(&pool, ImportFrom::PoolFile(file), request, call)
                    .await
            }
        }
    }

    async fn queue_import(
        &self,
        pool: &str,
        source: ImportFrom,
        request: ImportImage,
        call: &Call,
    ) -> Result<ImportOutcome> {
        let body = request.clone();
        let plan = self.queue("import", "", &body, call, async |tx| {
            plan_import(tx, &self.inner, pool, source, request).await
        });
        plan.await.map(ImportOutcome::Queued)
    }

    async fn start_upload(&self, pool: &str, request: ImportImage, call: &Call) -> Result<Image> {
        let key = call.bind("import", "", &request)?;
        let id = Uuid::now_v7();
        let mut tx = self.inner.store.begin().await?;
        if let Some(Outcome::Image(existing)) = tx.recall(key.as_ref()).await? {
            drop(tx);
            return self.image(existing).await;
        }
        let backing = match request.backing {
            Some(base) => {
                let limit = self.inner.config.limits.chain_depth.saturating_sub(1);
                let chain = tx.chain(base, limit).await?;
                chain.iter().try_for_each(require_ready)?;
                let base = bind_base(&mut tx, &self.inner, chain).await?;
                require_same_pool(pool, &base)?;
                // The name in the header becomes known when the file is complete.
                Some(Backing {
                    id: base.image.id,
                    generation: base.image.generation,
                    name: String::new(),
                })
            }
            None => None,
        };
        tx.insert_image(&NewImage {
            id,
            name: request.name,
            pool: pool.to_owned(),
            file: id.to_string(),
            format: request.format.unwrap_or_default(),
            labels: request.labels,
            secrets: SecretRefs::new(),
            backing,
            origin: Origin::Upload,
        })
        .await?;
        tx.remember(key.as_ref(), Outcome::Image(id)).await?;
        let image = tx.image(id).await?.image;
        tx.commit_as(Step::StartUpload).await?;
        Ok(image)
    }
}
