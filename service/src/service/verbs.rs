use serde::Serialize;

use super::Service;
use crate::error::{Result, ServiceError};
use crate::fault::Step;
use crate::jobs::{
    plan_check, plan_commit, plan_compare, plan_compress, plan_convert, plan_decrypt, plan_encrypt, plan_flatten,
    plan_rebase, plan_rekey, plan_resize, plan_rotate,
};
use crate::model::{ImageId, Job};
use crate::request::{
    Call, CheckRequest, CommitRequest, CompareRequest, CompressRequest, ConvertRequest, DecryptRequest, EncryptRequest,
    FlattenRequest, RebaseRequest, RekeyRequest, ResizeRequest, RotateMasterKeyRequest,
};
use crate::store::Tx;
use crate::store::idempotency::{IdempotentRequest, Outcome};
use crate::store::jobs::NewJob;

/// The verbs that queue a job. Each checks what can be checked at once, and holds the images it needs from then on:
/// shared for every layer it reads, exclusive for what it writes. Common errors: `not_found`, `invalid_argument`,
/// `unsupported`, `image_not_ready`, `image_busy`, `limit_exceeded` (too many open jobs), `idempotency_conflict`.
impl Service {
    /// Makes a new image with the content of this one; `result.image_id` names it.
    ///
    /// # Errors
    /// The common ones; `invalid_name`, `name_taken`, `base_changed` (of the new image).
    pub async fn convert_image(&self, id: ImageId, request: ConvertRequest, call: &Call) -> Result<Job> {
        let (target, body) = (id.to_string(), request.clone());
        self.queue("convert", &target, &body, call, async |tx| {
            plan_convert(tx, &self.inner, id, request).await
        })
        .await
    }

    /// Compresses an image in place.
    ///
    /// # Errors
    /// The common ones; `image_protected`; the job fails for images with snapshots, bitmaps or encryption.
    pub async fn compress_image(&self, id: ImageId, request: CompressRequest, call: &Call) -> Result<Job> {
        let (target, body) = (id.to_string(), request.clone());
        self.queue("compress", &target, &body, call, async |tx| {
            plan_compress(tx, &self.inner, id, request).await
        })
        .await
    }

    /// Puts an overlay on another base, or on none.
    ///
    /// # Errors
    /// The common ones; `conflict_cycle`, `conflict_dependents` (unsafe mode, onto another base than it has), `base_changed` (safe mode),
    /// `image_protected`, `limit_exceeded` when a chain would get too deep; the job fails for images with snapshots (safe mode).
    pub async fn rebase_image(&self, id: ImageId, request: RebaseRequest, call: &Call) -> Result<Job> {
        let (target, body) = (id.to_string(), request.clone());
        self.queue("rebase", &target, &body, call, async |tx| {
            plan_rebase(tx, &self.inner, id, request).await
        })
        .await
    }

    /// Writes an overlay's content into a base.
    ///
    /// # Errors
    /// The common ones; `conflict_dependents` when the base has other overlays, or the overlay has some and is to be
    /// dropped; `image_protected`; the job fails for overlays with snapshots that are not dropped.
    pub async fn commit_image(&self, id: ImageId, request: CommitRequest, call: &Call) -> Result<Job> {
        let (target, body) = (id.to_string(), request.clone());
        self.queue("commit", &target, &body, call, async |tx| {
            plan_commit(tx, &self.inner, id, request).await
        })
        .await
    }

    /// Looks for errors in the image's structures, and repairs them when asked.
    ///
    /// # Errors
    /// The common ones; `image_protected` with repair.
    pub async fn check_image(&self, id: ImageId, request: CheckRequest, call: &Call) -> Result<Job> {
        let (target, body) = (id.to_string(), request.clone());
        self.queue("check", &target, &body, call, async |tx| {
            plan_check(tx, &self.inner, id, request).await
        })
        .await
    }

    /// Changes the virtual size.
    ///
    /// # Errors
    /// The common ones; `conflict_dependents`, `image_protected`.
    pub async fn resize_image(&self, id: ImageId, request: ResizeRequest, call: &Call) -> Result<Job> {
        let (target, body) = (id.to_string(), request.clone());
        self.queue("resize", &target, &body, call, async |tx| {
            plan_resize(tx, &self.inner, id, request).await
        })
        .await
    }

    /// Tells whether two images have the same content.
    ///
    /// # Errors
    /// The common ones.
    pub async fn compare_images(&self, id: ImageId, request: CompareRequest, call: &Call) -> Result<Job> {
        let (target, body) = (id.to_string(), request.clone());
        self.queue("compare", &target, &body, call, async |tx| {
            plan_compare(tx, &self.inner, id, request).await
        })
        .await
    }

    /// Makes an overlay stand alone.
    ///
    /// # Errors
    /// The common ones; `image_protected`; the job fails for images with snapshots.
    pub async fn flatten_image(&self, id: ImageId, request: FlattenRequest, call: &Call) -> Result<Job> {
        let (target, body) = (id.to_string(), request.clone());
        self.queue("flatten", &target, &body, call, async |tx| {
            plan_flatten(tx, &self.inner, id, request).await
        })
        .await
    }

    /// Makes a new, encrypted image with the content of this one; `result.image_id` names it.
    ///
    /// # Errors
    /// The common ones; `invalid_name`, `name_taken`.
    pub async fn encrypt_image(&self, id: ImageId, request: EncryptRequest, call: &Call) -> Result<Job> {
        let (target, body) = (id.to_string(), request.clone());
        self.queue("encrypt", &target, &body, call, async |tx| {
            plan_encrypt(tx, &self.inner, id, request).await
        })
        .await
    }

    /// Makes a new image that is not encrypted with the content of this one, which is; `result.image_id` names it.
    ///
    /// # Errors
    /// The common ones; `invalid_name`, `name_taken`.
    pub async fn decrypt_image(&self, id: ImageId, request: DecryptRequest, call: &Call) -> Result<Job> {
        let (target, body) = (id.to_string(), request.clone());
        self.queue("decrypt", &target, &body, call, async |tx| {
            plan_decrypt(tx, &self.inner, id, request).await
        })
        .await
    }

    /// Changes the key slots of an encrypted image in place; `result` has the slots.
    ///
    /// # Errors
    /// The common ones; `image_protected`, `secret_required`. The job fails with `wrong_key`, and with `invalid_argument` for what
    /// would lose the last key.
    pub async fn rekey_image(&self, id: ImageId, request: RekeyRequest, call: &Call) -> Result<Job> {
        let (target, body) = (id.to_string(), request.clone());
        self.queue("rekey", &target, &body, call, async |tx| {
            plan_rekey(tx, &self.inner, id, request).await
        })
        .await
    }

    /// Seals every secret under the new master key. Whoever starts the service next needs that one alone.
    ///
    /// # Errors
    /// `unsupported` when there is no new key, `job_state_conflict` while a rotation is queued or runs, `limit_exceeded`.
    pub async fn rotate_master_key(&self, request: RotateMasterKeyRequest, call: &Call) -> Result<Job> {
        let body = request.clone();
        self.queue("rotate_master_key", "", &body, call, async |tx| {
            plan_rotate(tx, &self.inner, request).await
        })
        .await
    }

    /// Plans a job and queues it in one transaction, or finds the one that the same request led to before.
    pub(super) async fn queue(
        &self,
        verb: &str,
        target: &str,
        body: &impl Serialize,
        call: &Call,
        plan: impl AsyncFnOnce(&mut Tx) -> Result<NewJob>,
    ) -> Result<Job> {
        let request = call.bind(verb, target, body)?;
        let mut tx = self.inner.store.begin().await?;
        match tx.recall(request.as_ref()).await? {
            Some(Outcome::Job(job)) => {
                drop(tx);
                return self.inner.store.job(job).await;
            }
            Some(_) => {
                return Err(ServiceError::internal(
                    "the idempotency key led to something else than a job",
                ));
            }
            None => {}
        }
        let new = plan(&mut tx).await?;
        let job = tx.enqueue(&new, self.inner.config.limits.open_jobs).await?;
        tx.remember(request.as_ref(), Outcome::Job(job.id)).await?;
        tx.commit_as(Step::EnqueueJob).await?;
        Ok(job)
    }
}

impl Call {
    /// The idempotency key, if there is one, bound to a request.
    pub(super) fn bind(&self, verb: &str, target: &str, body: &impl Serialize) -> Result<Option<IdempotentRequest>> {
        let bind = |key: &String| IdempotentRequest::new(key, verb, target, body);
        self.idempotency_key.as_ref().map(bind).transpose()
    }
}
