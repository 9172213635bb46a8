//! Flatten: an overlay that stands alone, which is a safe rebase onto nothing.

use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::Value;

use super::{Foreseen, Foresight, JobContext, JobRunner, parse, plan, rebase};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::{ImageId, JobKind};
use crate::queue::Done;
use crate::request::{FlattenRequest, RebaseMode};
use crate::service::Inner;
use crate::store::Tx;
use crate::store::jobs::NewJob;

/// Runs flatten jobs.
pub struct Flatten;

/// Checks a request and makes a job of it.
pub async fn plan(tx: &mut Tx, inner: &Inner, id: ImageId, request: FlattenRequest) -> Result<NewJob> {
    let chain = plan::ready_chain(tx, inner, id).await?;
    let top = chain.first().ok_or_else(|| ServiceError::not_found("image", id))?;
    if top.image.backing_id.is_none() {
        let public = format!("image {id} has no base; it stands alone already");
        return Err(ServiceError::new(ErrorCode::InvalidArgument, public));
    }
    plan::require_unprotected(top)?;
    rebase::require_can_rebase(top)?;
    let payload = rebase::Payload {
        image: id,
        backing: None,
        mode: RebaseMode::Safe,
        verify: request.verify,
        generation: None,
    };
    let mut job = plan::new_job(JobKind::Flatten, &request, &payload)?;
    job.images = vec![id];
    job.locks = plan::exclusive_top(&chain);
    job.pool = Some(top.image.pool.clone());
    job.priority = plan::priority(request.priority)?;
    job.rate_limit = plan::rate_limit(request.rate_limit);
    Ok(job)
}

impl JobRunner for Flatten {
    fn kind(&self) -> JobKind {
        JobKind::Flatten
    }

    fn grows_images(&self) -> bool {
        true
    }

    fn run(&self, context: JobContext, payload: Value) -> BoxFuture<'static, Result<Done>> {
        async move { rebase::run(context, parse(payload)?).await }.boxed()
    }

    fn abandon(&self, context: JobContext, payload: Value) -> BoxFuture<'static, Result<()>> {
        async move { rebase::undo::undo(&context, parse::<rebase::Payload>(payload)?.image).await }.boxed()
    }

    fn foresee(&self, foresight: Foresight, payload: Value) -> BoxFuture<'static, Result<Foreseen>> {
        rebase::foresee::foresee(foresight, payload).boxed()
    }
}
