use axum::extract::State;
use axum::response::Response;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use vdisk_service::Service;
use vdisk_service::model::{Job, JobPlan};
use vdisk_service::request::{JobRequest, ResizeRequest};

use super::documented::problems;
use super::extract::{IdempotencyKey, ImagePath, JobBody};
use super::problem::Answer;
use super::reply::{accepted, planned};
use crate::state::App;

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(resize_image))
}

problems!(ResizeProblems: NotFound, InvalidArgument, Unsupported, ImageNotReady, ImageBusy, LimitExceeded,
    IdempotencyConflict, ConflictDependents, ImageProtected;
    MalformedBody, BodyTooLarge, UnsupportedMediaType);

/// Change the virtual size.
///
/// Making an image smaller must be said with `shrink`.
#[utoipa::path(post, path = "/v1/images/{id}/resize", operation_id = "resize_image", tag = "verbs",
    params(ImagePath, IdempotencyKey), request_body = ResizeRequest,
    responses((status = 200, description = "With `dry_run`: what the job would do.", body = JobPlan),
        (status = 202, description = "The job.", body = Job, headers(("Location", description = "The job."))),
        ResizeProblems))]
async fn resize_image(
    State(service): State<Service>,
    ImagePath(id): ImagePath,
    IdempotencyKey(call): IdempotencyKey,
    JobBody { request, dry_run }: JobBody<ResizeRequest>,
) -> Answer<Response> {
    if dry_run {
        return Ok(planned(service.plan_job(JobRequest::Resize(id, request)).await?));
    }
    Ok(accepted(service.resize_image(id, request, &call).await?))
}
