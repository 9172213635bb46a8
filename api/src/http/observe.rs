//! A span, a log line and a measurement for every request.

use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::Method;
use tower_http::request_id::{MakeRequestId, RequestId};
use tracing::Instrument;
use uuid::Uuid;

use crate::grpc;
use crate::state::App;

/// Characters of a request's id that the logs keep: a client may send any.
pub const ID_CHARS: usize = 128;

/// Gives a request that came without one an id.
#[derive(Clone, Copy)]
pub struct NewRequestId;

impl MakeRequestId for NewRequestId {
    fn make_request_id<B>(&mut self, _: &http::Request<B>) -> Option<RequestId> {
        Uuid::now_v7().to_string().parse().ok().map(RequestId::new)
    }
}

/// Measures HTTP requests until their head is sent, and gRPC calls until their status is.
pub async fn observe(State(app): State<App>, request: Request, next: Next) -> Response {
    let id = request
        .extensions()
        .get::<RequestId>()
        .and_then(|id| id.header_value().to_str().ok())
        .map(|id| id.get(..ID_CHARS).unwrap_or(id));
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let span = tracing::info_span!("request", id, %method, path);
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("none", |path| path.as_str())
        .to_owned();
    let is_grpc = grpc::is_call(&request);
    let started = Instant::now();
    let response = next.run(request).instrument(span.clone()).await;
    if is_grpc {
        return grpc::observe::until_status(app.metrics.clone(), &path, started, span, response);
    }
    let (status, took) = (response.status().as_u16(), started.elapsed());
    app.metrics.http_answered(known(&method), &route, status, took);
    span.in_scope(|| tracing::info!(status, took_ms = took.as_secs_f64() * 1e3, "answered"));
    response
}

/// Clients can make methods up; those are counted together, so that they cannot fill the memory.
fn known(method: &Method) -> &str {
    let known = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::OPTIONS,
    ];
    if known.contains(method) {
        method.as_str()
    } else {
        "other"
    }
}
