use axum::extract::State;
use axum::response::Response;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use vdisk_service::Service;
use vdisk_service::model::{Job, JobPlan};
use vdisk_service::request::{FlattenRequest, JobRequest};

use super::documented::problems;
use super::extract::{IdempotencyKey, ImagePath, JobBody, OptionalJobBody};
use super::problem::Answer;
use super::reply::{accepted, planned};
use crate::state::App;

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(flatten_image))
}

problems!(FlattenProblems: NotFound, InvalidArgument, Unsupported, ImageNotReady, ImageBusy, LimitExceeded,
    IdempotencyConflict, ImageProtected;
    MalformedBody, BodyTooLarge, UnsupportedMediaType);

/// Make an overlay stand alone.
///
/// Copies into it what it takes from its bases. An image with internal snapshots is refused: they would lose what they take from the bases.
#[utoipa::path(post, path = "/v1/images/{id}/flatten", operation_id = "flatten_image", tag = "verbs",
    params(ImagePath, IdempotencyKey), request_body = Option<FlattenRequest>,
    responses((status = 200, description = "With `dry_run`: what the job would do.", body = JobPlan),
        (status = 202, description = "The job.", body = Job, headers(("Location", description = "The job."))),
        FlattenProblems))]
async fn flatten_image(
    State(service): State<Service>,
    ImagePath(id): ImagePath,
    IdempotencyKey(call): IdempotencyKey,
    OptionalJobBody(JobBody { request, dry_run }): OptionalJobBody<FlattenRequest>,
) -> Answer<Response> {
    if dry_run {
        return Ok(planned(service.plan_job(JobRequest::Flatten(id, request)).await?));
    }
    Ok(accepted(service.flatten_image(id, request, &call).await?))
}
