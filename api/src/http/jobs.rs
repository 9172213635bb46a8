use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use vdisk_service::model::Job;
use vdisk_service::request::{UpdateJob, WaitUntil};
use vdisk_service::{Service, ServiceError};

use super::documented::problems;
use super::extract::{IdempotencyKey, JobPath, JsonBody, Query, Wait};
use super::paging::JobQuery;
use super::problem::Answer;
use super::reply::{JobList, listed};
use crate::state::App;

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list_jobs))
        .routes(routes!(get_job, update_job))
        .routes(routes!(cancel_job))
        .routes(routes!(pause_job))
        .routes(routes!(resume_job))
}

problems!(ListProblems: InvalidArgument);
problems!(GetProblems: NotFound, InvalidArgument);
problems!(SteerProblems: NotFound, InvalidArgument, JobStateConflict, IdempotencyConflict);
problems!(UpdateProblems: NotFound, InvalidArgument, JobStateConflict; MalformedBody, BodyTooLarge,
    UnsupportedMediaType);

/// How to wait for a job.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct WaitQuery {
    /// Answer when the job's state changes, or after this time (`30s`, at most 60 seconds).
    #[param(value_type = Option<String>, example = "30s")]
    wait: Option<Wait>,
    /// With `wait`: answer as soon as the job's `version` is above this one, so that progress counts as a change.
    #[param(minimum = 0)]
    after_version: Option<i64>,
}

impl WaitQuery {
    fn until(&self) -> Answer<WaitUntil> {
        let Some(version) = self.after_version else {
            return Ok(WaitUntil::StateChanges);
        };
        let version =
            u64::try_from(version).map_err(|_| ServiceError::invalid("after_version", "expected 0 or more"))?;
        Ok(WaitUntil::VersionAfter(version))
    }
}

/// List jobs.
///
/// Newest first.
#[utoipa::path(get, path = "/v1/jobs", operation_id = "list_jobs", tag = "jobs", params(JobQuery),
    responses((status = 200, description = "A page of jobs.", body = JobList), ListProblems))]
async fn list_jobs(State(service): State<Service>, Query(query): Query<JobQuery>) -> Answer<Json<JobList>> {
    let (filter, page) = query.into();
    Ok(listed(service.list_jobs(&filter, &page).await?))
}

/// Get a job.
///
/// With `wait` the answer comes when the job's state changes; a job that has ended is answered at once.
#[utoipa::path(get, path = "/v1/jobs/{id}", operation_id = "get_job", tag = "jobs", params(JobPath, WaitQuery),
    responses((status = 200, description = "The job.", body = Job), GetProblems))]
async fn get_job(State(app): State<App>, JobPath(id): JobPath, Query(query): Query<WaitQuery>) -> Answer<Json<Job>> {
    let until = query.until()?;
    let Some(Wait(time)) = query.wait.filter(|wait| wait.0 > Duration::ZERO) else {
        return Ok(Json(app.service.job(id).await?));
    };
    let _place = app.watchers.enter()?;
    let job = tokio::select! {
        job = app.service.wait_job(id, until, time) => job,
        () = app.stopping.cancelled() => app.service.job(id).await,
    };
    Ok(Json(job?))
}

/// Change a job's rate limit or priority.
#[utoipa::path(patch, path = "/v1/jobs/{id}", operation_id = "update_job", tag = "jobs", params(JobPath),
    request_body = UpdateJob,
    responses((status = 200, description = "The job.", body = Job), UpdateProblems))]
async fn update_job(
    State(service): State<Service>,
    JobPath(id): JobPath,
    JsonBody(request): JsonBody<UpdateJob>,
) -> Answer<Json<Job>> {
    Ok(Json(service.update_job(id, request).await?))
}

/// Cancel a job.
///
/// A queued job ends at once, a running one within a moment; nothing is left of it, but for what a commit had written into the base by
/// then. Asking again changes nothing.
#[utoipa::path(post, path = "/v1/jobs/{id}/cancel", operation_id = "cancel_job", tag = "jobs",
    params(JobPath, IdempotencyKey),
    responses((status = 200, description = "The job.", body = Job), SteerProblems))]
async fn cancel_job(
    State(service): State<Service>,
    JobPath(id): JobPath,
    IdempotencyKey(call): IdempotencyKey,
) -> Answer<Json<Job>> {
    Ok(Json(service.cancel_job(id, &call).await?))
}

/// Hold a job back.
///
/// A job that is held on its way lets others run in its place, and waits for a free worker when it goes on.
#[utoipa::path(post, path = "/v1/jobs/{id}/pause", operation_id = "pause_job", tag = "jobs",
    params(JobPath, IdempotencyKey),
    responses((status = 200, description = "The job.", body = Job), SteerProblems))]
async fn pause_job(
    State(service): State<Service>,
    JobPath(id): JobPath,
    IdempotencyKey(call): IdempotencyKey,
) -> Answer<Json<Job>> {
    Ok(Json(service.pause_job(id, &call).await?))
}

/// Let a paused job go on.
#[utoipa::path(post, path = "/v1/jobs/{id}/resume", operation_id = "resume_job", tag = "jobs",
    params(JobPath, IdempotencyKey),
    responses((status = 200, description = "The job.", body = Job), SteerProblems))]
async fn resume_job(
    State(service): State<Service>,
    JobPath(id): JobPath,
    IdempotencyKey(call): IdempotencyKey,
) -> Answer<Json<Job>> {
    Ok(Json(service.resume_job(id, &call).await?))
}
