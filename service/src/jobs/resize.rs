//! Resize: another virtual size.

mod foresee;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vdisk_engine::image::{Preallocation, Resize as EngineResize};
use vdisk_engine::{Control, formats, ops};

use super::context::open_patiently;
use super::{Foreseen, Foresight, JobContext, JobRunner, parse, plan};
use crate::disk::{Layer, OpenSecrets, Opening, file_facts};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::{ImageId, JobKind};
use crate::queue::{Done, Effect};
use crate::request::ResizeRequest;
use crate::service::Inner;
use crate::store::Tx;
use crate::store::jobs::NewJob;

/// Runs resize jobs.
pub struct Resize;

#[derive(Serialize, Deserialize)]
struct Payload {
    image: ImageId,
    from: u64,
    to: u64,
    shrink: bool,
}

/// Checks a request and makes a job of it.
pub async fn plan(tx: &mut Tx, inner: &Inner, id: ImageId, request: ResizeRequest) -> Result<NewJob> {
    let chain = plan::ready_chain(tx, inner, id).await?;
    let top = chain.first().ok_or_else(|| ServiceError::not_found("image", id))?;
    plan::require_unprotected(top)?;
    tx.require_free_of_dependents(id, &[]).await?;
    let (from, to) = (top.image.virtual_size, request.virtual_size);
    if to > inner.config.limits.virtual_size {
        let limit = inner.config.limits.virtual_size;
        return Err(
            ServiceError::new(ErrorCode::LimitExceeded, format!("at most {limit} bytes")).with_field("virtual_size"),
        );
    }
    let can = formats::by_name(&top.image.format)?.capabilities();
    if (to > from && !can.grow) || (to < from && !can.shrink) {
        let verb = if to > from { "grow" } else { "shrink" };
        let public = format!("images of format '{}' cannot {verb}", top.image.format);
        return Err(ServiceError::new(ErrorCode::Unsupported, public));
    }
    if to < from && !request.shrink {
        let public =
            format!("the image has {from} bytes; what lies behind {to} would be lost. Set shrink to allow that");
        return Err(ServiceError::invalid("shrink", public));
    }
    let payload = Payload {
        image: id,
        from,
        to,
        shrink: request.shrink,
    };
    let mut job = plan::new_job(JobKind::Resize, &request, &payload)?;
    (job.images, job.locks) = (vec![id], plan::exclusive_top(&chain));
    job.pool = Some(top.image.pool.clone());
    job.priority = plan::priority(request.priority)?;
    Ok(job)
}

impl JobRunner for Resize {
    fn kind(&self) -> JobKind {
        JobKind::Resize
    }

    fn run(&self, context: JobContext, payload: Value) -> BoxFuture<'static, Result<Done>> {
        async move { run(context, parse(payload)?).await }.boxed()
    }

    fn abandon(&self, context: JobContext, payload: Value) -> BoxFuture<'static, Result<()>> {
        async move { abandon(context, parse(payload)?).await }.boxed()
    }

    fn foresee(&self, foresight: Foresight, payload: Value) -> BoxFuture<'static, Result<Foreseen>> {
        foresee::foresee(foresight, payload).boxed()
    }
}

async fn run(context: JobContext, payload: Payload) -> Result<Done> {
    let layers = context.layers(payload.image).await?;
    let limits = context.inner.limits.clone();
    context
        .step(&format!("resizing from {} to {} bytes", payload.from, payload.to))
        .await?;
    context.require_lease().await?;
    context.begin_new_content(payload.image).await?;
    context
        .blocking(move |control| resize(&layers, &payload, &limits, control))
        .await
}

fn resize(layers: &[Layer], payload: &Payload, limits: &vdisk_engine::Limits, control: &Control) -> Result<Done> {
    let layer = layers.first().ok_or_else(|| ServiceError::internal("no image"))?;
    let secrets = OpenSecrets::default();
    let opening = Opening {
        writable: &[0],
        ..Opening::read(limits, &secrets)
    };
    let chain = open_patiently(layers, &opening, control)?;
    let to = EngineResize {
        virtual_size: payload.to,
        shrink: payload.shrink,
        preallocation: Preallocation::Off,
    };
    ops::resize::resize(&chain, &to)?;
    drop(chain);
    // Opened anew: layers may keep what they knew of their size.
    let chain = open_patiently(layers, &opening, control)?;
    hide_longer_base(&chain, layers, payload)?;
    let image = layer.record.image.id;
    let facts = file_facts(chain.top(), &layer.pool, &layer.record.file)?;
    let result = json!({"image_id": image, "virtual_size": facts.virtual_size});
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

/// An image that has its new size by now keeps it.
async fn abandon(context: JobContext, payload: Payload) -> Result<()> {
    let (layers, limits) = (context.layers(payload.image).await?, context.inner.limits.clone());
    context
        .blocking(move |control| {
            let secrets = OpenSecrets::default();
            let opening = Opening {
                writable: &[0],
                ..Opening::read(&limits, &secrets)
            };
            let chain = open_patiently(&layers, &opening, control)?;
            hide_longer_base(&chain, &layers, &payload)
        })
        .await
}

/// A base longer than the overlay was must not show through the new part. The engine hides it; an attempt that died in between did not,
/// and the one after it finds the size changed already.
fn hide_longer_base(chain: &vdisk_engine::Chain, layers: &[Layer], payload: &Payload) -> Result<()> {
    let Some(base) = layers.get(1) else { return Ok(()) };
    let end = base.record.image.virtual_size.min(chain.virtual_size());
    if end > payload.from {
        chain.write_zeroes(payload.from, end - payload.from, false)?;
        chain.top().close()?;
    }
    Ok(())
}
