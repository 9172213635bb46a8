//! Bodies of bytes with ranges (RFC 9110 section 14).

mod multipart;

use std::sync::Arc;

use axum::body::Body;
use axum::response::{AppendHeaders, IntoResponse, Response};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use http::{HeaderName, StatusCode, header};
use utoipa::ToSchema;
use vdisk_service::{Bytes, Content, Download, ErrorCode, Result, ServiceError};

use super::extract::{Conditions, RangeHeaders, Verdict};
use super::problem::{Answer, Problem};
use crate::access::untaken::not_ignored;
use crate::errors::TransportCode;
use crate::state::App;

/// Raw bytes.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
pub struct BinaryBody(#[expect(dead_code, reason = "only its schema is used")] Vec<u8>);

/// What is sent.
enum Chosen {
    /// All bytes.
    Whole(Download),
    /// These, none of which overlaps another.
    Parts(Vec<Download>),
}

/// Sends what the headers ask for.
///
/// # Errors
/// `precondition_failed`, `range_not_satisfiable`; one that is met after the head was sent breaks the body off.
pub async fn send(app: &App, conditions: &Conditions, ranges: &RangeHeaders, content: Content) -> Answer<Response> {
    let answer = match conditions.judge(&content.etag) {
        Verdict::GoOn => choose(ranges, &content)
            .map(|chosen| respond(app, chosen))
            .map_err(Problem::from),
        Verdict::NotModified => {
            let head = [(header::ETAG, format!("\"{}\"", content.etag))];
            Ok((StatusCode::NOT_MODIFIED, head).into_response())
        }
        Verdict::Failed => {
            let detail = format!("If-Match names another version; the ETag is \"{}\" now", content.etag);
            Err(Problem::transport(TransportCode::PreconditionFailed, detail))
        }
    };
    content.close().await;
    answer
}

fn respond(app: &App, chosen: Chosen) -> Response {
    let (status, chosen) = match chosen {
        Chosen::Whole(download) => (StatusCode::OK, vec![download]),
        Chosen::Parts(parts) => (StatusCode::PARTIAL_CONTENT, parts),
    };
    let mut head = common_head(chosen.first());
    let (length, body) = match <[Download; 1]>::try_from(chosen) {
        Ok([download]) => {
            head.push((header::CONTENT_TYPE, "application/octet-stream".to_owned()));
            if status == StatusCode::PARTIAL_CONTENT {
                head.push((header::CONTENT_RANGE, content_range(&download)));
            }
            (download.length, download.body)
        }
        Err(parts) => {
            let multipart = multipart::of(parts);
            head.push((header::CONTENT_TYPE, multipart.content_type));
            (multipart.length, multipart.body)
        }
    };
    head.push((header::CONTENT_LENGTH, length.to_string()));
    (status, AppendHeaders(head), counted(app, body)).into_response()
}

fn choose(wanted: &RangeHeaders, content: &Content) -> Result<Chosen> {
    let older = wanted.if_range.as_ref().is_some_and(|tag| *tag != content.etag);
    if wanted.ranges.is_empty() || older {
        return content.part(None).map(Chosen::Whole);
    }
    let (mut parts, mut outside) = (Vec::<Download>::new(), None);
    for range in &wanted.ranges {
        match content.part(Some(*range)) {
            Ok(part) => parts.push(part),
            Err(error) if error.code == ErrorCode::RangeNotSatisfiable => outside = Some(error),
            Err(error) => return Err(error),
        }
    }
    match outside {
        Some(error) if parts.is_empty() => Err(error),
        _ => one_by_one(&parts).map(|()| Chosen::Parts(parts)),
    }
}

/// Ranges that overlap serve nobody, but cost (RFC 9110 section 14.2).
fn one_by_one(parts: &[Download]) -> Result<()> {
    let mut places: Vec<_> = parts.iter().map(|part| (part.offset, part.length)).collect();
    places.sort_unstable();
    let overlap = |pair: &[(u64, u64)]| matches!(pair, [(a, length), (b, _)] if a.saturating_add(*length) > *b);
    if places.windows(2).any(overlap) {
        let text = "the ranges of one request do not overlap";
        return Err(ServiceError::new(ErrorCode::RangeNotSatisfiable, text).with_field("Range"));
    }
    Ok(())
}

fn common_head(download: Option<&Download>) -> Vec<(HeaderName, String)> {
    let mut head = vec![(header::ACCEPT_RANGES, "bytes".to_owned())];
    if let Some(download) = download {
        let name = plain(&download.filename);
        head.push((header::ETAG, format!("\"{}\"", download.etag)));
        head.push((header::CONTENT_DISPOSITION, format!("attachment; filename=\"{name}\"")));
    }
    head
}

fn content_range(part: &Download) -> String {
    let last = part.offset.saturating_add(part.length).saturating_sub(1);
    format!("bytes {}-{last}/{}", part.offset, part.total)
}

fn counted(app: &App, body: BoxStream<'static, Result<Bytes>>) -> Body {
    let metrics = Arc::clone(&app.metrics);
    let body = not_ignored(body)
        .inspect_ok(move |bytes| metrics.sent(bytes.len()))
        .inspect_err(|error| tracing::warn!(%error, "a download broke off"));
    Body::from_stream(body.boxed())
}

/// A file name that needs no quoting.
fn plain(name: &str) -> String {
    name.chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "._-".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect()
}
