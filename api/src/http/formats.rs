use axum::Json;
use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use vdisk_service::Service;

use super::documented::problems;
use super::reply::{FormatList, listed};
use crate::state::App;

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list_formats))
}

problems!(ListProblems:);

/// List the formats.
///
/// What the engine can read and write, what each driver can do, and the options that images of it can be created with.
#[utoipa::path(get, path = "/v1/formats", operation_id = "list_formats", tag = "formats",
    responses((status = 200, description = "The drivers.", body = FormatList), ListProblems))]
async fn list_formats(State(service): State<Service>) -> Json<FormatList> {
    listed(service.formats())
}
