//! Commit: an overlay's content into a base below it.
//!
//! The overlay stays whole until the base is stable, so that the work can be done again after a crash at any point. A commit that ends on
//! the way leaves a part of the overlay in the base: everybody above sees what it saw, and the base is on record as another one.
//! Layers that are dropped are put aside under another name first and removed once the record says so; an attempt
//! that finds them aside brings them back.

mod bind;
mod foresee;

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vdisk_engine::ops::convert::CopyOptions;
use vdisk_engine::{Control, formats, ops};

use super::context::open_patiently;
use super::kept::refuse_snapshots_of;
use super::verify::{digest_before, require_digest};
use super::{Foreseen, Foresight, JobContext, JobRunner, note_digest, parse, plan};
use crate::disk::{Layer, OpenSecrets, Opening, file_facts};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::{ImageId, JobKind};
use crate::pool::{FileName, PoolFolder};
use crate::queue::{Done, Effect};
use crate::request::CommitRequest;
use crate::service::Inner;
use crate::store::Tx;
use crate::store::images::ImageRecord;
use crate::store::jobs::NewJob;
use crate::store::locks::LockMode;

/// Runs commit jobs.
pub struct Commit;

#[derive(Serialize, Deserialize)]
struct Payload {
    image: ImageId,
    depth: usize,
    drop: bool,
    #[serde(default)]
    verify: bool,
}

/// Checks a request and makes a job of it.
pub async fn plan(tx: &mut Tx, inner: &Inner, id: ImageId, request: CommitRequest) -> Result<NewJob> {
    let chain = plan::ready_chain(tx, inner, id).await?;
    let (depth, base) = find_base(&chain, &request)?;
    for layer in chain.get(..=depth).unwrap_or_default() {
        plan::require_unprotected(layer)?;
    }
    if !formats::by_name(&base.image.format)?.capabilities().write {
        let public = format!("images of format '{}' cannot be written", base.image.format);
        return Err(ServiceError::new(ErrorCode::Unsupported, public));
    }
    if depth > 1 && !request.drop {
        let public = "the layers between would be left on a changed base; set drop, or commit layer by layer";
        return Err(ServiceError::invalid("drop", public));
    }
    // Whatever else stands on a layer below the top would see the base change under it.
    for pair in chain.get(..=depth).unwrap_or_default().windows(2) {
        let [above, below] = pair else { continue };
        tx.require_free_of_dependents(below.image.id, &[above.image.id]).await?;
    }
    if request.drop {
        tx.require_free_of_dependents(id, &[]).await?;
    }
    let payload = Payload {
        image: id,
        depth,
        drop: request.drop,
        verify: request.verify,
    };
    let mut job = plan::new_job(JobKind::Commit, &request, &payload)?;
    let mode = |at: usize| {
        if at <= depth {
            LockMode::Exclusive
        } else {
            LockMode::Shared
        }
    };
    job.locks = chain
        .iter()
        .enumerate()
        .map(|(at, layer)| (layer.image.id, mode(at)))
        .collect();
    job.images = chain.iter().take(depth + 1).map(|layer| layer.image.id).collect();
    job.pool = Some(base.image.pool.clone());
    job.priority = plan::priority(request.priority)?;
    job.rate_limit = plan::rate_limit(request.rate_limit);
    Ok(job)
}

fn find_base<'a>(chain: &'a [ImageRecord], request: &CommitRequest) -> Result<(usize, &'a ImageRecord)> {
    let below = || chain.iter().enumerate().skip(1);
    let found = match request.base {
        Some(wanted) => below().find(|(_, layer)| layer.image.id == wanted),
        None => below().next(),
    };
    found.ok_or_else(|| match request.base {
        Some(wanted) => ServiceError::invalid("base", format!("image {wanted} is not below the image in its chain")),
        None => ServiceError::new(ErrorCode::InvalidArgument, "the image has no base to commit into"),
    })
}

impl JobRunner for Commit {
    fn kind(&self) -> JobKind {
        JobKind::Commit
    }

    fn grows_images(&self) -> bool {
        true
    }

    fn run(&self, context: JobContext, payload: Value) -> BoxFuture<'static, Result<Done>> {
        async move { run(context, parse(payload)?).await }.boxed()
    }

    fn abandon(&self, context: JobContext, payload: Value) -> BoxFuture<'static, Result<()>> {
        async move {
            let payload: Payload = parse(payload)?;
            let layers = context.layers(payload.image).await?;
            bind::bind_again(&context, layers, payload.depth).await
        }
        .boxed()
    }

    fn foresee(&self, foresight: Foresight, payload: Value) -> BoxFuture<'static, Result<Foreseen>> {
        foresee::foresee(foresight, payload).boxed()
    }
}

async fn run(context: JobContext, payload: Payload) -> Result<Done> {
    let layers = context.layers(payload.image).await?;
    if !context.is_first() {
        bind::bind_again(&context, layers.clone(), payload.depth).await?;
    }
    if !payload.drop {
        refuse_snapshots_of(&context, &layers).await?;
    }
    let (limits, threads) = (context.inner.limits.clone(), context.inner.config.threads_per_job);
    let before = match payload.verify {
        true => {
            let size = context.size_before(&layers).await?;
            Some((digest_before(&context, &layers, size).await?, size))
        }
        false => None,
    };
    let depth = payload.depth;
    let base = layers.get(depth).ok_or_else(|| ServiceError::internal("no base"))?;
    let (chain, bounds) = (layers.clone(), limits.clone());
    let bytes = context
        .blocking(move |control| foresee::needs(&chain, depth, &bounds, &control.uncounted()))
        .await?;
    context.reserve(&base.pool, bytes, "writing into the base").await?;
    context.require_lease().await?;
    context.begin_new_content(base.record.image.id).await?;
    let work = Work {
        layers,
        payload,
        limits,
        threads,
    };
    let chain = work.layers.clone();
    let done = write(&context, work, before).await;
    if done.is_err()
        && !context.is_handed_on()
        && let Err(error) = leave_in_order(&context, chain, depth).await
    {
        tracing::error!(job = %context.job(), %error, "the overlay may not know the base that a commit has written to");
    }
    done
}

/// Where a commit ended on the way.
async fn leave_in_order(context: &JobContext, chain: Vec<Layer>, depth: usize) -> Result<()> {
    bind::bind_again(context, chain, depth).await?;
    let left = "ended on the way: the base holds a part of the overlay, which shows what it showed";
    context.step(left).await
}

/// `before` is the digest of what the guest saw, and of how many bytes.
async fn write(context: &JobContext, work: Work, before: Option<(String, u64)>) -> Result<Done> {
    let (drop_layers, depth) = (work.payload.drop, work.payload.depth);
    // With a digest to compare, the overlay stays whole until it was compared.
    let keep = drop_layers || before.is_some();
    let work = context
        .blocking(move |control| work.commit(!keep, control).map(|()| work))
        .await?;
    if let Some((before, size)) = &before {
        let base = work.layers.get(depth..).unwrap_or_default();
        require_digest(context, base, *size, before).await?;
        context.require_lease().await?;
    }
    let empty = before.is_some() && !drop_layers;
    let (work, mut done) = context
        .blocking(move |control| {
            if empty {
                work.empty_top(control)?;
            }
            let done = work.outcome(control)?;
            Ok((work, done))
        })
        .await?;
    note_digest(&mut done.result, before.map(|(digest, _)| digest));
    let layers = work.layers;
    if drop_layers {
        context.step("dropping the overlay").await?;
        context.require_lease().await?;
        let dropped = layers.iter().take(depth).map(|layer| layer.record.image.id);
        context.require_unprotected(dropped).await?;
        for (pool, image, file) in droppable(&layers, &done) {
            pool.put_aside(image, &file)?;
            done.obsolete.push((pool, FileName::trash(image)));
        }
    }
    Ok(done)
}

struct Work {
    layers: Vec<Layer>,
    payload: Payload,
    limits: vdisk_engine::Limits,
    threads: usize,
}

impl Work {
    fn commit(&self, empty_top: bool, control: &Control) -> Result<()> {
        let secrets = OpenSecrets::none_until(control);
        let options = CopyOptions {
            workers: self.threads,
            ..CopyOptions::default()
        };
        let opening = Opening {
            // The layer over the base is told what becomes of the base.
            writable: &[0, self.payload.depth.saturating_sub(1), self.payload.depth],
            ..Opening::read(&self.limits, &secrets)
        };
        let chain = open_patiently(&self.layers, &opening, control)?;
        Ok(ops::commit::commit(
            &chain,
            self.payload.depth,
            empty_top,
            &options,
            control,
        )?)
    }

    /// The overlay has nothing of its own any more once the base has it all.
    fn empty_top(&self, control: &Control) -> Result<()> {
        let secrets = OpenSecrets::default();
        let opening = Opening {
            writable: &[0],
            ..Opening::read(&self.limits, &secrets)
        };
        let chain = open_patiently(&self.layers, &opening, control)?;
        ops::commit::empty_committed(chain.top())?;
        Ok(chain.top().close()?)
    }

    fn outcome(&self, control: &Control) -> Result<Done> {
        outcome(&self.layers, &self.payload, &self.limits, control)
    }
}

fn outcome(layers: &[Layer], payload: &Payload, limits: &vdisk_engine::Limits, control: &Control) -> Result<Done> {
    let secrets = OpenSecrets::default();
    let reading = Opening::read(limits, &secrets);
    let mut effects = Vec::new();
    let changed = |at: usize| -> Result<Effect> {
        let tail = layers.get(at..).unwrap_or_default();
        let opening = Opening {
            top_only: true,
            metadata_only: true,
            ..reading.clone()
        };
        let chain = open_patiently(tail, &opening, control)?;
        let layer = tail.first().ok_or_else(|| ServiceError::internal("no such layer"))?;
        let facts = file_facts(chain.top(), &layer.pool, &layer.record.file)?;
        Ok(Effect::Changed {
            image: layer.record.image.id,
            facts,
            new_content: false,
        })
    };
    let base = layers
        .get(payload.depth)
        .ok_or_else(|| ServiceError::internal("no base"))?
        .record
        .image
        .id;
    // That the base shows something else is on record since before the first write.
    effects.push(changed(payload.depth)?);
    if payload.drop {
        effects.extend(
            layers
                .iter()
                .take(payload.depth)
                .map(|layer| Effect::Deleted(layer.record.image.id)),
        );
    } else {
        effects.push(changed(0)?);
    }
    let result = json!({"image_id": base, "dropped": payload.drop});
    Ok(Done {
        result,
        effects,
        ..Done::default()
    })
}

/// Files of the layers that the record will not have any more.
fn droppable(layers: &[Layer], done: &Done) -> Vec<(Arc<PoolFolder>, ImageId, String)> {
    let dropped = |layer: &&Layer| {
        done.effects
            .iter()
            .any(|effect| matches!(effect, Effect::Deleted(image) if *image == layer.record.image.id))
    };
    layers
        .iter()
        .filter(dropped)
        .map(|layer| (layer.pool.clone(), layer.record.image.id, layer.record.file.clone()))
        .collect()
}
