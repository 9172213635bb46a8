//! Import: a file becomes an image. One that lies in the pool's folder stays where it is; what is fetched, or converted on the way in, is
//! made anew by `fetch`.

mod foresee;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::Path;
use uuid::Uuid;
use vdisk_engine::storage::without_query;
use vdisk_engine::{Control, Limits};

use super::context::pool_of;
use super::fetch::{Fetch, Source};
use super::{Foreseen, Foresight, JobContext, JobRunner, base, parse, plan};
use crate::disk::Look;
use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::{ImageId, JobKind};
use crate::pool::{Access, PoolFolder, check_image_name};
use crate::queue::{Done, Effect};
use crate::request::{ImportImage, ImportSource, Options, SecretRefs};
use crate::sandbox::inspect;
use crate::service::Inner;
use crate::store::Tx;
use crate::store::images::{Backing, FileFacts, NewImage, Origin};
use crate::store::jobs::NewJob;

/// Runs import jobs.
pub struct Import;

#[derive(Serialize, Deserialize)]
struct Payload {
    image: ImageId,
    pool: String,
    source: Source,
    format: Option<String>,
    target_format: Option<String>,
    backing: Option<ImageId>,
}

/// Checks a request and makes a job of it.
pub async fn plan(tx: &mut Tx, inner: &Inner, pool: &str, source: Source, request: ImportImage) -> Result<NewJob> {
    check_image_name(&request.name)?;
    source.check(inner, pool)?;
    let image = Uuid::now_v7();
    // What is made anew gets a name of ours; a file that lies there keeps its own.
    let file = match (&source, &request.target_format) {
        (Source::PoolFile(file), None) => file.clone(),
        _ => image.to_string(),
    };
    if let Some(target) = &request.target_format {
        if let Source::PoolFile(file) = &source {
            tx.require_free_file(pool, file).await?;
        }
        plan::creatable(target, &Options::new()).map_err(|error| error.with_field("target_format"))?;
        if request.backing.is_some() {
            let public = "an overlay is not converted on the way in; import it, then convert it";
            return Err(ServiceError::new(ErrorCode::Unsupported, public).with_field("target_format"));
        }
    }
    let mut locks = Vec::new();
    let mut images = vec![image];
    let backing = match request.backing {
        Some(base) => {
            let below = plan::ready_chain(tx, inner, base).await?;
            plan::require_depth(inner, below.len(), 1)?;
            locks.extend(plan::shared(&below));
            let base = base::bind(tx, inner, below).await?;
            plan::require_same_pool(pool, &base)?;
            images.push(base.image.id);
            // The name in the header becomes known when the file is looked at.
            Some(Backing {
                id: base.image.id,
                generation: base.image.generation,
                name: String::new(),
            })
        }
        None => None,
    };
    let payload = Payload {
        image,
        pool: pool.to_owned(),
        source,
        format: request.format.clone(),
        target_format: request.target_format.clone(),
        backing: request.backing,
    };
    let mut job = plan::new_job(JobKind::Import, &shown(&request), &payload)?;
    let format = request.target_format.or(request.format);
    job.makes = Some(NewImage {
        id: image,
        name: request.name,
        pool: pool.to_owned(),
        file,
        format: format.unwrap_or_default(),
        labels: request.labels,
        secrets: SecretRefs::new(),
        backing,
        origin: Origin::ReservedBy(job.id),
    });
    (job.pool, job.images, job.locks) = (Some(pool.to_owned()), images, locks);
    Ok(job)
}

impl JobRunner for Import {
    fn kind(&self) -> JobKind {
        JobKind::Import
    }

    fn run(&self, context: JobContext, payload: Value) -> BoxFuture<'static, Result<Done>> {
        async move { run(context, parse(payload)?).await }.boxed()
    }

    fn foresee(&self, foresight: Foresight, payload: Value) -> BoxFuture<'static, Result<Foreseen>> {
        foresee::foresee(foresight, payload).boxed()
    }
}

async fn run(context: JobContext, payload: Payload) -> Result<Done> {
    match &payload.source {
        Source::PoolFile(file) if payload.target_format.is_none() => {
            let file = file.clone();
            take_over(context, payload, file).await
        }
        _ => super::fetch::run(context, payload.into_fetch()).await,
    }
}

impl Payload {
    fn into_fetch(self) -> Fetch {
        Fetch {
            image: self.image,
            pool: self.pool,
            source: self.source,
            format: self.format,
            target_format: self.target_format,
        }
    }
}

/// The request as everybody may see it.
fn shown(request: &ImportImage) -> ImportImage {
    let source = match &request.source {
        ImportSource::Url(url) => ImportSource::Url(without_query(url).to_owned()),
        other => other.clone(),
    };
    ImportImage {
        source,
        ..request.clone()
    }
}

/// A file that lies in the pool stays where it is.
async fn take_over(context: JobContext, payload: Payload, file: String) -> Result<Done> {
    let pool = pool_of(&context.inner, &payload.pool)?;
    let limits = context.inner.limits.clone();
    let image = payload.image;
    let base = match payload.backing {
        Some(base) => Some(context.inner.store.image(base).await?),
        None => None,
    };
    context.step("looking at the file").await?;
    let base_format = base.as_ref().map(|base| base.image.format.clone());
    let (claimed, name) = (payload.format, file.clone());
    let inspector = context.inner.config.inspector.clone();
    let taken = context.blocking(move |control| {
        let inspector = inspector.as_deref();
        let (claimed, base) = (claimed.as_deref(), base_format.as_deref());
        take_in(inspector, &pool, &name, claimed, base, &limits, control)
    });
    let taken = taken.await?;
    base::require_bound(&context, image).await?;
    let mut effects = vec![Effect::Published {
        image,
        file,
        facts: taken.facts.clone(),
    }];
    if let (Some(base), Some(name)) = (base, taken.backing_name) {
        let (id, generation) = (base.image.id, base.image.generation);
        effects.push(Effect::Rebased {
            image,
            backing: Some(Backing { id, generation, name }),
        });
    }
    let result = json!({"image_id": image, "format": taken.facts.format, "virtual_size": taken.facts.virtual_size});
    Ok(Done {
        result,
        effects,
        ..Done::default()
    })
}

/// A file that may become an image.
pub struct TakenIn {
    /// What it is like.
    pub facts: FileFacts,
    /// The base its header names.
    pub backing_name: Option<String>,
}

/// Looks at a file of a pool: of which format it is, whether it is sound, and whether it needs no other files than the
/// base that was named for it, if one was, of format `base`.
///
/// # Errors
/// `format_mismatch`, `denied`, `corrupt_image`, `unsupported`, `inspection_failed`, `invalid_argument` when a base was named for a file
/// that has none.
pub fn take_in(
    inspector: Option<&Path>,
    pool: &PoolFolder,
    file: &str,
    claimed: Option<&str>,
    base: Option<&str>,
    limits: &Limits,
    control: &Control,
) -> Result<TakenIn> {
    let handle = pool.open_file(file, Access::Read)?;
    let wanted = Look {
        claimed: claimed.map(str::to_owned),
        check: true,
        strict: true,
    };
    let looked = inspect(inspector, handle, file, &wanted, limits, control)?.accepted()?;
    match (&looked.backing, base) {
        (Some((name, _)), None) => {
            let name = name.escape_debug();
            let public =
                format!("the file is an overlay on \"{name}\"; name the image that stands for it as 'backing'");
            return Err(ServiceError::new(ErrorCode::Denied, public).with_field("backing"));
        }
        (None, Some(_)) => {
            return Err(ServiceError::invalid(
                "backing",
                "the file has no backing reference, so it takes no base",
            ));
        }
        (Some((_, Some(claimed))), Some(base)) if claimed != base => {
            let claimed = claimed.escape_debug();
            let public = format!(
                "the file's header says that its base is of format '{claimed}'; the image named as 'backing' is of format '{base}'"
            );
            return Err(ServiceError::new(ErrorCode::FormatMismatch, public).with_field("backing"));
        }
        _ => {}
    }
    let facts = looked.facts(pool, file)?;
    Ok(TakenIn {
        facts,
        backing_name: looked.backing.map(|(name, _)| name),
    })
}
