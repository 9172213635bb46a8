use axum::Json;
use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use vdisk_service::model::Token;
use vdisk_service::request::NewToken;
use vdisk_service::{Service, TokenText};

use super::documented::problems;
use super::extract::{IdempotencyKey, JsonBody, Query, TokenPath};
use super::paging::Paging;
use super::problem::Answer;
use super::reply::{AuditList, TokenList, created, listed};
use crate::state::App;

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(create_token, list_tokens))
        .routes(routes!(get_token, revoke_token))
        .routes(routes!(list_audit))
}

problems!(CreateProblems: InvalidName, NameTaken, InvalidArgument, NotFound, IdempotencyConflict;
    MalformedBody, BodyTooLarge, UnsupportedMediaType);
problems!(ListProblems: InvalidArgument);
problems!(TokenProblems: NotFound);

/// A token that was made.
#[derive(Serialize, ToSchema)]
pub struct CreatedToken {
    /// Its record.
    #[serde(flatten)]
    pub record: Token,
    /// The token itself, for `Authorization: Bearer TOKEN`; null when the request repeats an earlier one.
    #[schema(required, value_type = Option<String>, format = Password)]
    pub token: Option<TokenText>,
}

/// Make a token.
///
/// The answer to the first request is the only one that holds the token: the service keeps its SHA-256 alone.
#[utoipa::path(post, path = "/v1/tokens", operation_id = "create_token", tag = "access",
    params(IdempotencyKey), request_body = NewToken,
    responses((status = 201, description = "The token and its record.", body = CreatedToken,
        headers(("Location", description = "The token's record."))), CreateProblems))]
async fn create_token(
    State(service): State<Service>,
    IdempotencyKey(call): IdempotencyKey,
    JsonBody(request): JsonBody<NewToken>,
) -> Answer<Response> {
    let (record, token) = service.create_token(request, &call).await?;
    let place = format!("/v1/tokens/{}", record.id);
    Ok(created(&place, Json(CreatedToken { record, token })))
}

/// List the tokens.
///
/// Their records, oldest first; never the tokens themselves.
#[utoipa::path(get, path = "/v1/tokens", operation_id = "list_tokens", tag = "access", params(Paging),
    responses((status = 200, description = "A page of tokens.", body = TokenList), ListProblems))]
async fn list_tokens(State(service): State<Service>, Query(page): Query<Paging>) -> Answer<Json<TokenList>> {
    Ok(listed(service.list_tokens(&page.into()).await?))
}

/// Get a token's record.
#[utoipa::path(get, path = "/v1/tokens/{id}", operation_id = "get_token", tag = "access", params(TokenPath),
    responses((status = 200, description = "The record.", body = Token), TokenProblems))]
async fn get_token(State(service): State<Service>, TokenPath(id): TokenPath) -> Answer<Json<Token>> {
    Ok(Json(service.token(id).await?))
}

/// Revoke a token.
///
/// It does not count from the next request on; streams that it opened go on to their end.
#[utoipa::path(delete, path = "/v1/tokens/{id}", operation_id = "revoke_token", tag = "access", params(TokenPath),
    responses((status = 204, description = "It counts no more."), TokenProblems))]
async fn revoke_token(State(service): State<Service>, TokenPath(id): TokenPath) -> Answer<StatusCode> {
    service.revoke_token(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Read the audit log.
///
/// Every request that changed something or was refused for lack of rights: who, what, when, outcome. Newest first.
#[utoipa::path(get, path = "/v1/audit", operation_id = "list_audit", tag = "access", params(Paging),
    responses((status = 200, description = "A page of entries.", body = AuditList), ListProblems))]
async fn list_audit(State(service): State<Service>, Query(page): Query<Paging>) -> Answer<Json<AuditList>> {
    Ok(listed(service.list_audit(&page.into()).await?))
}
