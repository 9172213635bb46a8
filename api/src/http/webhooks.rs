use axum::Json;
use axum::extract::State;
use axum::response::Response;
use http::StatusCode;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use vdisk_service::Service;
use vdisk_service::model::Webhook;
use vdisk_service::request::NewWebhook;

use super::documented::problems;
use super::extract::{IdempotencyKey, JsonBody, WebhookPath};
use super::problem::Answer;
use super::reply::{WebhookList, created, listed};
use crate::state::App;

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(create_webhook, list_webhooks))
        .routes(routes!(get_webhook, delete_webhook))
}

problems!(CreateProblems: InvalidArgument, NotFound, LimitExceeded, IdempotencyConflict;
    MalformedBody, BodyTooLarge, UnsupportedMediaType);
problems!(ListProblems:);
problems!(WebhookProblems: NotFound);

/// Register a webhook.
///
/// It gets every event from now on as a POST with the `Event` as JSON: in order, at least once, tried again with growing
/// pauses until the target answers 2xx. `X-Vdisk-Event` is the event's number; `X-Vdisk-Signature: t=SECONDS,v1=HEX` is the
/// HMAC-SHA256 under the secret over the seconds, a dot, and the body.
#[utoipa::path(post, path = "/v1/webhooks", operation_id = "create_webhook", tag = "jobs",
    params(IdempotencyKey), request_body = NewWebhook,
    responses((status = 201, description = "The webhook.", body = Webhook,
        headers(("Location", description = "The webhook."))), CreateProblems))]
async fn create_webhook(
    State(service): State<Service>,
    IdempotencyKey(call): IdempotencyKey,
    JsonBody(request): JsonBody<NewWebhook>,
) -> Answer<Response> {
    let webhook = service.create_webhook(request, &call).await?;
    Ok(created(&format!("/v1/webhooks/{}", webhook.id), Json(webhook)))
}

/// List the webhooks.
///
/// With how far each was told and why the last delivery failed; never their secrets.
#[utoipa::path(get, path = "/v1/webhooks", operation_id = "list_webhooks", tag = "jobs",
    responses((status = 200, description = "Every webhook, oldest first.", body = WebhookList), ListProblems))]
async fn list_webhooks(State(service): State<Service>) -> Answer<Json<WebhookList>> {
    Ok(listed(service.list_webhooks().await?))
}

/// Get a webhook.
#[utoipa::path(get, path = "/v1/webhooks/{id}", operation_id = "get_webhook", tag = "jobs", params(WebhookPath),
    responses((status = 200, description = "The webhook.", body = Webhook), WebhookProblems))]
async fn get_webhook(State(service): State<Service>, WebhookPath(id): WebhookPath) -> Answer<Json<Webhook>> {
    Ok(Json(service.webhook(id).await?))
}

/// Remove a webhook.
#[utoipa::path(delete, path = "/v1/webhooks/{id}", operation_id = "delete_webhook", tag = "jobs", params(WebhookPath),
    responses((status = 204, description = "It is gone."), WebhookProblems))]
async fn delete_webhook(State(service): State<Service>, WebhookPath(id): WebhookPath) -> Answer<StatusCode> {
    service.delete_webhook(id).await?;
    Ok(StatusCode::NO_CONTENT)
}
