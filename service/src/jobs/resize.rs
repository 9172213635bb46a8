//! Resize: another virtual size.

mod foresee;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vdisk_engine::image::{Preallocation, Resize as EngineResize};
use vdisk_engine::ops::{GuestSource, SourceKind};
use vdisk_engine::{Chain, Control, formats, ops};

use super::context::{open_patiently, until_changed};
use super::{Foreseen, Foresight, JobContext, JobRunner, parse, plan};
use crate::disk::{Layer, OpenSecrets, Opening, file_facts, fingerprint};
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
    let (from, to) = (plan::size_now(inner, top).await?, request.virtual_size);
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

    fn grows_images(&self) -> bool {
        true
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
    let from = context.size_before(&layers).await?;
    context
        .step(&format!("resizing from {from} to {} bytes", payload.to))
        .await?;
    context.require_lease().await?;
    let (image, top) = (payload.image, layers.get(..1).unwrap_or_default().to_vec());
    let before = fingerprint(&top)?;
    let is_first = context.is_first();
    let done = context
        .blocking(move |control| {
            let secrets = until_changed(is_first, control);
            resize(&layers, from, &payload, &limits, &secrets, control)
        })
        .await;
    // What was refused before the first write leaves the image what it was.
    let is_same = || context.is_first() && fingerprint(&top).is_ok_and(|now| now == before);
    if done.is_err() && !is_same() {
        context.begin_new_content(image).await?;
    }
    done
}

/// `first` are the secrets for the opening that comes before all changes.
fn resize(
    layers: &[Layer],
    from: u64,
    payload: &Payload,
    limits: &vdisk_engine::Limits,
    first: &OpenSecrets,
    control: &Control,
) -> Result<Done> {
    let layer = layers.first().ok_or_else(|| ServiceError::internal("no image"))?;
    let secrets = OpenSecrets::default();
    let opening = Opening {
        writable: &[0],
        ..Opening::read(limits, &secrets)
    };
    let first = Opening {
        secrets: first,
        ..opening.clone()
    };
    let chain = open_patiently(layers, &first, control)?;
    let to = EngineResize {
        virtual_size: payload.to,
        shrink: payload.shrink,
        preallocation: Preallocation::Off,
    };
    ops::resize::resize(&chain, &to)?;
    drop(chain);
    // Opened anew: layers may keep what they knew of their size.
    let chain = open_patiently(layers, &opening, control)?;
    hide_longer_base(&chain, from)?;
    let image = layer.record.image.id;
    let facts = file_facts(chain.top(), &layer.pool, &layer.record.file)?;
    let result = json!({"image_id": image, "virtual_size": facts.virtual_size});
    Ok(Done {
        result,
        effects: vec![Effect::Changed {
            image,
            facts,
            new_content: true,
        }],
        ..Done::default()
    })
}

/// An image that has its new size by now keeps it.
async fn abandon(context: JobContext, payload: Payload) -> Result<()> {
    let Some(from) = context.journal().await?.size_before else {
        return Ok(());
    };
    let (layers, limits) = (context.layers(payload.image).await?, context.inner.limits.clone());
    context.begin_new_content(payload.image).await?;
    context
        .blocking(move |control| {
            let secrets = OpenSecrets::default();
            let opening = Opening {
                writable: &[0],
                ..Opening::read(&limits, &secrets)
            };
            hide_longer_base(&open_patiently(&layers, &opening, control)?, from)
        })
        .await
}

/// A base longer than the overlay was must not show through the new part. The engine hides it; an attempt that died in between did not,
/// and the one after it finds the size changed already. What the overlay has there itself stays: a guest may have written it meanwhile.
fn hide_longer_base(chain: &Chain, from: u64) -> Result<()> {
    let end = chain.below(0).virtual_size().min(chain.virtual_size());
    let mut offset = from;
    while offset < end {
        let shown = chain.walk().extent(offset, end - offset)?;
        if shown.kind == SourceKind::Data && shown.layer.is_some_and(|depth| depth > 0) {
            chain.write_zeroes(offset, shown.len, false)?;
        }
        offset += shown.len;
    }
    Ok(chain.top().close()?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vdisk_engine::env::CreateSpec;
    use vdisk_engine::gate::{BackingChoice, DenyAll, Node};
    use vdisk_engine::image::BackingReference;
    use vdisk_engine::storage::MemoryStorage;
    use vdisk_engine::{CreateEnv, Limits, OpenEnv, StorageRef};

    use super::*;

    const MIB: usize = 1 << 20;
    const FORMAT: &str = "qcow2";

    /// An overlay of 2 MiB on a base of 4 MiB.
    fn overlay(limits: &Limits) -> impl Fn() -> Chain {
        let base: StorageRef = Arc::new(MemoryStorage::new("base", vec![b'B'; 4 * MIB]));
        let top: StorageRef = Arc::new(MemoryStorage::new("top", Vec::new()));
        let spec = CreateSpec {
            virtual_size: 2 * MIB as u64,
            backing: Some(BackingReference {
                name: "base".to_owned(),
                format: Some("raw".to_owned()),
            }),
            ..CreateSpec::default()
        };
        let env = CreateEnv {
            gate: &DenyAll,
            limits,
            secrets: &OpenSecrets::default(),
            random: &|buffer| buffer.fill(1),
            now: 0,
        };
        ops::create::create(top.clone(), FORMAT, &spec, &env).unwrap();
        move || {
            let mut node = Node::new(top.clone(), FORMAT);
            node.backing = BackingChoice::Explicit(Box::new(Node::new(base.clone(), "raw").without_backing()));
            let env = OpenEnv {
                writable: true,
                ..OpenEnv::closed(limits)
            };
            Chain::open(node, &env).unwrap()
        }
    }

    #[test]
    fn the_attempt_after_a_death_hides_the_base_and_keeps_what_a_guest_wrote_meanwhile() {
        let limits = Limits::default();
        let open = overlay(&limits);
        let chain = open();
        let to = EngineResize {
            virtual_size: 4 * MIB as u64,
            shrink: false,
            preallocation: Preallocation::Off,
        };
        // The driver alone, as if the attempt had died before the base was hidden.
        chain.top().resize(&to).unwrap();
        chain.top().close().unwrap();
        let chain = open();
        chain.write(3 * MIB as u64, &[b'G'; 64 << 10]).unwrap();
        hide_longer_base(&chain, 2 * MIB as u64).unwrap();
        let mut shown = vec![0; 4 * MIB];
        chain.read(0, &mut shown).unwrap();
        let mut expected = vec![0; 4 * MIB];
        expected[..2 * MIB].fill(b'B');
        expected[3 * MIB..3 * MIB + (64 << 10)].fill(b'G');
        assert!(shown == expected);
    }
}
