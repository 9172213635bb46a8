use super::Service;
use crate::error::{Result, ServiceError};
use crate::jobs::{self, Foresight, ImportFrom};
use crate::jobs::{
    plan_check, plan_commit, plan_compare, plan_compress, plan_convert, plan_decrypt, plan_encrypt, plan_flatten,
    plan_import, plan_rebase, plan_rekey, plan_resize, plan_scan,
};
use crate::model::JobPlan;
use crate::pool::check_image_name;
use crate::request::{ImportImage, ImportSource, JobRequest};
use crate::store::Tx;
use crate::store::jobs::NewJob;

impl Service {
    /// A dry run: what the job that a request leads to would read, write, need and lose. Nothing is queued, made or changed.
    ///
    /// # Errors
    /// Those of the request itself, which is checked as if it were meant; `invalid_argument` for an upload, which is no job.
    pub async fn plan_job(&self, request: JobRequest) -> Result<JobPlan> {
        let mut tx = self.inner.store.begin().await?;
        let new = self.plan(&mut tx, request).await?;
        // Names and locks are checked by taking them; with the transaction they are given back.
        tx.enqueue(&new, self.inner.config.limits.open_jobs).await?;
        drop(tx);
        let foresight = Foresight {
            inner: self.inner.clone(),
        };
        let foreseen = jobs::find(new.kind)?.foresee(foresight, new.payload).await?;
        let space = new
            .pool
            .as_deref()
            .map(|pool| self.inner.pool(pool)?.space())
            .transpose()?;
        Ok(JobPlan {
            kind: new.kind,
            image_ids: existing(new.images, new.makes.map(|image| image.id)),
            pool: new.pool,
            read: foreseen.read,
            write: foreseen.write,
            target_size: foreseen.target_size,
            space_needed: foreseen.space_needed,
            space_free: space.map(|space| space.free),
            losses: foreseen.losses,
        })
    }

    async fn plan(&self, tx: &mut Tx, request: JobRequest) -> Result<NewJob> {
        let inner = &self.inner;
        match request {
            JobRequest::Convert(id, request) => plan_convert(tx, inner, id, request).await,
            JobRequest::Encrypt(id, request) => plan_encrypt(tx, inner, id, request).await,
            JobRequest::Decrypt(id, request) => plan_decrypt(tx, inner, id, request).await,
            JobRequest::Rekey(id, request) => plan_rekey(tx, inner, id, request).await,
            JobRequest::Compress(id, request) => plan_compress(tx, inner, id, request).await,
            JobRequest::Rebase(id, request) => plan_rebase(tx, inner, id, request).await,
            JobRequest::Commit(id, request) => plan_commit(tx, inner, id, request).await,
            JobRequest::Flatten(id, request) => plan_flatten(tx, inner, id, request).await,
            JobRequest::Check(id, request) => plan_check(tx, inner, id, request).await,
            JobRequest::Resize(id, request) => plan_resize(tx, inner, id, request).await,
            JobRequest::Compare(id, request) => plan_compare(tx, inner, id, request).await,
            JobRequest::Scan(pool) => plan_scan(tx, inner, &pool).await,
            JobRequest::Import(request) => self.plan_import(tx, request).await,
        }
    }

    async fn plan_import(&self, tx: &mut Tx, request: ImportImage) -> Result<NewJob> {
        check_image_name(&request.name)?;
        let default = &self.inner.config.default_pool;
        let pool = request.pool.clone().unwrap_or_else(|| default.clone());
        let source = match request.source.clone() {
            ImportSource::PoolFile(file) => ImportFrom::PoolFile(file),
            ImportSource::Url(url) => ImportFrom::Url(url),
            ImportSource::Upload(_) => {
                return Err(ServiceError::invalid(
                    "dry_run",
                    "an upload is no job: there is nothing to foresee",
                ));
            }
        };
        self.inner.pool(&pool)?;
        plan_import(tx, &self.inner, &pool, source, request).await
    }
}

/// The images without the one that is not made.
fn existing(images: Vec<uuid::Uuid>, made: Option<uuid::Uuid>) -> Vec<uuid::Uuid> {
    images.into_iter().filter(|image| Some(*image) != made).collect()
}
