use axum::extract::State;
use axum::response::Response;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use vdisk_service::Service;
use vdisk_service::model::Job;
use vdisk_service::request::CommitRequest;

use super::documented::problems;
use super::extract::{IdempotencyKey, ImagePath, OptionalBody};
use super::problem::Answer;
use super::reply::accepted;
use crate::state::App;

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(commit_image))
}

problems!(CommitProblems: NotFound, InvalidArgument, Unsupported, ImageNotReady, ImageBusy, LimitExceeded,
    IdempotencyConflict, ConflictDependents, ImageProtected;
    MalformedBody, BodyTooLarge, UnsupportedMediaType);

/// Commit an overlay into its base.
///
/// Writes what the overlay holds into the base.
#[utoipa::path(post, path = "/v1/images/{id}/commit", operation_id = "commit_image", tag = "verbs",
    params(ImagePath, IdempotencyKey), request_body = Option<CommitRequest>,
    responses((status = 202, description = "The job.", body = Job, headers(("Location", description = "The job."))),
        CommitProblems))]
async fn commit_image(
    State(service): State<Service>,
    ImagePath(id): ImagePath,
    IdempotencyKey(call): IdempotencyKey,
    OptionalBody(request): OptionalBody<CommitRequest>,
) -> Answer<Response> {
    Ok(accepted(service.commit_image(id, request, &call).await?))
}
