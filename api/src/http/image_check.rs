use axum::extract::State;
use axum::response::Response;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use vdisk_service::Service;
use vdisk_service::model::Job;
use vdisk_service::request::CheckRequest;

use super::documented::problems;
use super::extract::{IdempotencyKey, ImagePath, OptionalBody};
use super::problem::Answer;
use super::reply::accepted;
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
    responses((status = 202, description = "The job.", body = Job, headers(("Location", description = "The job."))),
        CheckProblems))]
async fn check_image(
    State(service): State<Service>,
    ImagePath(id): ImagePath,
    IdempotencyKey(call): IdempotencyKey,
    OptionalBody(request): OptionalBody<CheckRequest>,
) -> Answer<Response> {
    Ok(accepted(service.check_image(id, request, &call).await?))
}
