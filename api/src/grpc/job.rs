use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use tonic::{Request, Response, Status};
use vdisk_service::ServiceError;
use vdisk_service::model;
use vdisk_service::request::WaitUntil;

use super::convert::{id_of, page, token};
use super::{Answer, Api, call, status};
use crate::proto::job_service_server::JobService;
use crate::proto::{
    CancelJobRequest, Event, GetJobRequest, Job, ListJobsRequest, ListJobsResponse, PauseJobRequest, ResumeJobRequest,
    UpdateJobRequest, WaitJobRequest, WatchJobsRequest,
};

/// How long a wait lasts when it is not said, and at most.
const WAIT: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(60));

#[tonic::async_trait]
impl JobService for Api {
    type WatchJobsStream = BoxStream<'static, Result<Event, Status>>;

    async fn list_jobs(&self, request: Request<ListJobsRequest>) -> Answer<ListJobsResponse> {
        let mut request = request.into_inner();
        let page = page(request.page.take());
        let filter = request.try_into().map_err(status::of)?;
        let page = self
            .0
            .service
            .list_jobs(&filter, &page)
            .await
            .map_err(status::of)?
            .map(Into::into);
        Ok(Response::new(ListJobsResponse {
            items: page.items,
            next_page_token: token(page.next_page_token),
        }))
    }

    async fn get_job(&self, request: Request<GetJobRequest>) -> Answer<Job> {
        let id = job_id(&request.into_inner().id)?;
        answer(self.0.service.job(id).await)
    }

    async fn wait_job(&self, request: Request<WaitJobRequest>) -> Answer<Job> {
        let request = request.into_inner();
        let id = job_id(&request.id)?;
        let time = match request.timeout.map(Duration::try_from) {
            None => WAIT.0,
            Some(Ok(time)) => time.min(WAIT.1),
            Some(Err(_)) => {
                let public = "expected a time of 0 or more, found a negative one";
                return Err(status::of(ServiceError::invalid("timeout", public)));
            }
        };
        let _place = self.0.watchers.enter().map_err(status::of)?;
        answer(tokio::select! {
            job = self.0.service.wait_job(id, WaitUntil::Finished, time) => job,
            () = self.0.stopping.cancelled() => self.0.service.job(id).await,
        })
    }

    async fn watch_jobs(&self, request: Request<WatchJobsRequest>) -> Answer<Self::WatchJobsStream> {
        let request = request.into_inner();
        let filter = (&request).try_into().map_err(status::of)?;
        let place = self.0.watchers.enter().map_err(status::of)?;
        let events = self
            .0
            .service
            .subscribe(filter, request.after)
            .await
            .map_err(status::of)?;
        let events = events.map(move |event| {
            let _stays_taken = &place;
            event.map(Into::into).map_err(status::of)
        });
        Ok(Response::new(
            events.take_until(self.0.stopping.clone().cancelled_owned()).boxed(),
        ))
    }

    async fn cancel_job(&self, request: Request<CancelJobRequest>) -> Answer<Job> {
        let call = call(&request)?;
        let id = job_id(&request.into_inner().id)?;
        answer(self.0.service.cancel_job(id, &call).await)
    }

    async fn pause_job(&self, request: Request<PauseJobRequest>) -> Answer<Job> {
        let call = call(&request)?;
        let id = job_id(&request.into_inner().id)?;
        answer(self.0.service.pause_job(id, &call).await)
    }

    async fn resume_job(&self, request: Request<ResumeJobRequest>) -> Answer<Job> {
        let call = call(&request)?;
        let id = job_id(&request.into_inner().id)?;
        answer(self.0.service.resume_job(id, &call).await)
    }

    async fn update_job(&self, request: Request<UpdateJobRequest>) -> Answer<Job> {
        let request = request.into_inner();
        let id = job_id(&request.id)?;
        answer(self.0.service.update_job(id, request.into()).await)
    }
}

fn job_id(text: &str) -> Result<model::JobId, Status> {
    id_of("job", text).map_err(status::of)
}

fn answer(job: vdisk_service::Result<model::Job>) -> Answer<Job> {
    Ok(Response::new(job.map_err(status::of)?.into()))
}
