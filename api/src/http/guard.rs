//! Keeps out what no handler would look at: web pages of other sites, since browsers reach loopback addresses, and changes
//! under a condition.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, Uri, header};

use super::extract::Conditions;
use super::problem::Problem;
use crate::access::refusal;
use crate::errors::TransportCode;
use crate::grpc;

/// Refuses a request that a browser says comes from a page of another origin.
pub async fn same_origin(request: Request, next: Next) -> Response {
    if foreign(request.headers(), request.uri()) {
        let detail = "the Origin header names another site; call from a page of this service, or without a browser";
        return refusal(grpc::is_call(&request), TransportCode::CrossOrigin, detail);
    }
    next.run(request).await
}

/// Refuses a change that is meant for one version alone: what can be changed has no entity tags to tell versions by.
pub async fn unconditional(request: Request, next: Next) -> Response {
    if request.method().is_safe() {
        return next.run(request).await;
    }
    match Conditions::of(request.headers()) {
        Ok(conditions) if conditions.allow_change() => next.run(request).await,
        Ok(_) => {
            let detail = "nothing was changed: changes are made without If-Match and If-None-Match, since what they \
                          change has no entity tag";
            Problem::transport(TransportCode::PreconditionFailed, detail).into_response()
        }
        Err(problem) => problem.into_response(),
    }
}

fn foreign(headers: &HeaderMap, uri: &Uri) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return false;
    };
    let origin = origin
        .to_str()
        .ok()
        .and_then(|origin| origin.split_once("://"))
        .map(|(_, authority)| authority);
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| uri.authority().map(http::uri::Authority::as_str));
    origin.is_none() || origin != host
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_of_the_same_origin_may_call() {
        let cases = [
            (None, false),
            (Some("http://127.0.0.1:8080"), false),
            (Some("http://127.0.0.1:9090"), true),
            (Some("https://evil.example"), true),
            (Some("null"), true),
        ];
        for (origin, refused) in cases {
            let mut headers = HeaderMap::from_iter([(header::HOST, "127.0.0.1:8080".parse().unwrap())]);
            headers.extend(origin.map(|origin| (header::ORIGIN, origin.parse().unwrap())));
            assert_eq!(
                foreign(&headers, &Uri::from_static("/v1/images")),
                refused,
                "{origin:?}"
            );
        }
    }
}
