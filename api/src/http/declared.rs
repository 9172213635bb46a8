//! What the document does not say that an operation takes is refused: a field of the query, and a body where there is none. Passed over,
//! it would seem to count: a `dry_run` in the wrong place runs the job.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{MatchedPath, Query, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{Method, Uri};
use serde::Deserialize;
use utoipa::openapi::path::{Operation, ParameterIn, PathItem};
use utoipa::openapi::{OpenApi, RefOr};
use vdisk_service::ServiceError;

use super::extract::body::{collect, parse};
use super::problem::Answer;

/// What each documented operation takes. Other routes, those of pages, take what they like.
pub struct Declared(HashMap<String, Vec<(Method, Takes)>>);

/// What an operation takes.
struct Takes {
    query: Vec<String>,
    body: bool,
}

/// An object without fields.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

impl Declared {
    /// Reads it from the document.
    pub fn by(document: &OpenApi) -> Self {
        let paths = document.paths.paths.iter().filter(|(path, _)| is_strict(path));
        Self(
            paths
                .map(|(path, item)| (path.clone(), operations(item).collect()))
                .collect(),
        )
    }

    fn operation(&self, request: &Request) -> Option<&Takes> {
        let path = request.extensions().get::<MatchedPath>()?;
        let method = match *request.method() {
            Method::HEAD => &Method::GET,
            ref method => method,
        };
        let operations = self.0.get(path.as_str())?;
        let found = operations.iter().find(|(known, _)| known == method)?;
        Some(&found.1)
    }
}

/// Probes and scrapers append what they like to the pages of the system.
pub fn is_strict(path: &str) -> bool {
    path.starts_with("/v1/")
}

fn operations(item: &PathItem) -> impl Iterator<Item = (Method, Takes)> {
    let each = [
        (Method::GET, &item.get),
        (Method::PUT, &item.put),
        (Method::POST, &item.post),
        (Method::PATCH, &item.patch),
        (Method::DELETE, &item.delete),
    ];
    each.into_iter()
        .filter_map(|(method, operation)| Some((method, Takes::of(operation.as_ref()?))))
}

impl Takes {
    fn of(operation: &Operation) -> Self {
        let parameters = operation.parameters.iter().flatten();
        let query = parameters.filter_map(|parameter| match parameter {
            RefOr::T(parameter) if parameter.parameter_in == ParameterIn::Query => Some(parameter.name.clone()),
            _ => None,
        });
        Self {
            query: query.collect(),
            body: operation.request_body.is_some(),
        }
    }

    fn check_query(&self, uri: &Uri) -> Answer<()> {
        let unreadable = |rejection: axum::extract::rejection::QueryRejection| {
            ServiceError::invalid("", format!("query: {}", rejection.body_text()))
        };
        let Query(given) = Query::<Vec<(String, String)>>::try_from_uri(uri).map_err(unreadable)?;
        let Some((unknown, _)) = given.into_iter().find(|(name, _)| !self.query.contains(name)) else {
            return Ok(());
        };
        let expected = match (self.query.as_slice(), self.body) {
            ([], false) => "this request takes none".to_owned(),
            ([], true) => "the fields of this request stand in its body".to_owned(),
            (known, _) => format!("expected one of `{}`", known.join("`, `")),
        };
        let detail = format!("query: unknown field `{}`, {expected}", unknown.escape_debug());
        Err(ServiceError::invalid(&unknown, detail).into())
    }
}

/// Refuses what is not declared. A body counts for nothing in GET and HEAD (RFC 9110 section 9.3.1), whoever sends one.
pub async fn only_declared(State(declared): State<Arc<Declared>>, request: Request, next: Next) -> Response {
    let Some(takes) = declared.operation(&request) else {
        return next.run(request).await;
    };
    if let Err(problem) = takes.check_query(request.uri()) {
        return problem.into_response();
    }
    if takes.body || request.method().is_safe() {
        return next.run(request).await;
    }
    match without_body(request).await {
        Ok(request) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

async fn without_body(request: Request) -> Answer<Request> {
    let (parts, body) = request.into_parts();
    let bytes = collect(body).await?;
    if !bytes.is_empty() {
        let Nothing {} = parse(&bytes)?;
    }
    Ok(Request::from_parts(parts, Body::empty()))
}
