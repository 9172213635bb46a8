use tonic::{Request, Response};
use vdisk_service::request::JobRequest;

use super::convert::{id_of, one_of};
use super::{Answer, Api, status};
use crate::proto::plan_job_request::Request as Asked;
use crate::proto::plan_service_server::PlanService;
use crate::proto::{JobPlan, PlanJobRequest};

/// A verb on an image: its id, and the request as the verb's own call reads it.
macro_rules! verb {
    ($kind:ident, $request:expr) => {
        JobRequest::$kind(id_of("image", &$request.id)?, $request.try_into()?)
    };
}

#[tonic::async_trait]
impl PlanService for Api {
    async fn plan_job(&self, request: Request<PlanJobRequest>) -> Answer<JobPlan> {
        let request = asked(request.into_inner()).map_err(status::of)?;
        let plan = self.0.service.plan_job(request).await.map_err(status::of)?;
        Ok(Response::new(plan.into()))
    }
}

fn asked(request: PlanJobRequest) -> vdisk_service::Result<JobRequest> {
    Ok(match one_of("request", request.request)? {
        Asked::Convert(request) => verb!(Convert, request),
        Asked::Encrypt(request) => verb!(Encrypt, request),
        Asked::Decrypt(request) => verb!(Decrypt, request),
        Asked::Rekey(request) => verb!(Rekey, request),
        Asked::Compress(request) => verb!(Compress, request),
        Asked::Rebase(request) => verb!(Rebase, request),
        Asked::Commit(request) => verb!(Commit, request),
        Asked::Flatten(request) => verb!(Flatten, request),
        Asked::Check(request) => verb!(Check, request),
        Asked::Resize(request) => verb!(Resize, request),
        Asked::Compare(request) => verb!(Compare, request),
        Asked::Import(request) => JobRequest::Import(request.try_into()?),
        Asked::Scan(request) => JobRequest::Scan(request.name),
    })
}
