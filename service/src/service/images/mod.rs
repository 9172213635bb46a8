use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;
use vdisk_engine::env::CreateSpec;
use vdisk_engine::gate::Node;
use vdisk_engine::storage::{FileOptions, FileStorage};
use vdisk_engine::{Chain, OpenEnv};

use super::background::blocking;
use super::locks::RequestLocks;
use super::paging::Window;
use super::{Inner, Service};
use crate::disk::{NewDisk, create_disk, file_facts, publish, reference_to};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::fault::{Step, around};
use crate::jobs::{
    creatable, engine_options, require_ready, require_same_pool, require_secrets, require_unprotected, take_roles,
};
use crate::model::{Image, ImageId, Labels, Page};
use crate::pool::{Access, FileName, PoolFolder, check_image_name};
use crate::request::{Call, CreateImage, ImageFilter, PageRequest, SecretRefs, UpdateImage};
use crate::store::Tx;
use crate::store::idempotency::{IdempotentRequest, Outcome};
use crate::store::images::{Backing, FileFacts, ImageRecord, NewImage, Origin};
use crate::store::locks::LockMode;

impl Service {
    /// Makes an empty image, or an empty overlay on a base.
    ///
    /// # Errors
    /// `invalid_name`, `name_taken`, `not_found` (pool, base, secret), `unsupported` (format or option),
    /// `invalid_argument`, `image_not_ready` (base), `image_busy` (base), `limit_exceeded`, `insufficient_storage`,
    /// `idempotency_conflict`.
    pub async fn create_image(&self, request: CreateImage, call: &Call) -> Result<Image> {
        check_image_name(&request.name)?;
        self.check_labels(&request.labels)?;
        require_secrets(&self.inner, &request.secrets).await?;
        let key = call.bind("create_image", "", &request)?;
        let inner = self.inner.clone();
        self.to_the_end(async move { create(&inner, request, key).await }).await
    }

    /// Images that match, oldest first.
    ///
    /// # Errors
    /// `invalid_argument` for a page token that is not ours.
    pub async fn list_images(&self, filter: &ImageFilter, page: &PageRequest) -> Result<Page<Image>> {
        let window = Window::new(page, &self.inner.config.limits)?;
        let images = self.inner.store.list_images(filter, window.from, window.rows()).await?;
        Ok(window.page(images, |image| image.id))
    }

    /// One image.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn image(&self, id: ImageId) -> Result<Image> {
        Ok(self.inner.store.image(id).await?.image)
    }

    /// Changes a record: name, labels, protection.
    ///
    /// # Errors
    /// `not_found`, `invalid_name`, `name_taken`, `limit_exceeded` (labels).
    pub async fn update_image(&self, id: ImageId, request: UpdateImage) -> Result<Image> {
        request.name.as_deref().map_or(Ok(()), check_image_name)?;
        request
            .labels
            .as_ref()
            .map_or(Ok(()), |labels| self.check_labels(labels))?;
        let mut tx = self.inner.store.begin().await?;
        tx.update_image(id, &request).await?;
        let image = tx.image(id).await?.image;
        tx.commit_as(Step::UpdateImage).await?;
        Ok(image)
    }

    /// Deletes an image and its file. Also ends an upload.
    ///
    /// # Errors
    /// `not_found`, `conflict_dependents`, `image_protected`, `image_busy`.
    pub async fn delete_image(&self, id: ImageId) -> Result<()> {
        let inner = self.inner.clone();
        self.to_the_end(async move { delete(&inner, id).await }).await
    }

    pub(super) fn check_labels(&self, labels: &Labels) -> Result<()> {
        let limits = &self.inner.config.limits;
        let long = |text: &String| text.chars().count() > limits.label_chars;
        if labels.len() > limits.labels || labels.iter().any(|(key, value)| long(key) || long(value)) {
            let public = format!(
                "at most {} labels, keys and values of at most {} characters",
                limits.labels, limits.label_chars
            );
            return Err(ServiceError::new(ErrorCode::LimitExceeded, public).with_field("labels"));
        }
        if labels.keys().any(|key| key.is_empty() || key.contains('=')) {
            return Err(ServiceError::invalid(
                "labels",
                "a label's key is not empty and has no '='",
            ));
        }
        Ok(())
    }
}

/// Before each try to undo what failed: until one succeeds the name of an unfinished image is taken, or the file of one that stays is aside.
const UNDO_PAUSES: [Duration; 3] = [Duration::ZERO, Duration::from_millis(200), Duration::from_secs(2)];

/// What a new image starts from.
struct Plan {
    id: ImageId,
    pool: Arc<PoolFolder>,
    virtual_size: u64,
    base: Option<ImageRecord>,
    format: &'static str,
}

async fn create(inner: &Arc<Inner>, mut request: CreateImage, key: Option<IdempotentRequest>) -> Result<Image> {
    let locks = RequestLocks::new(inner);
    let driver = creatable(&request.format, &request.options)?;
    let roles = take_roles(driver, &mut request.options, &request.secrets);
    let (id, holder) = (Uuid::now_v7(), locks.id);
    let plan = match reserve(inner, (id, &locks), &request, roles, key.as_ref()).await {
        Ok(Ok(plan)) => plan,
        Ok(Err(existing)) => return already_made(inner, existing).await,
        Err(error) => {
            // A commit that failed may have been carried out all the same: the name would be taken by nobody.
            if locks.may_be_held() {
                forget(inner, id, holder).await;
            }
            return Err(error);
        }
    };
    let made = async {
        let secrets = inner.open_secrets(&request.secrets).await?;
        let (limits, now) = (inner.limits.clone(), inner.store.now());
        let facts = blocking(move || make_file(&plan, &request, holder, &limits, &secrets, now)).await?;
        let mut tx = inner.store.begin().await?;
        tx.publish_image(id, holder, &FileName::published(id, 1), &facts)
            .await?;
        locks.release_and_commit(tx, Step::RecordImage).await?;
        Ok(inner.store.image(id).await?.image)
    };
    match made.await {
        Ok(image) => Ok(image),
        Err(error) => {
            forget(inner, id, holder).await;
            Err(error)
        }
    }
}

/// Reserves the name, or finds the image that the same request led to before.
async fn reserve(
    inner: &Arc<Inner>,
    (id, locks): (ImageId, &RequestLocks),
    request: &CreateImage,
    secrets: SecretRefs,
    key: Option<&IdempotentRequest>,
) -> Result<std::result::Result<Plan, ImageId>> {
    let mut tx = inner.store.begin().await?;
    if let Some(Outcome::Image(existing)) = tx.recall(key).await? {
        return Ok(Err(existing));
    }
    let base = match request.backing {
        Some(id) => {
            let chain = tx.chain(id, inner.config.limits.chain_depth.saturating_sub(1)).await?;
            chain.iter().try_for_each(require_ready)?;
            chain.into_iter().next()
        }
        None => None,
    };
    let plan = plan(inner, id, request, base)?;
    let name = |base: &ImageRecord| Backing {
        id: base.image.id,
        generation: base.image.generation,
        name: base.file.clone(),
    };
    tx.insert_image(&NewImage {
        id,
        name: request.name.clone(),
        pool: plan.pool.name().to_owned(),
        file: id.to_string(),
        format: plan.format.to_owned(),
        labels: request.labels.clone(),
        secrets,
        backing: plan.base.as_ref().map(name),
        origin: Origin::ReservedBy(locks.id),
    })
    .await?;
    let mut wanted = vec![(id, LockMode::Exclusive)];
    wanted.extend(plan.base.iter().map(|base| (base.image.id, LockMode::Shared)));
    locks.take(&mut tx, &wanted).await?;
    tx.remember(key, Outcome::Image(id)).await?;
    tx.commit_as(Step::ReserveImage).await?;
    Ok(Ok(plan))
}

fn plan(inner: &Inner, id: ImageId, request: &CreateImage, base: Option<ImageRecord>) -> Result<Plan> {
    let driver = creatable(&request.format, &request.options)?;
    let pool = match (&request.pool, &base) {
        (Some(pool), _) => pool.clone(),
        (None, Some(base)) => base.image.pool.clone(),
        (None, None) => inner.config.default_pool.clone(),
    };
    if let Some(base) = &base {
        if !driver.capabilities().backing {
            let public = format!("format '{}' cannot have a backing file", driver.name());
            return Err(ServiceError::new(ErrorCode::Unsupported, public).with_field("backing"));
        }
        require_same_pool(&pool, base)?;
    }
    let size = request
        .virtual_size
        .or(base.as_ref().map(|base| base.image.virtual_size));
    let Some(virtual_size) = size else {
        return Err(ServiceError::invalid(
            "virtual_size",
            "an image without a base needs a virtual size",
        ));
    };
    let limit = inner.config.limits.virtual_size;
    if virtual_size > limit {
        let public = format!("a virtual size is at most {limit} bytes");
        return Err(ServiceError::new(ErrorCode::LimitExceeded, public).with_field("virtual_size"));
    }
    Ok(Plan {
        id,
        pool: inner.pool(&pool)?,
        virtual_size,
        base,
        format: driver.name(),
    })
}

fn make_file(
    plan: &Plan,
    request: &CreateImage,
    maker: Uuid,
    limits: &vdisk_engine::Limits,
    secrets: &crate::disk::OpenSecrets,
    now: crate::Timestamp,
) -> Result<FileFacts> {
    let backing = plan.base.as_ref().map(reference_to);
    let spec = CreateSpec {
        virtual_size: plan.virtual_size,
        options: engine_options(&request.options),
        backing,
    };
    let file = FileName::published(plan.id, 1);
    let staged = create_disk(&NewDisk {
        pool: &plan.pool,
        file: &file,
        maker,
        format: plan.format,
        spec: &spec,
        limits,
        secrets,
        now,
    })?;
    let storage = staged.storage();
    publish(staged, false)?;
    let looked_at = || {
        let env = OpenEnv {
            metadata_only: true,
            ..OpenEnv::closed(limits).with_secrets(secrets)
        };
        let chain = Chain::open(Node::new(storage, plan.format).without_backing(), &env)?;
        file_facts(chain.top(), &plan.pool, &file)
    };
    looked_at().inspect_err(|_| drop(plan.pool.remove(&file)))
}

async fn already_made(inner: &Inner, id: ImageId) -> Result<Image> {
    match inner.store.image(id).await {
        Ok(record) => Ok(record.image),
        Err(error) if error.code == ErrorCode::NotFound => {
            let public =
                "the first request with this idempotency key is still being worked on, or its image was deleted";
            Err(ServiceError::new(ErrorCode::ImageBusy, public))
        }
        Err(error) => Err(error),
    }
}

/// Undoes a reservation; what cannot be undone now is undone at the next start.
async fn forget(inner: &Inner, id: ImageId, holder: Uuid) {
    for pause in UNDO_PAUSES {
        tokio::time::sleep(pause).await;
        match try_to_forget(inner, id, holder).await {
            Ok(()) => return,
            Err(error) => tracing::warn!(image = %id, %error, "an unfinished image was not cleared away"),
        }
    }
    tracing::warn!(image = %id, "the next start clears it away");
}

async fn try_to_forget(inner: &Inner, id: ImageId, holder: Uuid) -> Result<()> {
    let mut tx = inner.store.begin().await?;
    tx.delete_reserved(holder).await?;
    tx.forget_outcome(Outcome::Image(id)).await?;
    tx.unlock(holder).await?;
    tx.commit_as(Step::ForgetImage).await?;
    // A commit that failed may have been carried out all the same: a file on record stays.
    let recorded = inner.store.begin().await?.any_image(id).await?.is_some();
    for pool in inner.pools.values().filter(|_| !recorded) {
        pool.remove(&FileName::published(id, 1))?;
    }
    Ok(())
}

/// The file is put aside, then the row goes, then the file: at each point a new start knows what to do.
async fn delete(inner: &Arc<Inner>, id: ImageId) -> Result<()> {
    let locks = RequestLocks::new(inner);
    let mut tx = inner.store.begin().await?;
    let record = tx.image(id).await?;
    require_unprotected(&record)?;
    tx.require_free_of_dependents(id, &[]).await?;
    locks.take(&mut tx, &[(id, LockMode::Exclusive)]).await?;
    tx.commit_as(Step::BeginDelete).await?;
    let pool = inner.pool(&record.image.pool)?;
    let removed = async {
        let tx = remove(inner, &pool, &record).await?;
        locks.release_and_commit(tx, Step::RecordDelete).await
    };
    if let Err(error) = removed.await {
        undo_delete(inner, &pool, &record).await;
        locks.release().await;
        return Err(error);
    }
    for leftover in [FileName::trash(&record.file), FileName::upload(id)] {
        if let Err(error) = pool.remove(&leftover) {
            tracing::warn!(image = %id, %error, "a file of a deleted image could not be removed; the next start tries again");
        }
    }
    Ok(())
}

/// Undoes a deletion that failed, while its locks are held; what cannot be undone now is undone at the next start.
async fn undo_delete(inner: &Inner, pool: &PoolFolder, record: &ImageRecord) {
    let image = record.image.id;
    for pause in UNDO_PAUSES {
        tokio::time::sleep(pause).await;
        match try_to_undo_delete(inner, pool, record).await {
            Ok(()) => return,
            Err(error) => tracing::warn!(%image, %error, "the file of an image that stays is still aside"),
        }
    }
    tracing::error!(%image, "the image's file is aside; the next start brings it back");
}

/// A commit that failed may have been carried out all the same: only the database knows whether the file comes back or goes.
async fn try_to_undo_delete(inner: &Inner, pool: &PoolFolder, record: &ImageRecord) -> Result<()> {
    let trash = FileName::trash(&record.file);
    if pool.stat(&trash)?.is_none() {
        return Ok(());
    }
    if inner.store.begin().await?.any_image(record.image.id).await?.is_none() {
        return pool.remove(&trash).map(drop);
    }
    around(Step::BringBack, || pool.rename(&trash, &record.file, false))
}

/// Locks a file that is about to go, so that no other program is using it, a guest for one; `None` when there is no file that could be
/// used.
fn unused(pool: &PoolFolder, file: &str) -> Result<Option<FileStorage>> {
    match pool.open_file(file, Access::Write) {
        Ok(handle) => Ok(Some(FileStorage::from_file(handle, file, FileOptions::write())?)),
        Err(error) if [ErrorCode::NotFound, ErrorCode::Denied].contains(&error.code) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Puts the file aside and takes the row out, in a transaction that is still open.
async fn remove(inner: &Inner, pool: &PoolFolder, record: &ImageRecord) -> Result<Tx> {
    let _held = unused(pool, &record.file)?;
    let aside = || pool.rename(&record.file, &FileName::trash(&record.file), true);
    match around(Step::PutAside, aside) {
        Err(error) if error.code != ErrorCode::NotFound => return Err(error),
        _ => {}
    }
    let mut tx = inner.store.begin().await?;
    tx.delete_image(record.image.id).await?;
    Ok(tx)
}
