use axum::Json;
use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use vdisk_service::Service;
use vdisk_service::model::MeasureReport;
use vdisk_service::request::MeasureRequest;

use super::documented::problems;
use super::extract::{IdempotencyKey, ImagePath, JsonBody};
use super::problem::Answer;
use crate::state::App;

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(measure_image))
}

problems!(MeasureProblems: NotFound, InvalidArgument, ImageNotReady, ImageBusy, Unsupported, LimitExceeded;
    MalformedBody, BodyTooLarge, UnsupportedMediaType);

/// Measure an image.
///
/// How large it would be in a format, as `qemu-img measure` counts. Answered at once, or refused (`limit_exceeded`) when
/// reading the image's tables takes longer than a minute.
#[utoipa::path(post, path = "/v1/images/{id}/measure", operation_id = "measure_image", tag = "verbs",
    params(ImagePath, IdempotencyKey), request_body = MeasureRequest,
    responses((status = 200, description = "Sizes in bytes.", body = MeasureReport), MeasureProblems))]
async fn measure_image(
    State(service): State<Service>,
    ImagePath(id): ImagePath,
    // Measuring changes nothing, so a repeated key has nothing to protect; it is still checked for its form.
    _key: IdempotencyKey,
    JsonBody(request): JsonBody<MeasureRequest>,
) -> Answer<Json<MeasureReport>> {
    Ok(Json(service.measure_image(id, request).await?))
}
