//! Bodies of bytes with ranges (RFC 9110 section 14).

use std::future::Future;
use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use futures::TryStreamExt;
use http::{StatusCode, header};
use utoipa::ToSchema;
use vdisk_service::request::ByteRange;
use vdisk_service::{Download, Result};

use super::extract::RangeHeaders;
use super::problem::Answer;
use crate::state::App;

/// Raw bytes.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
pub struct BinaryBody(#[expect(dead_code, reason = "only its schema is used")] Vec<u8>);

/// Reads what the headers ask for and sends it.
///
/// # Errors
/// Those of `read`; one that is met after the head was sent breaks the body off.
pub async fn send<F>(app: &App, ranges: RangeHeaders, read: impl Fn(Option<ByteRange>) -> F) -> Answer<Response>
where
    F: Future<Output = Result<Download>>,
{
    let mut partial = ranges.range.is_some();
    let mut download = read(ranges.range).await?;
    if partial && ranges.if_range.is_some_and(|tag| tag != download.etag) {
        partial = false;
        download = read(None).await?;
    }
    let length = download.length;
    let mut head = vec![
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, length.to_string()),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
        (header::ETAG, format!("\"{}\"", download.etag)),
        (
            header::CONTENT_DISPOSITION,
            format!("attachment; filename=\"{}\"", plain(&download.filename)),
        ),
    ];
    let last = download.offset.saturating_add(length).saturating_sub(1);
    if partial {
        head.push((
            header::CONTENT_RANGE,
            format!("bytes {}-{last}/{}", download.offset, download.total),
        ));
    }
    let status = if partial {
        StatusCode::PARTIAL_CONTENT
    } else {
        StatusCode::OK
    };
    let metrics = Arc::clone(&app.metrics);
    let body = download
        .body
        .inspect_ok(move |bytes| metrics.sent(bytes.len()))
        .inspect_err(|error| tracing::warn!(%error, "a download broke off"));
    Ok((status, axum::response::AppendHeaders(head), Body::from_stream(body)).into_response())
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
