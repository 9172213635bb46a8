use axum::extract::State;
use axum::response::Response;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use vdisk_service::Service;
use vdisk_service::model::Job;
use vdisk_service::request::RebaseRequest;

use super::documented::problems;
use super::extract::{IdempotencyKey, ImagePath, JsonBody};
use super::problem::Answer;
use super::reply::accepted;
use crate::state::App;

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(rebase_image))
}

problems!(RebaseProblems: NotFound, InvalidArgument, Unsupported, ImageNotReady, ImageBusy, LimitExceeded,
    IdempotencyConflict, ConflictCycle, ConflictDependents, ImageProtected;
    MalformedBody, BodyTooLarge, UnsupportedMediaType);

/// Put an overlay on another base.
///
/// `backing` is the new base, or null to make the image stand alone. In mode `safe` the content stays what it is; in mode
/// `unsafe` only the reference changes.
#[utoipa::path(post, path = "/v1/images/{id}/rebase", operation_id = "rebase_image", tag = "verbs",
    params(ImagePath, IdempotencyKey), request_body = RebaseRequest,
    responses((status = 202, description = "The job.", body = Job, headers(("Location", description = "The job."))),
        RebaseProblems))]
async fn rebase_image(
    State(service): State<Service>,
    ImagePath(id): ImagePath,
    IdempotencyKey(call): IdempotencyKey,
    JsonBody(request): JsonBody<RebaseRequest>,
) -> Answer<Response> {
    Ok(accepted(service.rebase_image(id, request, &call).await?))
}
