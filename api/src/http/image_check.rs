use axum::extract::State;
use axum::response::Response;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use vdisk_service::Service;
use vdisk_service::model::{Job, JobPlan};
use vdisk_service::request::{CheckRequest, JobRequest};

use super::documented::problems;
use super::extract::{IdempotencyKey, ImagePath, JobBody, OptionalJobBody};
use super::problem::Answer;
use super::reply::{accepted, planned};
use crate::state::App;

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(check_image))
}

problems!(CheckProblems: NotFound, InvalidArgument, Unsupported, ImageNotReady, ImageBusy, LimitExceeded,
    IdempotencyConflict, ImageProtected;
    MalformedBody, BodyTooLarge, UnsupportedMediaType);

/// Check an image's structures.
///
/// Looks for errors and leaks, and repairs them when asked.
#[utoipa::path(post, path = "/v1/images/{id}/check", operation_id = "check_image", tag = "verbs",
    params(ImagePath, IdempotencyKey), request_body = Option<CheckRequest>,
    responses((status = 200, description = "With `dry_run`: what the job would do.", body = JobPlan),
        (status = 202, description = "The job.", body = Job, headers(("Location", description = "The job."))),
        CheckProblems))]
async fn check_image(
    State(service): State<Service>,
    ImagePath(id): ImagePath,
    IdempotencyKey(call): IdempotencyKey,
    OptionalJobBody(JobBody { request, dry_run }): OptionalJobBody<CheckRequest>,
) -> Answer<Response> {
    if dry_run {
        return Ok(planned(service.plan_job(JobRequest::Check(id, request)).await?));
    }
    Ok(accepted(service.check_image(id, request, &call).await?))
}
