use axum::extract::State;
use axum::response::Response;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use vdisk_service::Service;
use vdisk_service::model::{Job, JobPlan};
use vdisk_service::request::{ConvertRequest, JobRequest};

use super::documented::problems;
use super::extract::{IdempotencyKey, ImagePath, JobBody};
use super::problem::Answer;
use super::reply::{accepted, planned};
use crate::state::App;

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(convert_image))
}

problems!(ConvertProblems: NotFound, InvalidArgument, Unsupported, ImageNotReady, ImageBusy, LimitExceeded,
    IdempotencyConflict, InvalidName, NameTaken, BaseChanged;
    MalformedBody, BodyTooLarge, UnsupportedMediaType);

/// Convert an image.
///
/// Makes a new image with the content of this one. The job's `result.image_id` names it.
#[utoipa::path(post, path = "/v1/images/{id}/convert", operation_id = "convert_image", tag = "verbs",
    params(ImagePath, IdempotencyKey), request_body = ConvertRequest,
    responses((status = 200, description = "With `dry_run`: what the job would do.", body = JobPlan),
        (status = 202, description = "The job.", body = Job, headers(("Location", description = "The job."))),
        ConvertProblems))]
async fn convert_image(
    State(service): State<Service>,
    ImagePath(id): ImagePath,
    IdempotencyKey(call): IdempotencyKey,
    JobBody { request, dry_run }: JobBody<ConvertRequest>,
) -> Answer<Response> {
    if dry_run {
        return Ok(planned(service.plan_job(JobRequest::Convert(id, request)).await?));
    }
    Ok(accepted(service.convert_image(id, request, &call).await?))
}
