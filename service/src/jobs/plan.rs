//! What the plans of the jobs have in common. A plan runs in the transaction that queues the job.

use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;
use vdisk_engine::formats::{self, FormatDriver};

use crate::disk::{Layer, base_changed, look_again, was_changed_by_others};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::{ImageId, ImageState, JobKind};
use crate::request::Options;
use crate::service::Inner;
use crate::store::Tx;
use crate::store::images::ImageRecord;
use crate::store::jobs::NewJob;
use crate::store::locks::LockMode;

/// A job without locks, images and payload yet.
pub fn new_job(kind: JobKind, request: &impl Serialize, payload: &impl Serialize) -> Result<NewJob> {
    let json = |value: std::result::Result<Value, serde_json::Error>| value.map_err(ServiceError::internal);
    Ok(NewJob {
        id: Uuid::now_v7(),
        kind,
        pool: None,
        request: json(serde_json::to_value(request))?,
        payload: json(serde_json::to_value(payload))?,
        images: Vec::new(),
        locks: Vec::new(),
        makes: None,
        priority: 0,
        rate_limit: None,
    })
}

/// The chain of an image, all of it there.
///
/// # Errors
/// `not_found`, `image_not_ready`, `limit_exceeded`.
pub async fn ready_chain(tx: &mut Tx, inner: &Inner, id: ImageId) -> Result<Vec<ImageRecord>> {
    let chain = tx.chain(id, inner.config.limits.chain_depth).await?;
    for layer in &chain {
        require_ready(layer)?;
    }
    Ok(chain)
}

/// The virtual size that the file of an image has, where others may have changed it.
///
/// # Errors
/// `image_not_ready` when it is gone; those of opening it.
pub async fn size_now(inner: &Inner, record: &ImageRecord) -> Result<u64> {
    // While somebody of ours changes it, the job is refused for that.
    if record.image.state == ImageState::Busy {
        return Ok(record.image.virtual_size);
    }
    let (layer, limits) = (inner.without_keys(record.clone())?, inner.limits.clone());
    let looked = tokio::task::spawn_blocking(move || look_again(&layer, &limits)).await;
    let facts = looked.map_err(ServiceError::internal)??;
    Ok(facts.map_or(record.image.virtual_size, |facts| facts.virtual_size))
}

/// Refuses a base under which there are too many layers, itself among them, for those that are to stand above it.
///
/// # Errors
/// `limit_exceeded`.
pub fn require_depth(inner: &Inner, below: usize, above: usize) -> Result<()> {
    let (layers, most) = (below.saturating_add(above), inner.config.limits.chain_depth);
    if layers <= most {
        return Ok(());
    }
    let public =
        format!("the chain would have {layers} layers where at most {most} are allowed; flatten or commit some first");
    Err(ServiceError::new(ErrorCode::LimitExceeded, public).with_field("backing"))
}

/// Refuses an image that has no content to work with.
///
/// # Errors
/// `image_not_ready`.
pub fn require_ready(record: &ImageRecord) -> Result<()> {
    let state = record.image.state;
    if matches!(state, ImageState::Ready | ImageState::Busy) && record.reserved_by.is_none() {
        return Ok(());
    }
    let public = format!("image {} is in state '{state}'", record.image.id);
    Err(ServiceError::new(ErrorCode::ImageNotReady, public))
}

/// Refuses to change a base that somebody else changed: its overlays would take that for what they were made on.
///
/// # Errors
/// `base_changed`.
pub async fn refuse_changed_base(tx: &mut Tx, layer: &Layer) -> Result<()> {
    let overlays = tx.dependents(layer.record.image.id).await?;
    match overlays.first() {
        Some(overlay) if was_changed_by_others(layer).unwrap_or(false) => {
            Err(base_changed(layer.record.image.id, *overlay))
        }
        _ => Ok(()),
    }
}

/// Refuses to change what is protected.
///
/// # Errors
/// `image_protected`.
pub fn require_unprotected(record: &ImageRecord) -> Result<()> {
    if !record.image.protected {
        return Ok(());
    }
    let public = format!("image {} is protected; take the protection off first", record.image.id);
    Err(ServiceError::new(ErrorCode::ImageProtected, public))
}

/// Refuses an overlay and a base in different pools: the name in the overlay's header would not lead to the base.
///
/// # Errors
/// `unsupported`.
pub fn require_same_pool(pool: &str, base: &ImageRecord) -> Result<()> {
    if base.image.pool == pool {
        return Ok(());
    }
    let public = format!(
        "the base lies in pool '{}', the overlay in pool '{pool}'; both must be in one",
        base.image.pool
    );
    Err(ServiceError::new(ErrorCode::Unsupported, public).with_field("backing"))
}

/// Locks to read every layer of a chain.
pub fn shared(chain: &[ImageRecord]) -> impl Iterator<Item = (ImageId, LockMode)> + '_ {
    chain.iter().map(|layer| (layer.image.id, LockMode::Shared))
}

/// Locks to change the first layer of a chain and read the others.
pub fn exclusive_top(chain: &[ImageRecord]) -> Vec<(ImageId, LockMode)> {
    let mode = |depth| {
        if depth == 0 {
            LockMode::Exclusive
        } else {
            LockMode::Shared
        }
    };
    chain
        .iter()
        .enumerate()
        .map(|(depth, layer)| (layer.image.id, mode(depth)))
        .collect()
}

/// The driver of a format, and that it takes the options.
///
/// # Errors
/// `unsupported` for an unknown format or one that cannot be created; `invalid_argument` for an option.
pub fn creatable(format: &str, options: &Options) -> Result<&'static dyn FormatDriver> {
    let unsupported = |public: String| ServiceError::new(ErrorCode::Unsupported, public).with_field("format");
    let driver = formats::by_name(format).map_err(|error| unsupported(error.to_string()))?;
    if !driver.capabilities().create {
        return Err(unsupported(format!(
            "images of format '{}' cannot be created",
            driver.name()
        )));
    }
    let checked = engine_options(options).check(driver.create_options(), driver.name());
    checked.map_err(|error| ServiceError::from(error).with_field("options"))?;
    Ok(driver)
}

/// Options as the engine takes them.
pub fn engine_options(options: &Options) -> vdisk_engine::options::Options {
    options
        .iter()
        .fold(vdisk_engine::options::Options::new(), |all, (name, value)| {
            all.with(name, value)
        })
}

/// A priority within bounds.
///
/// # Errors
/// `invalid_argument`.
pub fn priority(wanted: Option<i32>) -> Result<i32> {
    let priority = wanted.unwrap_or(0);
    if (-1000..=1000).contains(&priority) {
        return Ok(priority);
    }
    Err(ServiceError::invalid(
        "priority",
        "a priority lies between -1000 and 1000",
    ))
}

/// A rate limit; 0 means none.
pub fn rate_limit(wanted: Option<u64>) -> Option<u64> {
    wanted.filter(|limit| *limit > 0)
}
