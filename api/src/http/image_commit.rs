use axum::extract::State;
use axum::response::Response;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use vdisk_service::Service;
use vdisk_service::model::{Job, JobPlan};
use vdisk_service::request::{CommitRequest, JobRequest};

use super::documented::problems;
use super::extract::{IdempotencyKey, ImagePath, JobBody, OptionalJobBody};
use super::problem::Answer;
use super::reply::{accepted, planned};
use crate::state::App;

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(commit_image))
}

problems!(CommitProblems: NotFound, InvalidArgument, Unsupported, ImageNotReady, ImageBusy, LimitExceeded,
    IdempotencyConflict, ConflictDependents, ImageProtected;
    MalformedBody, BodyTooLarge, UnsupportedMediaType);

/// Commit an overlay into its base.
///
/// Writes what the overlay holds into the base. A commit that is cancelled or fails on the way may leave a part of that in the base: the
/// overlay shows what it showed, and the base counts as changed. An overlay with internal snapshots is committed with `drop` only, and its
/// snapshots go with it: without it they would show the changed base.
#[utoipa::path(post, path = "/v1/images/{id}/commit", operation_id = "commit_image", tag = "verbs",
    params(ImagePath, IdempotencyKey), request_body = Option<CommitRequest>,
    responses((status = 200, description = "With `dry_run`: what the job would do.", body = JobPlan),
        (status = 202, description = "The job.", body = Job, headers(("Location", description = "The job."))),
        CommitProblems))]
async fn commit_image(
    State(service): State<Service>,
    ImagePath(id): ImagePath,
    IdempotencyKey(call): IdempotencyKey,
    OptionalJobBody(JobBody { request, dry_run }): OptionalJobBody<CommitRequest>,
) -> Answer<Response> {
    if dry_run {
        return Ok(planned(service.plan_job(JobRequest::Commit(id, request)).await?));
    }
    Ok(accepted(service.commit_image(id, request, &call).await?))
}
