use axum::Json;
use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use vdisk_service::Service;
use vdisk_service::model::Inspection;

use super::documented::problems;
use super::extract::ImagePath;
use super::problem::Answer;
use crate::state::App;

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(inspect_image))
}

problems!(InspectionProblems: NotFound, ImageNotReady, ImageBusy, InspectionFailed);

/// Inspect an image's file.
///
/// What the file is, what it names, what of its format it uses, and whether an import would take it: the look that every
/// import passes, at the file as it is now. A raw image is read as raw whatever its guest wrote.
#[utoipa::path(get, path = "/v1/images/{id}/inspection", operation_id = "inspect_image", tag = "images",
    params(ImagePath),
    responses((status = 200, description = "The report.", body = Inspection), InspectionProblems))]
async fn inspect_image(State(service): State<Service>, ImagePath(id): ImagePath) -> Answer<Json<Inspection>> {
    Ok(Json(service.inspect_image(id).await?))
}
