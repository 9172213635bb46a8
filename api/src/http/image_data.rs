use axum::extract::State;
use axum::response::Response;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::documented::problems;
use super::download::{BinaryBody, send};
use super::extract::{Conditions, ImagePath, RangeHeaders};
use super::problem::Answer;
use crate::state::App;

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(download_data))
}

problems!(DataProblems: NotFound, ImageNotReady, ImageBusy, RangeNotSatisfiable, CorruptImage, SecretRequired,
    BaseChanged;
    MalformedRequest, PreconditionFailed);

/// Download the guest-visible bytes.
///
/// What a guest would read from the disk, through the whole backing chain. Up to 8 ranges are served; several come as `multipart/byteranges`.
#[utoipa::path(get, path = "/v1/images/{id}/data", operation_id = "download_image_data", tag = "content",
    params(ImagePath, ("Range" = Option<String>, Header, description = "Which bytes.", example = "bytes=0-511"),
        ("If-Range" = Option<String>, Header, description = "The range counts only while this is the ETag."),
        ("If-Match" = Option<String>, Header, description = "Only if the ETag is one of these."),
        ("If-None-Match" = Option<String>, Header, description = "Only if the ETag is none of these.")),
    responses(
        (status = 200, description = "The bytes.", body = BinaryBody, content_type = "application/octet-stream"),
        (status = 206, description = "The range, or several with a head each.",
            content((BinaryBody = "application/octet-stream"), (BinaryBody = "multipart/byteranges"))),
        (status = 304, description = "The ETag is one of `If-None-Match`."),
        DataProblems))]
async fn download_data(
    State(app): State<App>,
    ImagePath(id): ImagePath,
    conditions: Conditions,
    ranges: RangeHeaders,
) -> Answer<Response> {
    send(&app, &conditions, &ranges, app.service.open_data(id).await?).await
}
