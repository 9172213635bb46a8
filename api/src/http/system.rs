//! What operators ask for: health, readiness, metrics, the documents.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderMap, header};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use vdisk_service::{Service, ServiceError};

use super::document;
use super::documented::problems;
use super::extract::prefers;
use super::problem::Answer;
use crate::metrics::{OPENMETRICS, PROMETHEUS_TEXT, as_prometheus_text};
use crate::state::App;

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(healthz))
        .routes(routes!(readyz))
        .routes(routes!(metrics))
        .route("/openapi.json", get(openapi))
}

problems!(SystemProblems:);

/// How the service is.
#[derive(Serialize, ToSchema)]
pub struct Health {
    /// `ok`.
    pub status: String,
    /// Version of the program.
    pub version: String,
}

impl Health {
    fn ok() -> Json<Self> {
        Json(Self {
            status: "ok".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }
}

/// Tell whether the process is alive.
#[utoipa::path(get, path = "/healthz", operation_id = "healthz", tag = "system",
    responses((status = 200, description = "It is.", body = Health), SystemProblems))]
async fn healthz() -> Json<Health> {
    Health::ok()
}

/// Tell whether requests can be served.
///
/// The database answers and the pools are there.
#[utoipa::path(get, path = "/readyz", operation_id = "readyz", tag = "system",
    responses((status = 200, description = "They can.", body = Health), SystemProblems))]
async fn readyz(State(app): State<App>) -> Answer<Json<Health>> {
    app.service.ready().await?;
    Ok(Health::ok())
}

/// Get the metrics.
///
/// As Prometheus text, or with `Accept: application/openmetrics-text` in that format.
#[utoipa::path(get, path = "/metrics", operation_id = "metrics", tag = "system",
    responses((status = 200, description = "The metrics.",
        content((String = "text/plain; version=0.0.4; charset=utf-8"),
            (String = "application/openmetrics-text; version=1.0.0; charset=utf-8"))), SystemProblems))]
async fn metrics(State(app): State<App>, State(service): State<Service>, headers: HeaderMap) -> Answer<Response> {
    let sums = service.statistics().await?;
    let now = service.config().clock.now();
    let text = app.metrics.render(&sums, now).map_err(ServiceError::internal)?;
    let (kind, text) = if prefers(&headers, "application/openmetrics-text", "text/plain") {
        (OPENMETRICS, text)
    } else {
        (PROMETHEUS_TEXT, as_prometheus_text(&text))
    };
    Ok(([(header::CONTENT_TYPE, kind), (header::VARY, "Accept")], text).into_response())
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], document::json()).into_response()
}
