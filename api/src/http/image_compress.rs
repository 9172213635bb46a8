use axum::extract::State;
use axum::response::Response;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use vdisk_service::Service;
use vdisk_service::model::{Job, JobPlan};
use vdisk_service::request::{CompressRequest, JobRequest};

use super::documented::problems;
use super::extract::{IdempotencyKey, ImagePath, JobBody};
use super::problem::Answer;
use super::reply::{accepted, planned};
use crate::state::App;

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(compress_image))
}

problems!(CompressProblems: NotFound, InvalidArgument, Unsupported, ImageNotReady, ImageBusy, LimitExceeded,
    IdempotencyConflict, ConflictDependents, ImageProtected;
    MalformedBody, BodyTooLarge, UnsupportedMediaType);

/// Compress an image in place.
///
/// Rewrites the image with compressed clusters; id, name, create options and what its overlays show stay. `unsupported` where something would be
/// lost (internal snapshots, dirty bitmaps, encryption) and for VMDKs other than streamOptimized ones, which hold no compressed data.
#[utoipa::path(post, path = "/v1/images/{id}/compress", operation_id = "compress_image", tag = "verbs",
    params(ImagePath, IdempotencyKey), request_body = CompressRequest,
    responses((status = 200, description = "With `dry_run`: what the job would do.", body = JobPlan),
        (status = 202, description = "The job.", body = Job, headers(("Location", description = "The job."))),
        CompressProblems))]
async fn compress_image(
    State(service): State<Service>,
    ImagePath(id): ImagePath,
    IdempotencyKey(call): IdempotencyKey,
    JobBody { request, dry_run }: JobBody<CompressRequest>,
) -> Answer<Response> {
    if dry_run {
        return Ok(planned(service.plan_job(JobRequest::Compress(id, request)).await?));
    }
    Ok(accepted(service.compress_image(id, request, &call).await?))
}
