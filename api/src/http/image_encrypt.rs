use axum::extract::State;
use axum::response::Response;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use vdisk_service::Service;
use vdisk_service::model::{Job, JobPlan};
use vdisk_service::request::{EncryptRequest, JobRequest};

use super::documented::problems;
use super::extract::{IdempotencyKey, ImagePath, JobBody};
use super::problem::Answer;
use super::reply::{accepted, planned};
use crate::state::App;

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(encrypt_image))
}

problems!(EncryptProblems: NotFound, InvalidArgument, Unsupported, ImageNotReady, ImageBusy, LimitExceeded,
    IdempotencyConflict, InvalidName, NameTaken;
    MalformedBody, BodyTooLarge, UnsupportedMediaType);

/// Encrypt an image.
///
/// Makes a new image with the content of this one, encrypted with LUKS: a LUKS file, or a qcow2 file with `encrypt.format=luks`. The
/// new image remembers its secret. The job's `result.image_id` names it.
#[utoipa::path(post, path = "/v1/images/{id}/encrypt", operation_id = "encrypt_image", tag = "verbs",
    params(ImagePath, IdempotencyKey), request_body = EncryptRequest,
    responses((status = 200, description = "With `dry_run`: what the job would do.", body = JobPlan),
        (status = 202, description = "The job.", body = Job, headers(("Location", description = "The job."))),
        EncryptProblems))]
async fn encrypt_image(
    State(service): State<Service>,
    ImagePath(id): ImagePath,
    IdempotencyKey(call): IdempotencyKey,
    JobBody { request, dry_run }: JobBody<EncryptRequest>,
) -> Answer<Response> {
    if dry_run {
        return Ok(planned(service.plan_job(JobRequest::Encrypt(id, request)).await?));
    }
    Ok(accepted(service.encrypt_image(id, request, &call).await?))
}
