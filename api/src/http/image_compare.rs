use axum::extract::State;
use axum::response::Response;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use vdisk_service::Service;
use vdisk_service::model::{Job, JobPlan};
use vdisk_service::request::{CompareRequest, JobRequest};

use super::documented::problems;
use super::extract::{IdempotencyKey, ImagePath, JobBody};
use super::problem::Answer;
use super::reply::{accepted, planned};
use crate::state::App;

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(compare_images))
}

problems!(CompareProblems: NotFound, InvalidArgument, Unsupported, ImageNotReady, ImageBusy, LimitExceeded,
    IdempotencyConflict;
    MalformedBody, BodyTooLarge, UnsupportedMediaType);

/// Compare two images.
///
/// Tells whether a guest would read the same from both.
#[utoipa::path(post, path = "/v1/images/{id}/compare", operation_id = "compare_images", tag = "verbs",
    params(ImagePath, IdempotencyKey), request_body = CompareRequest,
    responses((status = 200, description = "With `dry_run`: what the job would do.", body = JobPlan),
        (status = 202, description = "The job.", body = Job, headers(("Location", description = "The job."))),
        CompareProblems))]
async fn compare_images(
    State(service): State<Service>,
    ImagePath(id): ImagePath,
    IdempotencyKey(call): IdempotencyKey,
    JobBody { request, dry_run }: JobBody<CompareRequest>,
) -> Answer<Response> {
    if dry_run {
        return Ok(planned(service.plan_job(JobRequest::Compare(id, request)).await?));
    }
    Ok(accepted(service.compare_images(id, request, &call).await?))
}
