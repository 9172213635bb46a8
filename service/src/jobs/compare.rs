//! Compare: whether two images show the guest the same.

mod foresee;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use vdisk_engine::ops::compare::{Comparison, Difference, compare};

use super::context::open_patiently;
use super::{Foreseen, Foresight, JobContext, JobRunner, parse, plan};
use crate::disk::{OpenSecrets, Opening};
use crate::error::Result;
use crate::model::{ImageId, JobKind};
use crate::queue::Done;
use crate::request::CompareRequest;
use crate::service::Inner;
use crate::store::Tx;
use crate::store::jobs::NewJob;

/// Runs compare jobs.
pub struct Compare;

#[derive(Serialize, Deserialize)]
struct Payload {
    image: ImageId,
    other: ImageId,
    strict: bool,
}

/// Checks a request and makes a job of it.
pub async fn plan(tx: &mut Tx, inner: &Inner, id: ImageId, request: CompareRequest) -> Result<NewJob> {
    let chain = plan::ready_chain(tx, inner, id).await?;
    let other = plan::ready_chain(tx, inner, request.other)
        .await
        .map_err(|error| error.with_field("other"))?;
    let payload = Payload {
        image: id,
        other: request.other,
        strict: request.strict,
    };
    let mut job = plan::new_job(JobKind::Compare, &request, &payload)?;
    job.images = vec![id, request.other];
    job.locks = plan::shared(&chain).chain(plan::shared(&other)).collect();
    job.pool = chain.first().map(|top| top.image.pool.clone());
    job.priority = plan::priority(request.priority)?;
    Ok(job)
}

impl JobRunner for Compare {
    fn kind(&self) -> JobKind {
        JobKind::Compare
    }

    fn run(&self, context: JobContext, payload: Value) -> BoxFuture<'static, Result<Done>> {
        async move { run(context, parse(payload)?).await }.boxed()
    }

    fn foresee(&self, foresight: Foresight, payload: Value) -> BoxFuture<'static, Result<Foreseen>> {
        foresee::foresee(foresight, payload).boxed()
    }
}

async fn run(context: JobContext, payload: Payload) -> Result<Done> {
    let (a, b) = (
        context.layers(payload.image).await?,
        context.layers(payload.other).await?,
    );
    let (limits, threads) = (context.inner.limits.clone(), context.inner.config.threads_per_job);
    context.step("comparing").await?;
    let found = context.blocking(move |control| {
        let secrets = OpenSecrets::none_until(control);
        let opening = Opening::read(&limits, &secrets);
        let (a, b) = (
            open_patiently(&a, &opening, control)?,
            open_patiently(&b, &opening, control)?,
        );
        Ok(compare(&a, &b, payload.strict, threads, control).map_err(|failed| failed.error)?)
    });
    let result = outcome(&found.await?);
    Ok(Done {
        result,
        ..Done::default()
    })
}

fn outcome(found: &Comparison) -> Value {
    let difference = found.difference.map(|difference| match difference {
        Difference::Content(offset) => json!({"kind": "content", "offset": offset}),
        Difference::Allocation(offset) => json!({"kind": "allocation", "offset": offset}),
        Difference::Size(ours, theirs) => json!({"kind": "size", "sizes": [ours, theirs]}),
    });
    json!({"identical": difference.is_none(), "sizes_differ": found.sizes_differ, "difference": difference})
}
