//! How an image is built: its headers, its chain, what is built on it.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use vdisk_service::Service;
use vdisk_service::model::ChainLayer;

use super::documented::problems;
use super::extract::{ImagePath, Query};
use super::paging::Paging;
use super::problem::Answer;
use super::reply::{ImageList, listed};
use crate::state::App;

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(get_image_info))
        .routes(routes!(get_image_chain))
        .routes(routes!(list_image_dependents))
}

problems!(InfoProblems: NotFound, ImageNotReady, ImageBusy, CorruptImage, BaseChanged);
problems!(ChainProblems: NotFound);
problems!(DependentsProblems: NotFound, InvalidArgument);

/// What `qemu-img info --output=json` prints, under the same keys.
#[derive(Serialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = Object)]
pub struct ImageInfo(pub Value);

/// A backing chain.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Chain {
    /// The layers, the image asked about first.
    pub layers: Vec<ChainLayer>,
}

/// Get what the image's own headers say.
///
/// Everything `qemu-img info --output=json` gives, under the same keys; file names are those inside the pool.
#[utoipa::path(get, path = "/v1/images/{id}/info", operation_id = "get_image_info", tag = "images", params(ImagePath),
    responses((status = 200, description = "The image's headers.", body = ImageInfo), InfoProblems))]
async fn get_image_info(State(service): State<Service>, ImagePath(id): ImagePath) -> Answer<Json<ImageInfo>> {
    Ok(Json(ImageInfo(service.image_info(id).await?)))
}

/// Get the backing chain.
///
/// The image itself first, then its base, and so on.
#[utoipa::path(get, path = "/v1/images/{id}/chain", operation_id = "get_image_chain", tag = "images",
    params(ImagePath), responses((status = 200, description = "The layers.", body = Chain), ChainProblems))]
async fn get_image_chain(State(service): State<Service>, ImagePath(id): ImagePath) -> Answer<Json<Chain>> {
    Ok(Json(Chain {
        layers: service.image_chain(id).await?,
    }))
}

/// List the images built directly on this one.
#[utoipa::path(get, path = "/v1/images/{id}/dependents", operation_id = "list_image_dependents", tag = "images",
    params(ImagePath, Paging),
    responses((status = 200, description = "A page of images.", body = ImageList), DependentsProblems))]
async fn list_image_dependents(
    State(service): State<Service>,
    ImagePath(id): ImagePath,
    Query(page): Query<Paging>,
) -> Answer<Json<ImageList>> {
    Ok(listed(service.image_dependents(id, &page.into()).await?))
}
