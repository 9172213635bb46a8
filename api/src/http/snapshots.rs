use axum::Json;
use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use vdisk_service::Service;
use vdisk_service::model::Snapshot;

use super::documented::problems;
use super::extract::{IdempotencyKey, ImagePath, JsonBody, SnapshotPath};
use super::problem::Answer;
use super::reply::{ImageBody, SnapshotList, created, listed};
use crate::state::App;

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(create_snapshot, list_snapshots))
        .routes(routes!(get_snapshot, delete_snapshot))
        .routes(routes!(apply_snapshot))
}

problems!(ReadProblems: NotFound, ImageNotReady, ImageBusy, Unsupported);
problems!(CreateProblems: NotFound, ImageNotReady, ImageBusy, Unsupported, InvalidArgument, InvalidName, NameTaken,
    ImageProtected, InsufficientStorage, IdempotencyConflict; MalformedBody, BodyTooLarge, UnsupportedMediaType);
problems!(DeleteProblems: NotFound, ImageNotReady, ImageBusy, Unsupported, ImageProtected);
problems!(ApplyProblems: NotFound, ImageNotReady, ImageBusy, Unsupported, InvalidArgument, ConflictDependents,
    ImageProtected, IdempotencyConflict);

/// A snapshot to take.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshot {
    /// Name, unique in the image.
    pub name: String,
}

/// Take an internal snapshot.
#[utoipa::path(post, path = "/v1/images/{id}/snapshots", operation_id = "create_snapshot", tag = "snapshots",
    params(ImagePath, IdempotencyKey), request_body = CreateSnapshot,
    responses((status = 201, description = "The snapshot.", body = Snapshot,
        headers(("Location", description = "The snapshot."))), CreateProblems))]
async fn create_snapshot(
    State(service): State<Service>,
    ImagePath(id): ImagePath,
    IdempotencyKey(call): IdempotencyKey,
    JsonBody(request): JsonBody<CreateSnapshot>,
) -> Answer<Response> {
    let snapshot = service.create_snapshot(id, &request.name, &call).await?;
    Ok(created(
        &format!("/v1/images/{id}/snapshots/{}", snapshot.name),
        Json(snapshot),
    ))
}

/// List the internal snapshots.
///
/// Oldest first.
#[utoipa::path(get, path = "/v1/images/{id}/snapshots", operation_id = "list_snapshots", tag = "snapshots",
    params(ImagePath), responses((status = 200, description = "The snapshots.", body = SnapshotList), ReadProblems))]
async fn list_snapshots(State(service): State<Service>, ImagePath(id): ImagePath) -> Answer<Json<SnapshotList>> {
    Ok(listed(service.snapshots(id).await?))
}

/// Get an internal snapshot.
#[utoipa::path(get, path = "/v1/images/{id}/snapshots/{name}", operation_id = "get_snapshot", tag = "snapshots",
    params(ImagePath, SnapshotPath),
    responses((status = 200, description = "The snapshot.", body = Snapshot), ReadProblems))]
async fn get_snapshot(
    State(service): State<Service>,
    ImagePath(id): ImagePath,
    SnapshotPath(name): SnapshotPath,
) -> Answer<Json<Snapshot>> {
    Ok(Json(service.snapshot(id, &name).await?))
}

/// Delete an internal snapshot.
#[utoipa::path(delete, path = "/v1/images/{id}/snapshots/{name}", operation_id = "delete_snapshot", tag = "snapshots",
    params(ImagePath, SnapshotPath), responses((status = 204, description = "It is gone."), DeleteProblems))]
async fn delete_snapshot(
    State(service): State<Service>,
    ImagePath(id): ImagePath,
    SnapshotPath(name): SnapshotPath,
) -> Answer<StatusCode> {
    service.delete_snapshot(id, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Go back to an internal snapshot.
///
/// Makes the image's content what the snapshot holds; what was there since is lost.
#[utoipa::path(post, path = "/v1/images/{id}/snapshots/{name}/apply", operation_id = "apply_snapshot",
    tag = "snapshots", params(ImagePath, SnapshotPath, IdempotencyKey),
    responses((status = 200, description = "The image.", body = ImageBody), ApplyProblems))]
async fn apply_snapshot(
    State(service): State<Service>,
    ImagePath(id): ImagePath,
    SnapshotPath(name): SnapshotPath,
    IdempotencyKey(call): IdempotencyKey,
) -> Answer<Json<ImageBody>> {
    Ok(Json(service.apply_snapshot(id, &name, &call).await?.into()))
}
