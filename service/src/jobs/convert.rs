//! Convert: a new image with the content of another.

pub(super) mod foresee;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;
use vdisk_engine::env::CreateSpec;
use vdisk_engine::gate::{BackingChoice, Node};
use vdisk_engine::image::Below;
use vdisk_engine::ops::convert::{CopyOptions, CopyTarget, Segments, convert_in_segments};
use vdisk_engine::storage::NewFile;
use vdisk_engine::{Chain, Control, OpenEnv};

use super::context::{open_patiently, pool_of};
use super::fill::{Fill, Filled, Filling};
use super::sources::DifferenceTo;
use super::{Foreseen, Foresight, JobContext, JobRunner, base, note_digest, parse, plan, roles, space};
use crate::clock::Timestamp;
use crate::disk::{
    Layer, NewDisk, OpenSecrets, Opening, check_structures, content, create_disk, file_facts, find_snapshot, keyring,
    publish, reference_to,
};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::{ImageId, JobKind};
use crate::pool::{PoolFolder, check_image_name};
use crate::queue::{Done, Effect};
use crate::request::ConvertRequest;
use crate::service::Inner;
use crate::store::Tx;
use crate::store::images::{Backing, FileFacts, NewImage, Origin};
use crate::store::jobs::NewJob;

/// Runs convert jobs.
pub struct Convert;

#[derive(Serialize, Deserialize)]
struct Payload {
    source: ImageId,
    target: ImageId,
    pool: String,
    request: ConvertRequest,
}

/// Checks a request and makes a job of it.
pub async fn plan(tx: &mut Tx, inner: &Inner, source: ImageId, request: ConvertRequest) -> Result<NewJob> {
    let shown = request.clone();
    plan_copy(tx, inner, source, request, (JobKind::Convert, &shown)).await
}

/// The plan of a job that is a conversion under another name; `named` is its kind and the request that it shows.
pub(super) async fn plan_copy(
    tx: &mut Tx,
    inner: &Inner,
    source: ImageId,
    mut request: ConvertRequest,
    named: (JobKind, &impl Serialize),
) -> Result<NewJob> {
    check_image_name(&request.name)?;
    let chain = plan::ready_chain(tx, inner, source).await?;
    let top = chain.first().ok_or_else(|| ServiceError::not_found("image", source))?;
    let pool = request.pool.clone().unwrap_or_else(|| top.image.pool.clone());
    pool_of(inner, &pool)?;
    let driver = plan::creatable(&request.format, &request.options)?;
    let can = driver.capabilities();
    let unsupported = |what: &str| {
        ServiceError::new(
            ErrorCode::Unsupported,
            format!("format '{}' cannot {what}", driver.name()),
        )
        .with_field("format")
    };
    if request.compress && !can.compress {
        return Err(unsupported("hold compressed data"));
    }
    if request.backing.is_some() && !can.backing {
        return Err(unsupported("have a backing file"));
    }
    roles::require_secrets(inner, &request.secrets).await?;
    let keys = roles::take_roles(driver, &mut request.options, &request.secrets);
    let target = Uuid::now_v7();
    let mut locks: Vec<_> = plan::shared(&chain).collect();
    let mut images = vec![source, target];
    let mut opened = chain.clone();
    let backing = match request.backing {
        Some(base) => {
            let below = plan::ready_chain(tx, inner, base).await?;
            plan::require_depth(inner, below.len(), 1)?;
            locks.extend(plan::shared(&below));
            images.push(base);
            opened.extend(below.iter().cloned());
            let base = base::bind(tx, inner, below).await?;
            plan::require_same_pool(&pool, &base)?;
            let (id, generation) = (base.image.id, base.image.generation);
            Some(Backing {
                id,
                generation,
                name: base.file,
            })
        }
        None => None,
    };
    roles::refuse_unused(driver, &request.options, &request.secrets, &opened)?;
    let payload = Payload {
        source,
        target,
        pool: pool.clone(),
        request: request.clone(),
    };
    let mut job = plan::new_job(named.0, named.1, &payload)?;
    job.makes = Some(NewImage {
        id: target,
        name: request.name.clone(),
        pool: pool.clone(),
        file: target.to_string(),
        format: driver.name().to_owned(),
        labels: request.labels.clone(),
        secrets: keys,
        backing,
        origin: Origin::ReservedBy(job.id),
    });
    (job.pool, job.images, job.locks) = (Some(pool), images, locks);
    job.priority = plan::priority(request.priority)?;
    job.rate_limit = plan::rate_limit(request.rate_limit);
    Ok(job)
}

impl JobRunner for Convert {
    fn kind(&self) -> JobKind {
        JobKind::Convert
    }

    fn run(&self, context: JobContext, payload: Value) -> BoxFuture<'static, Result<Done>> {
        run(context, payload).boxed()
    }

    fn foresee(&self, foresight: Foresight, payload: Value) -> BoxFuture<'static, Result<Foreseen>> {
        foresee::foresee(foresight, payload).boxed()
    }
}

pub(super) async fn run(context: JobContext, payload: Value) -> Result<Done> {
    let payload: Payload = parse(payload)?;
    let target = payload.target;
    let file = context.new_file_name(target);
    base::require_bound(&context, target).await?;
    let base = match payload.request.backing {
        Some(base) => context.layers(base).await?,
        None => Vec::new(),
    };
    let asked = context.secrets(&payload.request.secrets).await?;
    let work = Work {
        source: context.layers(payload.source).await?,
        secrets: keyring(&base, &asked.under_roles(&payload.request.options)),
        base,
        pool: pool_of(&context.inner, &payload.pool)?,
        job: context.job(),
        now: context.inner.store.now(),
        limits: context.inner.limits.clone(),
        threads: context.inner.config.threads_per_job,
        file: file.clone(),
        request: payload.request,
    };
    let pool = work.pool.clone();
    let options = serde_json::to_string(&work.request).map_err(ServiceError::internal)?;
    let sources: &[&[Layer]] = &[&work.source, &work.base];
    let filling = Filling::new(&context, "copying", &pool, &file, sources, &options).await?;
    let (filled, work) = context
        .blocking(move |control| Ok((work.fill(&filling, control)?, work)))
        .await?;
    context.step("checking the new image").await?;
    let (staged, digest) = (filled.file, filled.digest);
    let (staged, work) = context
        .blocking(move |control| {
            check_structures(
                staged.storage(),
                &work.request.format,
                &work.limits,
                &work.secrets,
                control,
            )?;
            Ok((staged, work))
        })
        .await?;
    base::require_bound(&context, target).await?;
    context.require_lease().await?;
    let facts = context.blocking(move |_| work.publish(staged)).await?;
    let mut result =
        json!({"image_id": target, "virtual_size": facts.virtual_size, "allocated_size": facts.allocated_size});
    note_digest(&mut result, digest);
    Ok(Done {
        result,
        effects: vec![Effect::Published {
            image: target,
            file: file.clone(),
            facts,
        }],
        published: vec![(pool, file)],
        ..Done::default()
    })
}

/// Everything the engine's part needs, on its own thread.
struct Work {
    source: Vec<Layer>,
    base: Vec<Layer>,
    pool: std::sync::Arc<PoolFolder>,
    secrets: OpenSecrets,
    job: Uuid,
    now: Timestamp,
    limits: vdisk_engine::Limits,
    threads: usize,
    file: String,
    request: ConvertRequest,
}

/// The work with its source open: to open one may take a key that costs seconds.
struct Copying<'a> {
    work: &'a Work,
    source: &'a Chain,
}

impl Fill for Copying<'_> {
    fn needs(&self, control: &Control) -> Result<u64> {
        if !self.work.base.is_empty() {
            return Ok(0); // What differs from the base is known once it is copied.
        }
        let request = &self.work.request;
        let options = plan::engine_options(&request.options);
        space::for_copy(self.source, &request.format, &options, request.compress, control)
    }

    fn create(&self) -> Result<NewFile> {
        self.work.create_target(self.source.virtual_size())
    }

    fn copy(&self, staged: &NewFile, segments: &Segments<'_>, control: &Control) -> Result<()> {
        let options = CopyOptions {
            workers: self.work.threads,
            compress: self.work.request.compress,
            ..CopyOptions::default()
        };
        let target = self.work.open_target(staged, true)?;
        let below = target.below(0);
        let over: Option<&dyn Below> = if self.work.base.is_empty() { None } else { Some(&below) };
        let into = CopyTarget::fresh(target.top(), over)?;
        if self.work.base.is_empty() {
            convert_in_segments(self.source, &into, &options, segments, control)?;
        } else {
            let base = open_patiently(&self.work.base, &self.work.reading(), control)?;
            let difference = DifferenceTo {
                image: self.source,
                base: &base,
            };
            convert_in_segments(&difference, &into, &options, segments, control)?;
        }
        Ok(())
    }

    fn source(&self) -> &Chain {
        self.source
    }

    fn result(&self, staged: &NewFile) -> Result<Chain> {
        self.work.open_target(staged, false)
    }
}

/// A chain as it was at a snapshot of its top.
fn at_snapshot(chain: Chain, name: Option<&str>) -> Result<Chain> {
    let Some(name) = name else {
        return Ok(chain);
    };
    let none = || ServiceError::no_such_name("snapshot", name.escape_debug()).with_field("snapshot");
    let table = chain.top().snapshots().ok_or_else(none)?;
    let list = table.list()?;
    let old = table.open(&find_snapshot(&list, name).ok_or_else(none)?.id)?;
    let mut layers = chain.into_layers();
    if let Some(top) = layers.first_mut() {
        *top = old;
    }
    Ok(Chain::from_layers(layers)?)
}

impl Work {
    fn reading(&self) -> Opening<'_> {
        Opening::read(&self.limits, &self.secrets)
    }

    fn fill(&self, filling: &Filling, control: &Control) -> Result<Filled> {
        let source = open_patiently(&self.source, &self.reading(), control)?;
        let source = at_snapshot(source, self.request.snapshot.as_deref())?;
        let copying = Copying {
            work: self,
            source: &source,
        };
        filling.run(&copying, self.request.verify, control)
    }

    fn create_target(&self, virtual_size: u64) -> Result<NewFile> {
        let backing = self.base.first().map(|base| reference_to(&base.record));
        let spec = CreateSpec {
            virtual_size,
            options: plan::engine_options(&self.request.options),
            backing,
        };
        create_disk(&NewDisk {
            pool: &self.pool,
            file: &self.file,
            maker: self.job,
            format: &self.request.format,
            spec: &spec,
            base: self.base.first(),
            limits: &self.limits,
            secrets: &self.secrets,
            now: self.now,
        })
    }

    /// Opens the new file with its base below, which is named by nobody but us.
    fn open_target(&self, staged: &NewFile, writable: bool) -> Result<Chain> {
        let driver = vdisk_engine::formats::by_name(&self.request.format)?;
        let known = driver.open_options();
        let chosen = self
            .request
            .options
            .iter()
            .filter(|(name, _)| known.iter().any(|option| option.name == name.as_str()));
        let options = chosen.fold(vdisk_engine::options::Options::new(), |all, (name, value)| {
            all.with(name, value)
        });
        let mut node = Node::new(content(staged), driver.name()).with_options(options);
        node.backing = match self.base.as_slice() {
            [] => BackingChoice::None,
            base => BackingChoice::Explicit(Box::new(crate::disk::explicit_node(base)?)),
        };
        let env = OpenEnv {
            writable,
            ..OpenEnv::closed(&self.limits).with_secrets(&self.secrets)
        };
        Ok(Chain::open(node, &env)?)
    }

    fn publish(&self, staged: NewFile) -> Result<FileFacts> {
        let storage = staged.storage();
        publish(staged, false)?;
        let node = Node::new(storage, &self.request.format).without_backing();
        let env = OpenEnv {
            metadata_only: true,
            ..OpenEnv::closed(&self.limits).with_secrets(&self.secrets)
        };
        let chain = Chain::open(node, &env)?;
        file_facts(chain.top(), &self.pool, &self.file)
    }
}
