//! Compress: the same image in compressed form, in place.
//!
//! A compressed copy of the image's own layer is made beside it, checked, and put in its place by one rename. The
//! old file stays locked until then, so that nobody changes it in between.

mod foresee;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;
use vdisk_engine::env::CreateSpec;
use vdisk_engine::gate::{BackingChoice, Node};
use vdisk_engine::image::ImageInfo;
use vdisk_engine::ops::convert::{CopyOptions, CopyTarget, Segments, convert_in_segments};
use vdisk_engine::options::{OptionSpec, Options};
use vdisk_engine::storage::NewFile;
use vdisk_engine::{Chain, Control, OpenEnv, formats, ops};

use super::context::open_patiently;
use super::fill::{Fill, Filling};
use super::sources::TopLayer;
use super::{Foreseen, Foresight, JobContext, JobRunner, note_digest, parse, plan};
use crate::clock::Timestamp;
use crate::disk::{
    Layer, NewDisk, OpenSecrets, Opening, check_structures, content, create_disk, explicit_node, file_facts, publish,
};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::{ImageId, JobKind};
use crate::queue::{Done, Effect};
use crate::request::{CompressRequest, CompressionAlgorithm};
use crate::service::Inner;
use crate::store::Tx;
use crate::store::images::FileFacts;
use crate::store::jobs::NewJob;

/// Runs compress jobs.
pub struct Compress;

#[derive(Serialize, Deserialize)]
struct Payload {
    image: ImageId,
    algorithm: CompressionAlgorithm,
    level: Option<i32>,
    #[serde(default)]
    verify: bool,
}

/// Checks a request and makes a job of it.
pub async fn plan(tx: &mut Tx, inner: &Inner, id: ImageId, request: CompressRequest) -> Result<NewJob> {
    let chain = plan::ready_chain(tx, inner, id).await?;
    let top = chain.first().ok_or_else(|| ServiceError::not_found("image", id))?;
    plan::require_unprotected(top)?;
    let driver = formats::by_name(&top.image.format)?;
    if !driver.capabilities().compress || !driver.capabilities().create {
        let public = format!(
            "format '{}' cannot hold compressed data; convert the image",
            driver.name()
        );
        return Err(ServiceError::new(ErrorCode::Unsupported, public));
    }
    check_algorithm(driver.create_options(), request.algorithm)?;
    let levels = match request.algorithm {
        CompressionAlgorithm::Zlib => 0..=12,
        CompressionAlgorithm::Zstd => 1..=22,
    };
    if let Some(level) = request.level.filter(|level| !levels.contains(level)) {
        let public = format!("level {level} is not in {} to {}", levels.start(), levels.end());
        return Err(ServiceError::invalid("level", public));
    }
    let payload = Payload {
        image: id,
        algorithm: request.algorithm,
        level: request.level,
        verify: request.verify,
    };
    let mut job = plan::new_job(JobKind::Compress, &request, &payload)?;
    (job.images, job.locks) = (vec![id], plan::exclusive_top(&chain));
    job.pool = Some(top.image.pool.clone());
    job.priority = plan::priority(request.priority)?;
    job.rate_limit = plan::rate_limit(request.rate_limit);
    Ok(job)
}

/// A format with one algorithm has no option for it; that one is zlib.
fn check_algorithm(options: &[OptionSpec], wanted: CompressionAlgorithm) -> Result<()> {
    if has_choice_of_algorithm(options) || wanted == CompressionAlgorithm::Zlib {
        return Ok(());
    }
    Err(ServiceError::new(ErrorCode::Unsupported, "the format knows zlib only").with_field("algorithm"))
}

fn has_choice_of_algorithm(options: &[OptionSpec]) -> bool {
    options.iter().any(|option| option.name == "compression_type")
}

impl JobRunner for Compress {
    fn kind(&self) -> JobKind {
        JobKind::Compress
    }

    fn run(&self, context: JobContext, payload: Value) -> BoxFuture<'static, Result<Done>> {
        async move { run(context, parse(payload)?).await }.boxed()
    }

    fn foresee(&self, foresight: Foresight, payload: Value) -> BoxFuture<'static, Result<Foreseen>> {
        foresee::foresee(foresight, payload).boxed()
    }
}

async fn run(context: JobContext, payload: Payload) -> Result<Done> {
    let image = payload.image;
    let work = Work {
        layers: context.layers(image).await?,
        payload,
        job: context.job(),
        now: context.inner.store.now(),
        limits: context.inner.limits.clone(),
        threads: context.inner.config.threads_per_job,
    };
    let before = work.layers.first().map_or(0, |layer| layer.record.image.allocated_size);
    let top = work.layers.first().ok_or_else(|| ServiceError::internal("no image"))?;
    let options = serde_json::to_string(&work.payload).map_err(ServiceError::internal)?;
    let (pool, file) = (&top.pool, &top.record.file);
    let filling = Filling::new(&context, "compressing", pool, file, &[&work.layers], &options).await?;
    let lease = context.clone();
    let runtime = tokio::runtime::Handle::current();
    // One piece on one thread: the old file's lock is held from the first read until the new file is in its place.
    let (facts, digest) = context
        .blocking(move |control| work.run(&filling, control, &|| runtime.block_on(lease.require_lease())))
        .await?;
    let mut result = json!({"image_id": image, "allocated_before": before, "allocated_size": facts.allocated_size});
    note_digest(&mut result, digest);
    Ok(Done {
        result,
        effects: vec![Effect::Changed {
            image,
            facts,
            new_content: false,
        }],
        ..Done::default()
    })
}

struct Work {
    layers: Vec<Layer>,
    payload: Payload,
    job: Uuid,
    now: Timestamp,
    limits: vdisk_engine::Limits,
    threads: usize,
}

/// The work with the old file open, and locked.
struct Rewriting<'a> {
    work: &'a Work,
    old: &'a Chain,
    options: Options,
    secrets: &'a OpenSecrets,
}

impl Fill for Rewriting<'_> {
    fn needs(&self, _control: &Control) -> Result<u64> {
        Ok(0) // Less than the old file has, but who knows how much.
    }

    fn create(&self) -> Result<NewFile> {
        self.work
            .create(self.old, &self.options, self.work.top()?, self.secrets)
    }

    fn copy(&self, staged: &NewFile, segments: &Segments<'_>, control: &Control) -> Result<()> {
        let options = CopyOptions {
            workers: self.work.threads,
            compress: true,
            level: self.work.payload.level,
            ..CopyOptions::default()
        };
        let new = self.work.open_new(staged, true)?;
        // Overlays go on taking it for what it was: they see the same.
        new.top().stand_in_for(self.old.top())?;
        let below = new.below(0);
        let target = CopyTarget {
            image: new.top(),
            below: &below,
            fresh: true,
            is_zero: self.work.layers.len() == 1,
        };
        Ok(convert_in_segments(
            &TopLayer(self.old),
            &target,
            &options,
            segments,
            control,
        )?)
    }

    fn source(&self) -> &Chain {
        self.old
    }

    fn result(&self, staged: &NewFile) -> Result<Chain> {
        self.work.open_new(staged, false)
    }
}

impl Work {
    fn top(&self) -> Result<&Layer> {
        self.layers.first().ok_or_else(|| ServiceError::internal("no image"))
    }

    fn run(
        &self,
        filling: &Filling,
        control: &Control,
        require_lease: &dyn Fn() -> Result<()>,
    ) -> Result<(FileFacts, Option<String>)> {
        let top = self.top()?;
        let secrets = OpenSecrets::none_until(control);
        let opening = Opening {
            writable: &[0],
            ..Opening::read(&self.limits, &secrets)
        };
        let old = open_patiently(&self.layers, &opening, control)?;
        let options = options_of_new(&old, self.payload.algorithm)?;
        let rewriting = Rewriting {
            work: self,
            old: &old,
            options,
            secrets: &secrets,
        };
        let filled = filling.run(&rewriting, self.payload.verify, control)?;
        let staged = filled.file;
        let format = &top.record.image.format;
        check_structures(staged.storage(), format, &self.limits, &secrets, control)?;
        require_lease()?;
        let storage = staged.storage();
        top.begin_change()?;
        publish(staged, true)?;
        let env = OpenEnv {
            metadata_only: true,
            ..OpenEnv::closed(&self.limits)
        };
        let chain = Chain::open(Node::new(storage, format).without_backing(), &env)?;
        Ok((file_facts(chain.top(), &top.pool, &top.record.file)?, filled.digest))
    }

    fn create(&self, old: &Chain, options: &Options, top: &Layer, secrets: &OpenSecrets) -> Result<NewFile> {
        let spec = CreateSpec {
            virtual_size: old.virtual_size(),
            options: options.clone(),
            backing: old.top().backing(),
        };
        create_disk(&NewDisk {
            pool: &top.pool,
            file: &top.record.file,
            maker: self.job,
            format: &top.record.image.format,
            spec: &spec,
            base: self.layers.get(1),
            limits: &self.limits,
            secrets,
            now: self.now,
        })
    }

    fn open_new(&self, staged: &NewFile, writable: bool) -> Result<Chain> {
        let mut node = Node::new(content(staged), &self.top()?.record.image.format);
        node.backing = match self.layers.get(1..).unwrap_or_default() {
            [] => BackingChoice::None,
            below => BackingChoice::Explicit(Box::new(explicit_node(below)?)),
        };
        let env = OpenEnv {
            writable,
            ..OpenEnv::closed(&self.limits)
        };
        Ok(Chain::open(node, &env)?)
    }
}

/// The create options of the compressed image, which is otherwise as the old one.
///
/// # Errors
/// `unsupported` when it cannot be.
fn options_of_new(old: &Chain, algorithm: CompressionAlgorithm) -> Result<Options> {
    let top = old.top();
    top.check_compressible()?;
    refuse_losses(old, &top.info()?)?;
    let mut options = top.made_with();
    if has_choice_of_algorithm(formats::by_name(top.format())?.create_options()) {
        options.set("compression_type", algorithm.as_str());
    }
    // It looks at the options as a creation does.
    let fits = ops::measure::measure(top.format(), top.virtual_size(), &[], &options, old.layers().len() > 1);
    fits.map_err(|error| {
        let public = format!("the image cannot be rewritten with the options that it has; convert it instead: {error}");
        ServiceError::new(ErrorCode::Unsupported, public)
    })?;
    Ok(options)
}

/// What a rewritten image would not have any more is a reason not to rewrite it.
fn refuse_losses(old: &Chain, info: &ImageInfo) -> Result<()> {
    let bitmaps = old
        .top()
        .bitmaps()
        .map_or(Ok(0), |bitmaps| bitmaps.list().map(|list| list.len()))?;
    let lost = [
        (!info.snapshots.is_empty(), "internal snapshots"),
        (bitmaps > 0, "dirty bitmaps"),
        (info.encrypted, "encryption"),
    ];
    match lost.iter().find(|(there, _)| *there) {
        None => Ok(()),
        Some((_, what)) => {
            let public = format!("the image has {what}, which compressing in place would lose; convert it instead");
            Err(ServiceError::new(ErrorCode::Unsupported, public))
        }
    }
}
