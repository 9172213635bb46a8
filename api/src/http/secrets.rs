use axum::Json;
use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use vdisk_service::Service;
use vdisk_service::model::{Job, Secret};
use vdisk_service::request::{NewSecret, RotateMasterKeyRequest};

use super::documented::problems;
use super::extract::{IdempotencyKey, JsonBody, Query, SecretPath};
use super::paging::Paging;
use super::problem::Answer;
use super::reply::{SecretList, accepted, created, listed};
use crate::state::App;

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(create_secret, list_secrets))
        .routes(routes!(get_secret, delete_secret))
        .routes(routes!(rotate_master_key))
}

problems!(CreateProblems: InvalidName, NameTaken, NotFound, LimitExceeded, InvalidArgument, IdempotencyConflict;
    MalformedBody, BodyTooLarge, UnsupportedMediaType);
problems!(ListProblems: InvalidArgument);
problems!(SecretProblems: NotFound);
problems!(DeleteProblems: NotFound, SecretInUse);
problems!(RotateProblems: InvalidArgument, Unsupported, JobStateConflict, LimitExceeded, IdempotencyConflict;
    MalformedBody, BodyTooLarge, UnsupportedMediaType);

/// Store a secret.
///
/// The value is sealed at rest and never returned. Requests name the secret by its id.
#[utoipa::path(post, path = "/v1/secrets", operation_id = "create_secret", tag = "secrets",
    params(IdempotencyKey), request_body = NewSecret,
    responses((status = 201, description = "The secret's record.", body = Secret,
        headers(("Location", description = "The secret."))), CreateProblems))]
async fn create_secret(
    State(service): State<Service>,
    IdempotencyKey(call): IdempotencyKey,
    JsonBody(request): JsonBody<NewSecret>,
) -> Answer<Response> {
    let secret = service.create_secret(request, &call).await?;
    Ok(created(&format!("/v1/secrets/{}", secret.id), Json(secret)))
}

/// List the secrets.
///
/// Names and ids, oldest first; never the values.
#[utoipa::path(get, path = "/v1/secrets", operation_id = "list_secrets", tag = "secrets", params(Paging),
    responses((status = 200, description = "A page of secrets.", body = SecretList), ListProblems))]
async fn list_secrets(State(service): State<Service>, Query(page): Query<Paging>) -> Answer<Json<SecretList>> {
    Ok(listed(service.list_secrets(&page.into()).await?))
}

/// Get a secret's record.
#[utoipa::path(get, path = "/v1/secrets/{id}", operation_id = "get_secret", tag = "secrets", params(SecretPath),
    responses((status = 200, description = "The secret's record.", body = Secret), SecretProblems))]
async fn get_secret(State(service): State<Service>, SecretPath(id): SecretPath) -> Answer<Json<Secret>> {
    Ok(Json(service.secret(id).await?))
}

/// Delete a secret.
///
/// Refused with the images while some name it as their key, and while jobs that have not ended name it.
#[utoipa::path(delete, path = "/v1/secrets/{id}", operation_id = "delete_secret", tag = "secrets", params(SecretPath),
    responses((status = 204, description = "It is gone."), DeleteProblems))]
async fn delete_secret(State(service): State<Service>, SecretPath(id): SecretPath) -> Answer<StatusCode> {
    service.delete_secret(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Rotate the master key.
///
/// Seals every secret under the new master key: the one that the operator gave beside the old one, or one that the service makes where
/// it keeps its own. Both open until the job has succeeded; whoever starts the service next needs the new one alone. There is no dry run
/// of it: the job touches no image, takes no space in a pool and loses nothing, and it is about every secret and webhook there is.
#[utoipa::path(post, path = "/v1/master-key/rotate", operation_id = "rotate_master_key", tag = "secrets",
    params(IdempotencyKey), request_body = RotateMasterKeyRequest,
    responses((status = 202, description = "The job.", body = Job, headers(("Location", description = "The job."))),
        RotateProblems))]
async fn rotate_master_key(
    State(service): State<Service>,
    IdempotencyKey(call): IdempotencyKey,
    JsonBody(request): JsonBody<RotateMasterKeyRequest>,
) -> Answer<Response> {
    Ok(accepted(service.rotate_master_key(request, &call).await?))
}
