//! What happens to requests that no handler takes, and around those that one does.

use std::any::Any;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{Method, header};
use tower::ServiceExt;
use tracing::Instrument;
use vdisk_service::ServiceError;

use super::problem::Problem;
use crate::access::roles;
use crate::errors::TransportCode;
use crate::grpc;

/// Hands gRPC calls on and refuses the rest.
pub async fn no_route(grpc: Router, request: Request) -> Response {
    if grpc::is_call(&request) {
        let changes = roles::changes(&request);
        let call = async move {
            match grpc.oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        };
        return if changes { to_its_end(call).await } else { call.await };
    }
    let detail = format!(
        "there is nothing at {}; the reference is at /docs",
        request.uri().path().escape_debug()
    );
    Problem::transport(TransportCode::NoSuchPath, detail).into_response()
}

/// 405 as a problem; the `Allow` header says which methods there are.
pub async fn method_not_allowed(method: Method) -> Problem {
    Problem::transport(TransportCode::MethodNotAllowed, format!("{method} is not served here"))
}

/// A handler that changes something runs to its end although the client has gone: stopping between two of its steps would
/// leave work half done. [`no_route`] sees to calls.
pub async fn finish_what_was_begun(request: Request, next: Next) -> Response {
    if request.method().is_safe() || grpc::is_call(&request) || !roles::changes(&request) {
        return next.run(request).await;
    }
    to_its_end(next.run(request)).await
}

async fn to_its_end(work: impl Future<Output = Response> + Send + 'static) -> Response {
    match tokio::spawn(work.in_current_span()).await {
        Ok(response) => response,
        Err(error) => Problem::from(ServiceError::internal(error)).into_response(),
    }
}

/// A bug in a handler ends its request alone.
pub fn panicked(payload: Box<dyn Any + Send + 'static>) -> http::Response<Body> {
    let text = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let problem = Problem::from(ServiceError::internal(format!(
        "panic: {}",
        text.unwrap_or("no message")
    )));
    let mut response = problem.into_response();
    response
        .headers_mut()
        .insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    response
}
