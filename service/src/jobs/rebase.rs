//! Rebase: an overlay on another base.
//!
//! After a crash the header says how far it came: while it names the old base nothing is decided and the work is done
//! again; once it names the new one all data is in place and only the record is missing. A failure that is not a crash goes back to the
//! base on record, and so does a job that is given up after a crash.

pub(super) mod foresee;
pub(super) mod undo;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vdisk_engine::image::BackingReference;
use vdisk_engine::ops::convert::CopyOptions;
use vdisk_engine::{Chain, Control, formats, ops};

use super::context::{open_patiently, patiently, until_changed};
use super::kept::refuse_snapshots_of;
use super::verify::{digest_before, require_digest};
use super::{Foreseen, Foresight, JobContext, JobRunner, base, note_digest, parse, plan};
use crate::disk::{Layer, Opening, base_changed, file_facts, look_again, reference_to, was_changed_by_others};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::{ImageId, JobKind};
use crate::queue::{Done, Effect};
use crate::request::{RebaseMode, RebaseRequest};
use crate::service::Inner;
use crate::store::Tx;
use crate::store::images::{Backing, ImageRecord};
use crate::store::jobs::NewJob;

/// Runs rebase jobs.
pub struct Rebase;

#[derive(Serialize, Deserialize)]
pub(super) struct Payload {
    pub image: ImageId,
    pub backing: Option<ImageId>,
    pub mode: RebaseMode,
    #[serde(default)]
    pub verify: bool,
    /// The generation of the new base that a safe rebase was queued for.
    #[serde(default)]
    pub generation: Option<u64>,
}

/// Checks a request and makes a job of it.
pub async fn plan(tx: &mut Tx, inner: &Inner, id: ImageId, request: RebaseRequest) -> Result<NewJob> {
    let chain = match request.mode {
        RebaseMode::Safe => plan::ready_chain(tx, inner, id).await?,
        // The old base may be changed or gone: it is not looked at.
        RebaseMode::Unsafe => vec![tx.image(id).await?],
    };
    let top = chain.first().ok_or_else(|| ServiceError::not_found("image", id))?;
    if request.verify && request.mode == RebaseMode::Unsafe {
        let public = "an unsafe rebase changes what the guest sees: there is nothing to verify";
        return Err(ServiceError::invalid("verify", public));
    }
    plan::require_ready(top)?;
    plan::require_unprotected(top)?;
    require_can_rebase(top)?;
    // Who accepts what a base became changes nothing for the overlays above: until it is accepted for them too, they refuse it.
    let accepts = request.backing.is_some() && request.backing == top.image.backing_id;
    if request.mode == RebaseMode::Unsafe && !accepts {
        tx.require_free_of_dependents(id, &[]).await?;
    }
    let below = match request.backing {
        Some(base) => plan::ready_chain(tx, inner, base).await?,
        None => Vec::new(),
    };
    let bound = match request.mode {
        RebaseMode::Safe if !below.is_empty() => Some(base::bind(tx, inner, below.clone()).await?),
        _ => None,
    };
    let payload = Payload {
        image: id,
        backing: request.backing,
        mode: request.mode,
        verify: request.verify,
        generation: bound.map(|base| base.image.generation),
    };
    let mut job = plan::new_job(JobKind::Rebase, &request, &payload)?;
    job.images = vec![id];
    job.locks = plan::exclusive_top(&chain);
    if let Some(base) = request.backing {
        if below.iter().any(|layer| layer.image.id == id) {
            let public = format!("image {base} is built on image {id}; a chain must not contain itself");
            return Err(ServiceError::new(ErrorCode::ConflictCycle, public).with_field("backing"));
        }
        let above = tx.height(id).await? + 1;
        plan::require_depth(inner, below.len(), above)?;
        if let Some(base) = below.first() {
            plan::require_same_pool(&top.image.pool, base)?;
        }
        job.images.push(base);
        job.locks.extend(plan::shared(&below));
    }
    job.pool = Some(top.image.pool.clone());
    job.priority = plan::priority(request.priority)?;
    job.rate_limit = plan::rate_limit(request.rate_limit);
    Ok(job)
}

pub(super) fn require_can_rebase(record: &ImageRecord) -> Result<()> {
    if formats::by_name(&record.image.format)?.capabilities().change_backing {
        return Ok(());
    }
    let public = format!(
        "the base of an image of format '{}' cannot be changed",
        record.image.format
    );
    Err(ServiceError::new(ErrorCode::Unsupported, public))
}

impl JobRunner for Rebase {
    fn kind(&self) -> JobKind {
        JobKind::Rebase
    }

    fn grows_images(&self) -> bool {
        true
    }

    fn run(&self, context: JobContext, payload: Value) -> BoxFuture<'static, Result<Done>> {
        async move { run(context, parse(payload)?).await }.boxed()
    }

    fn abandon(&self, context: JobContext, payload: Value) -> BoxFuture<'static, Result<()>> {
        async move { undo::undo(&context, parse::<Payload>(payload)?.image).await }.boxed()
    }

    fn foresee(&self, foresight: Foresight, payload: Value) -> BoxFuture<'static, Result<Foreseen>> {
        foresee::foresee(foresight, payload).boxed()
    }
}

pub(super) async fn run(context: JobContext, payload: Payload) -> Result<Done> {
    let work = Arc::new(Work {
        image: match payload.mode {
            RebaseMode::Safe => context.layers(payload.image).await?,
            RebaseMode::Unsafe => context.layers(payload.image).await?.into_iter().take(1).collect(),
        },
        base: match payload.backing {
            Some(base) => context.layers(base).await?,
            None => Vec::new(),
        },
        mode: payload.mode,
        generation: payload.generation,
        limits: context.inner.limits.clone(),
        threads: context.inner.config.threads_per_job,
        context: context.clone(),
        changes: AtomicBool::new(false),
    });
    let done = rebase(&context, &payload, &work).await;
    if done.is_err()
        && work.changes.load(Ordering::Relaxed)
        && let Err(error) = undo::undo(&context, payload.image).await
    {
        tracing::error!(image = %payload.image, %error, "the header may name another base than the inventory");
    }
    done
}

async fn rebase(context: &JobContext, payload: &Payload, work: &Arc<Work>) -> Result<Done> {
    if payload.mode == RebaseMode::Safe {
        refuse_snapshots_of(context, &work.image).await?;
    }
    announce(context, work).await?;
    let before = match payload.verify {
        true => Some(digest_before(context, &work.image, u64::MAX).await?),
        false => None,
    };
    context.require_lease().await?;
    let after = work.rebased();
    let running = work.clone();
    let mut done = context.blocking(move |control| running.run(control)).await?;
    if let Some(before) = before {
        require_digest(context, &after, u64::MAX, &before).await?;
        note_digest(&mut done.result, Some(before));
    }
    Ok(done)
}

/// Says what is about to be done. Room is kept for an overlay that comes to stand alone: it takes what its bases hold. How much another base
/// differs is known when all has been compared, and may be little; a copy that does not fit is taken back.
async fn announce(context: &JobContext, work: &Arc<Work>) -> Result<()> {
    let doing = match work.base.is_empty() {
        true => "copying what the bases hold",
        false => "copying what differs",
    };
    // A later attempt has what the first one was promised.
    if !work.base.is_empty() || work.mode == RebaseMode::Unsafe || !context.is_first() {
        return context.step(doing).await;
    }
    let top = work.image.first().ok_or_else(|| ServiceError::internal("no image"))?;
    let looking = work.clone();
    let bytes = context
        .blocking(move |control| foresee::needs_alone(&looking.image, &looking.limits, &control.uncounted()))
        .await?;
    context.reserve(&top.pool, bytes, doing).await
}

struct Work {
    image: Vec<Layer>,
    base: Vec<Layer>,
    mode: RebaseMode,
    generation: Option<u64>,
    limits: vdisk_engine::Limits,
    threads: usize,
    context: JobContext,
    /// Whether the header may name the new base.
    changes: AtomicBool,
}

impl Work {
    /// The chain as it will be, which the inventory learns at the end.
    fn rebased(&self) -> Vec<Layer> {
        let mut layers: Vec<Layer> = self.image.iter().take(1).cloned().collect();
        let base = self.base.first();
        for top in &mut layers {
            top.record.backing_name = base.map(|base| base.record.file.clone());
            top.record.backing_generation = base.map(|base| base.record.image.generation);
        }
        layers.extend(self.base.iter().cloned());
        layers
    }

    fn run(&self, control: &Control) -> Result<Done> {
        let secrets = until_changed(self.context.is_first(), control);
        let reading = Opening::read(&self.limits, &secrets);
        let top = self.image.first().ok_or_else(|| ServiceError::internal("no image"))?;
        let wanted = self.base.first().map(|base| reference_to(&base.record));
        let mut effects = Vec::new();
        let mut generation = self.base.first().map_or(0, |base| base.record.image.generation);
        let header = open_patiently(
            &self.image,
            &Opening {
                top_only: true,
                metadata_only: true,
                ..reading.clone()
            },
            control,
        )?;
        let named = header.top().backing();
        drop(header);
        let switched = named == wanted && named.as_ref().map(|named| &named.name) != top.record.backing_name.as_ref();
        self.changes.store(true, Ordering::Relaxed);
        if self.mode == RebaseMode::Unsafe {
            self.set_header(wanted.as_ref(), &reading, control)?;
            if let Some(refreshed) = self.refresh_base(&reading, control)? {
                generation += u64::from(matches!(refreshed, Effect::Changed { new_content: true, .. }));
                effects.push(refreshed);
            }
        } else {
            self.require_base_as_bound()?;
            if !switched {
                self.copy(wanted.as_ref(), &reading, control)?;
                self.require_base_as_bound()?;
            }
        }
        let opening = Opening {
            top_only: true,
            metadata_only: true,
            ..reading
        };
        let chain = open_patiently(&self.image, &opening, control)?;
        let (image, file) = (top.record.image.id, &top.record.file);
        let facts = file_facts(chain.top(), &top.pool, file)?;
        let backing = self.base.first().map(|base| Backing {
            id: base.record.image.id,
            generation,
            name: base.record.file.clone(),
        });
        let bound = top.record.image.backing_id.zip(top.record.backing_generation);
        let same_base = bound == backing.as_ref().map(|base| (base.id, base.generation));
        let result = json!({"image_id": image, "backing_id": backing.as_ref().map(|backing| backing.id)});
        effects.push(Effect::Rebased { image, backing });
        effects.push(Effect::Changed {
            image,
            facts,
            new_content: self.mode == RebaseMode::Unsafe && !same_base,
        });
        Ok(Done {
            result,
            effects,
            ..Done::default()
        })
    }

    /// The new base alone, without its content.
    fn look_at_base(&self, reading: &Opening<'_>, control: &Control) -> Result<Chain> {
        let looking = Opening {
            top_only: true,
            metadata_only: true,
            ..reading.clone()
        };
        open_patiently(&self.base, &looking, control)
    }

    fn set_header(&self, wanted: Option<&BackingReference>, reading: &Opening<'_>, control: &Control) -> Result<()> {
        let opening = Opening {
            top_only: true,
            writable: &[0],
            ..reading.clone()
        };
        let chain = open_patiently(&self.image, &opening, control)?;
        // Some formats record which content is below.
        let base = match chain.top().layer_id() {
            Some(_) if !self.base.is_empty() => Some(self.look_at_base(reading, control)?),
            _ => None,
        };
        let below = base.as_ref().map(Chain::top);
        Ok(ops::rebase::rebase_unsafe_over(chain.top(), wanted, below)?)
    }

    fn copy(&self, wanted: Option<&BackingReference>, reading: &Opening<'_>, control: &Control) -> Result<()> {
        let chain = open_patiently(
            &self.image,
            &Opening {
                writable: &[0],
                ..reading.clone()
            },
            control,
        )?;
        let base: Option<Chain> = match self.base.is_empty() {
            true => None,
            false => Some(open_patiently(&self.base, reading, control)?),
        };
        let options = CopyOptions {
            workers: self.threads,
            ..CopyOptions::default()
        };
        // The attempt after this one passes over what is there by then; without one, it goes.
        let keep = || self.context.is_handed_on();
        Ok(ops::rebase::rebase_or_keep(
            &chain,
            base.as_ref(),
            wanted,
            &options,
            &keep,
            control,
        )?)
    }

    /// Unsafe mode takes a base that somebody changed as it is: the inventory learns what it is like now.
    fn refresh_base(&self, reading: &Opening<'_>, control: &Control) -> Result<Option<Effect>> {
        let Some(base) = self.base.first() else { return Ok(None) };
        let facts = patiently(control, || look_again(base, reading.limits))?;
        Ok(facts.map(|facts| Effect::Changed {
            image: base.record.image.id,
            facts,
            // Without a stamp nobody knows of a change by others.
            new_content: base.record.file_stamp.is_some(),
        }))
    }

    /// What was copied is right on the base that it was compared with.
    fn require_base_as_bound(&self) -> Result<()> {
        let (Some(top), Some(base)) = (self.image.first(), self.base.first()) else {
            return Ok(());
        };
        let changed_by_us = self
            .generation
            .is_some_and(|bound| bound != base.record.image.generation);
        match changed_by_us || was_changed_by_others(base)? {
            true => Err(base_changed(base.record.image.id, top.record.image.id)),
            false => Ok(()),
        }
    }
}
