use axum::extract::State;
use axum::response::Response;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use vdisk_service::Service;
use vdisk_service::model::{Job, JobPlan};
use vdisk_service::request::{JobRequest, RekeyRequest};

use super::documented::problems;
use super::extract::{IdempotencyKey, ImagePath, JobBody};
use super::problem::Answer;
use super::reply::{accepted, planned};
use crate::state::App;

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(rekey_image))
}

problems!(RekeyProblems: NotFound, InvalidArgument, Unsupported, ImageNotReady, ImageBusy, LimitExceeded,
    IdempotencyConflict, SecretRequired, ImageProtected;
    MalformedBody, BodyTooLarge, UnsupportedMediaType);

/// Change the key slots of an encrypted image.
///
/// Adds, changes or erases a passphrase in place; the data is not touched, and at every moment some key opens it. `info` lists the
/// slots. The last key is not erased unless `force` says so.
#[utoipa::path(post, path = "/v1/images/{id}/rekey", operation_id = "rekey_image", tag = "verbs",
    params(ImagePath, IdempotencyKey), request_body = RekeyRequest,
    responses((status = 200, description = "With `dry_run`: what the job would do.", body = JobPlan),
        (status = 202, description = "The job.", body = Job, headers(("Location", description = "The job."))),
        RekeyProblems))]
async fn rekey_image(
    State(service): State<Service>,
    ImagePath(id): ImagePath,
    IdempotencyKey(call): IdempotencyKey,
    JobBody { request, dry_run }: JobBody<RekeyRequest>,
) -> Answer<Response> {
    if dry_run {
        return Ok(planned(service.plan_job(JobRequest::Rekey(id, request)).await?));
    }
    Ok(accepted(service.rekey_image(id, request, &call).await?))
}
