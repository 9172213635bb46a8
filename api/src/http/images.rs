//! Records of images: make, list, look at, change, delete.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use vdisk_service::Service;
use vdisk_service::request::{CreateImage, UpdateImage};

use super::documented::problems;
use super::extract::{IdempotencyKey, ImagePath, JsonBody, Query};
use super::paging::ImageQuery;
use super::problem::Answer;
use super::reply::{ImageBody, ImageList, created, listed};
use crate::state::App;

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(create_image, list_images))
        .routes(routes!(get_image, update_image, delete_image))
}

problems!(CreateProblems: InvalidArgument, InvalidName, NameTaken, NotFound, Unsupported, ImageNotReady, ImageBusy,
    BaseChanged, LimitExceeded, InsufficientStorage, IdempotencyConflict; MalformedBody, BodyTooLarge, UnsupportedMediaType);
problems!(ListProblems: InvalidArgument);
problems!(GetProblems: NotFound);
problems!(UpdateProblems: NotFound, InvalidArgument, InvalidName, NameTaken, LimitExceeded;
    MalformedBody, BodyTooLarge, UnsupportedMediaType);
problems!(DeleteProblems: NotFound, ConflictDependents, ImageProtected, ImageBusy);

/// Create an image.
///
/// Makes an empty image, or with `backing` an empty overlay on that base.
#[utoipa::path(post, path = "/v1/images", operation_id = "create_image", tag = "images",
    params(IdempotencyKey), request_body = CreateImage,
    responses((status = 201, description = "The image.", body = ImageBody,
        headers(("Location", description = "The image."))), CreateProblems))]
async fn create_image(
    State(service): State<Service>,
    IdempotencyKey(call): IdempotencyKey,
    JsonBody(request): JsonBody<CreateImage>,
) -> Answer<Response> {
    let image = service.create_image(request, &call).await?;
    Ok(created(
        &format!("/v1/images/{}", image.id),
        Json(ImageBody::from(image)),
    ))
}

/// List images.
///
/// Oldest first.
#[utoipa::path(get, path = "/v1/images", operation_id = "list_images", tag = "images", params(ImageQuery),
    responses((status = 200, description = "A page of images.", body = ImageList), ListProblems))]
async fn list_images(State(service): State<Service>, Query(query): Query<ImageQuery>) -> Answer<Json<ImageList>> {
    let (filter, page) = query.into();
    Ok(listed(service.list_images(&filter, &page).await?))
}

/// Get an image.
#[utoipa::path(get, path = "/v1/images/{id}", operation_id = "get_image", tag = "images", params(ImagePath),
    responses((status = 200, description = "The image.", body = ImageBody), GetProblems))]
async fn get_image(State(service): State<Service>, ImagePath(id): ImagePath) -> Answer<Json<ImageBody>> {
    Ok(Json(service.image(id).await?.into()))
}

/// Change an image's record.
///
/// Name, labels, protection. Absent fields stay as they are; `labels` replaces all of them.
#[utoipa::path(patch, path = "/v1/images/{id}", operation_id = "update_image", tag = "images", params(ImagePath),
    request_body = UpdateImage,
    responses((status = 200, description = "The image.", body = ImageBody), UpdateProblems))]
async fn update_image(
    State(service): State<Service>,
    ImagePath(id): ImagePath,
    JsonBody(request): JsonBody<UpdateImage>,
) -> Answer<Json<ImageBody>> {
    Ok(Json(service.update_image(id, request).await?.into()))
}

/// Delete an image.
///
/// The record and the file. While other images are built on it the answer is 409 with their ids in `dependents`.
#[utoipa::path(delete, path = "/v1/images/{id}", operation_id = "delete_image", tag = "images", params(ImagePath),
    responses((status = 204, description = "It is gone."), DeleteProblems))]
async fn delete_image(State(service): State<Service>, ImagePath(id): ImagePath) -> Answer<StatusCode> {
    service.delete_image(id).await?;
    Ok(StatusCode::NO_CONTENT)
}
