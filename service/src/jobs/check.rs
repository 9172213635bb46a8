//! Check: contradictions in an image's structures, and their repair.

mod foresee;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vdisk_engine::image::{CheckReport, Repair as EngineRepair};
use vdisk_engine::{Control, formats, ops};

use super::context::open_patiently;
use super::{Foreseen, Foresight, JobContext, JobRunner, parse, plan};
use crate::disk::{Layer, OpenSecrets, Opening, file_facts};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::{ImageId, JobKind};
use crate::queue::{Done, Effect};
use crate::request::{CheckRequest, Repair};
use crate::service::Inner;
use crate::store::Tx;
use crate::store::jobs::NewJob;
use crate::store::locks::LockMode;

/// Runs check jobs.
pub struct Check;

/// Findings that a result lists at most.
const MESSAGES: usize = 100;

#[derive(Serialize, Deserialize)]
struct Payload {
    image: ImageId,
    repair: Option<Repair>,
}

/// Checks a request and makes a job of it.
pub async fn plan(tx: &mut Tx, _inner: &Inner, id: ImageId, request: CheckRequest) -> Result<NewJob> {
    let record = tx.image(id).await?;
    plan::require_ready(&record)?;
    let can = formats::by_name(&record.image.format)?.capabilities();
    if !can.check || (request.repair.is_some() && !can.repair) {
        let what = if can.check {
            "repaired"
        } else {
            "checked: the format has nothing to check"
        };
        let public = format!("images of format '{}' cannot be {what}", record.image.format);
        return Err(ServiceError::new(ErrorCode::Unsupported, public));
    }
    if request.repair.is_some() {
        plan::require_unprotected(&record)?;
    }
    let mut job = plan::new_job(
        JobKind::Check,
        &request,
        &Payload {
            image: id,
            repair: request.repair,
        },
    )?;
    let mode = if request.repair.is_some() {
        LockMode::Exclusive
    } else {
        LockMode::Shared
    };
    (job.images, job.locks) = (vec![id], vec![(id, mode)]);
    job.pool = Some(record.image.pool);
    job.priority = plan::priority(request.priority)?;
    Ok(job)
}

impl JobRunner for Check {
    fn kind(&self) -> JobKind {
        JobKind::Check
    }

    fn run(&self, context: JobContext, payload: Value) -> BoxFuture<'static, Result<Done>> {
        async move { run(context, parse(payload)?).await }.boxed()
    }

    fn foresee(&self, foresight: Foresight, payload: Value) -> BoxFuture<'static, Result<Foreseen>> {
        foresee::foresee(foresight, payload).boxed()
    }
}

async fn run(context: JobContext, payload: Payload) -> Result<Done> {
    let mut layers = context.layers(payload.image).await?;
    layers.truncate(1);
    let limits = context.inner.limits.clone();
    context
        .step(if payload.repair.is_some() {
            "checking and repairing"
        } else {
            "checking"
        })
        .await?;
    context.require_lease().await?;
    context
        .blocking(move |control| check(&layers, payload.repair, &limits, control))
        .await
}

fn check(layers: &[Layer], repair: Option<Repair>, limits: &vdisk_engine::Limits, control: &Control) -> Result<Done> {
    let layer = layers.first().ok_or_else(|| ServiceError::internal("no image"))?;
    let secrets = OpenSecrets::none_until(control);
    let opening = Opening {
        top_only: true,
        for_check: true,
        writable: if repair.is_some() { &[0] } else { &[] },
        ..Opening::read(limits, &secrets)
    };
    let chain = open_patiently(layers, &opening, control)?;
    let repair = match repair {
        None => EngineRepair::No,
        Some(Repair::Leaks) => EngineRepair::Leaks,
        Some(Repair::All) => EngineRepair::All,
    };
    let report = ops::check::check(chain.top(), repair, control)?;
    let image = layer.record.image.id;
    let mut done = Done {
        result: report_json(image, &report),
        ..Done::default()
    };
    if repair != EngineRepair::No {
        let facts = file_facts(chain.top(), &layer.pool, &layer.record.file)?;
        done.effects.push(Effect::Changed {
            image,
            facts,
            new_content: false,
        });
    }
    Ok(done)
}

/// The keys are those of `qemu-img check --output=json`.
fn report_json(image: ImageId, report: &CheckReport) -> Value {
    let mut json = json!({
        "image_id": image,
        "clean": report.corruptions == 0 && report.leaks == 0 && report.check_errors == 0,
        "check-errors": report.check_errors,
        "corruptions": report.corruptions,
        "leaks": report.leaks,
        "corruptions-fixed": report.corruptions_fixed,
        "leaks-fixed": report.leaks_fixed,
        "messages": report.messages.iter().take(MESSAGES).collect::<Vec<_>>(),
    });
    let numbers = [
        ("image-end-offset", report.image_end_offset),
        ("total-clusters", report.total_clusters),
        ("allocated-clusters", report.allocated_clusters),
        ("fragmented-clusters", report.fragmented_clusters),
        ("compressed-clusters", report.compressed_clusters),
    ];
    if let Value::Object(keys) = &mut json {
        keys.extend(
            numbers
                .into_iter()
                .filter_map(|(key, number)| Some((key.to_owned(), number?.into()))),
        );
    }
    json
}
