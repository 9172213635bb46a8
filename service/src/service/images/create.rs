//! A new image: its name is reserved, its file made, then the image is shown.

use std::sync::Arc;

use uuid::Uuid;
use vdisk_engine::env::CreateSpec;
use vdisk_engine::gate::Node;
use vdisk_engine::{Chain, OpenEnv};

use super::undo;
use crate::disk::{Layer, NewDisk, OpenSecrets, create_disk, file_facts, publish, reference_to};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::fault::Step;
use crate::jobs::{bind_base, creatable, engine_options, refuse_unused, require_ready, require_same_pool, take_roles};
use crate::model::{Image, ImageId};
use crate::pool::{FileName, PoolFolder};
use crate::request::{CreateImage, SecretRefs};
use crate::service::Inner;
use crate::service::background::blocking;
use crate::service::locks::RequestLocks;
use crate::store::idempotency::{IdempotentRequest, Outcome};
use crate::store::images::{Backing, FileFacts, ImageRecord, NewImage, Origin};
use crate::store::locks::LockMode;

/// What a new image starts from.
struct Plan {
    id: ImageId,
    pool: Arc<PoolFolder>,
    virtual_size: u64,
    base: Option<ImageRecord>,
    format: &'static str,
}

pub(super) async fn create(
    inner: &Arc<Inner>,
    mut request: CreateImage,
    key: Option<IdempotentRequest>,
) -> Result<Image> {
    let locks = RequestLocks::new(inner);
    let driver = creatable(&request.format, &request.options)?;
    let roles = take_roles(driver, &mut request.options, &request.secrets);
    refuse_unused(driver, &request.options, &request.secrets, &[])?;
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
        let mut tx = locks.begin().await?;
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
            Some(bind_base(&mut tx, inner, chain).await?)
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
    secrets: &OpenSecrets,
    now: crate::Timestamp,
) -> Result<FileFacts> {
    let backing = plan.base.as_ref().map(reference_to);
    // A base lies in the pool of its overlay.
    let base = plan.base.as_ref().map(|record| Layer {
        record: record.clone(),
        pool: plan.pool.clone(),
        keys: OpenSecrets::default(),
        first_write: None,
    });
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
        base: base.as_ref(),
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
            let under_way = inner.store.begin().await?.any_image(id).await?.is_some();
            let (code, public) = match under_way {
                true => (
                    ErrorCode::ImageBusy,
                    "the first request with this idempotency key is still being worked on",
                ),
                false => (
                    ErrorCode::NotFound,
                    "the image of the first request with this idempotency key was deleted",
                ),
            };
            Err(ServiceError::new(code, public))
        }
        Err(error) => Err(error),
    }
}

/// Undoes a reservation; what cannot be undone now is undone at the next start.
async fn forget(inner: &Inner, id: ImageId, holder: Uuid) {
    let attempt = || try_to_forget(inner, id, holder);
    if !undo(id, "an unfinished image was not cleared away", attempt).await {
        tracing::warn!(image = %id, "the next start clears it away");
    }
}

async fn try_to_forget(inner: &Inner, id: ImageId, holder: Uuid) -> Result<()> {
    let mut tx = inner.store.begin().await?;
    // Not where the image came on record after all: its key goes on standing for it.
    tx.delete_reserved(holder).await?;
    tx.unlock(holder).await?;
    tx.commit_as(Step::ForgetImage).await?;
    // A commit that failed may have been carried out all the same: a file on record stays.
    let recorded = inner.store.begin().await?.any_image(id).await?.is_some();
    for pool in inner.pools.values().filter(|_| !recorded) {
        pool.remove(&FileName::published(id, 1))?;
    }
    Ok(())
}
