use axum::extract::State;
use axum::response::Response;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use vdisk_service::Service;
use vdisk_service::model::{Job, JobPlan};
use vdisk_service::request::{JobRequest, RebaseRequest};

use super::documented::problems;
use super::extract::{IdempotencyKey, ImagePath, JobBody};
use super::problem::Answer;
use super::reply::{accepted, planned};
use crate::state::App;

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(rebase_image))
}

problems!(RebaseProblems: NotFound, InvalidArgument, Unsupported, ImageNotReady, ImageBusy, LimitExceeded,
    IdempotencyConflict, ConflictCycle, ConflictDependents, ImageProtected, BaseChanged;
    MalformedBody, BodyTooLarge, UnsupportedMediaType);

/// Put an overlay on another base.
///
/// `backing` is the new base, or null to make the image stand alone. In mode `safe` the content stays what it is; in mode
/// `unsafe` only the reference changes. In mode `safe` an image with internal snapshots is refused: they would show something else.
/// Onto the base that it has, in mode `unsafe`, it takes the base as it is now; images that stand on it answer `base_changed` if that is
/// another one, until they are told the same.
#[utoipa::path(post, path = "/v1/images/{id}/rebase", operation_id = "rebase_image", tag = "verbs",
    params(ImagePath, IdempotencyKey), request_body = RebaseRequest,
    responses((status = 200, description = "With `dry_run`: what the job would do.", body = JobPlan),
        (status = 202, description = "The job.", body = Job, headers(("Location", description = "The job."))),
        RebaseProblems))]
async fn rebase_image(
    State(service): State<Service>,
    ImagePath(id): ImagePath,
    IdempotencyKey(call): IdempotencyKey,
    JobBody { request, dry_run }: JobBody<RebaseRequest>,
) -> Answer<Response> {
    if dry_run {
        return Ok(planned(service.plan_job(JobRequest::Rebase(id, request)).await?));
    }
    Ok(accepted(service.rebase_image(id, request, &call).await?))
}
