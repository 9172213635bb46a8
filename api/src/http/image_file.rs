//! The stored file of an image: upload with resume, download with ranges.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt, TryStreamExt};
use http::{HeaderMap, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use vdisk_service::Bytes;
use vdisk_service::ServiceError;
use vdisk_service::request::{UploadPart, UploadStatus};

use super::documented::problems;
use super::download::{BinaryBody, send};
use super::extract::{Conditions, ContentRange, ImagePath, RangeHeaders, announced_checksum};
use super::problem::{Answer, Problem};
use super::reply::ImageBody;
use crate::access::limits::not_idle;
use crate::errors::TransportCode;
use crate::state::App;

/// How much of a refused body is read on, and for how long.
const DRAINED_BYTES: usize = 64 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(5);

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(upload_file, download_file))
}

problems!(UploadProblems: NotFound, InvalidArgument, ImageNotReady, ImageBusy, UploadOffsetMismatch, UploadInterrupted,
    LimitExceeded, InsufficientStorage, ChecksumMismatch, FormatMismatch, CorruptImage, Denied, Unsupported, BaseChanged;
    MalformedRequest, UnsupportedMediaType);
problems!(DownloadProblems: NotFound, ImageNotReady, ImageBusy, RangeNotSatisfiable;
    MalformedRequest, PreconditionFailed);

/// How far an upload is.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
pub struct UploadProgress {
    /// Bytes that are stored; the next part starts there.
    pub received_bytes: u64,
}

/// Upload the image's file.
///
/// The raw bytes of the file. Without `Content-Range` the body is the whole file. With `Content-Range: bytes
/// FIRST-LAST/TOTAL` it is a part, and the answer is 308 with a `Range` header until the last part has arrived. `TOTAL` is
/// the same in every part, until one with `FIRST` 0 starts anew. After an interruption, `Content-Range: bytes */TOTAL` with
/// an empty body asks how far the upload is. `Repr-Digest` (`sha-256=:BASE64:`), `Digest` (`sha-256=BASE64`) or
/// `X-Checksum-Sha256` (hexadecimal) announces the digest of the whole file, and so does `Content-Digest` where the body is all of
/// it; it is verified. A digest that cannot be verified (`Content-MD5`, `X-Checksum-Sha1`, `Content-Digest` of a part, other algorithms
/// alone) is refused. After `checksum_mismatch` the upload is at its start again, and takes the file once more.
#[utoipa::path(put, path = "/v1/images/{id}/file", operation_id = "upload_image_file", tag = "content",
    params(ImagePath,
        ("Content-Range" = Option<String>, Header, description = "Which part of the file the body is.",
            example = "bytes 0-1048575/10485760"),
        ("Repr-Digest" = Option<String>, Header, description = "SHA-256 of the whole file (RFC 9530).",
            example = "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"),
        ("Content-Digest" = Option<String>, Header, description = "SHA-256 of the body, which is the whole file (RFC 9530).",
            example = "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"),
        ("Digest" = Option<String>, Header, description = "SHA-256 of the whole file (RFC 3230).",
            example = "sha-256=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="),
        ("X-Checksum-Sha256" = Option<String>, Header, description = "SHA-256 of the whole file, hexadecimal.",
            example = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")),
    request_body(content = BinaryBody, content_type = "application/octet-stream", description = "The bytes."),
    responses(
        (status = 200, description = "The file is complete, was looked at and is recorded.", body = ImageBody),
        (status = 308, description = "More is to come.", body = UploadProgress,
            headers(("Range", description = "What is stored: `bytes=0-LAST`; absent when nothing is."))),
        UploadProblems))]
async fn upload_file(
    State(app): State<App>,
    ImagePath(id): ImagePath,
    range: ContentRange,
    headers: HeaderMap,
    body: Body,
) -> Answer<Response> {
    let part = match part_of(range, &headers) {
        Ok(Some(part)) => part,
        Ok(None) => return Ok(status_of(app.service.upload_status(id).await?)),
        Err(problem) => {
            drain(body.into_data_stream()).await;
            return Err(problem);
        }
    };
    let metrics = app.metrics.clone();
    let mut body = not_idle(body.into_data_stream()).inspect_ok(move |bytes| metrics.received(bytes.len()));
    let outcome = app.service.upload(id, part, &mut body).await;
    if outcome.is_err() {
        drain(body).await;
    }
    Ok(status_of(outcome?))
}

/// Download the image's file.
///
/// The stored bytes, as they lie in the pool. Up to 8 ranges are served; several come as `multipart/byteranges`.
#[utoipa::path(get, path = "/v1/images/{id}/file", operation_id = "download_image_file", tag = "content",
    params(ImagePath, ("Range" = Option<String>, Header, description = "Which bytes.", example = "bytes=0-511"),
        ("If-Range" = Option<String>, Header, description = "The range counts only while this is the ETag."),
        ("If-Match" = Option<String>, Header, description = "Only if the ETag is one of these."),
        ("If-None-Match" = Option<String>, Header, description = "Only if the ETag is none of these.")),
    responses(
        (status = 200, description = "The file.", body = BinaryBody, content_type = "application/octet-stream"),
        (status = 206, description = "The range, or several with a head each.",
            content((BinaryBody = "application/octet-stream"), (BinaryBody = "multipart/byteranges"))),
        (status = 304, description = "The ETag is one of `If-None-Match`."),
        DownloadProblems))]
async fn download_file(
    State(app): State<App>,
    ImagePath(id): ImagePath,
    conditions: Conditions,
    ranges: RangeHeaders,
) -> Answer<Response> {
    send(&app, &conditions, &ranges, app.service.open_file(id).await?).await
}

/// Reads on for a moment: a client that is cut off while it sends does not see why.
async fn drain<E>(body: impl Stream<Item = Result<Bytes, E>> + Unpin) {
    let mut left = DRAINED_BYTES;
    let mut body = body.take_while(|chunk| {
        left = left.saturating_sub(chunk.as_ref().map_or(left, Bytes::len));
        std::future::ready(left > 0)
    });
    let _ = tokio::time::timeout(DRAIN_TIME, async { while body.next().await.is_some() {} }).await;
}

/// What is coded is not decoded here: it would be stored as it is.
fn require_identity(headers: &HeaderMap) -> Answer<()> {
    let mut codings = headers.get_all(header::CONTENT_ENCODING).iter();
    let coded = codings.find(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity"));
    match coded {
        None => Ok(()),
        Some(coding) => {
            let found = coding.to_str().unwrap_or("bytes that are no text").escape_debug();
            let detail = format!("expected the bytes of the file, found Content-Encoding '{found}'");
            Err(Problem::transport(TransportCode::UnsupportedMediaType, detail))
        }
    }
}

/// `None` when the request only asks how far the upload is.
fn part_of(range: ContentRange, headers: &HeaderMap) -> Answer<Option<UploadPart>> {
    require_identity(headers)?;
    let checksum = announced_checksum(headers, range)?;
    let body_length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    Ok(match range {
        ContentRange::Status => None,
        ContentRange::Whole => Some(UploadPart {
            length: body_length,
            checksum,
            ..UploadPart::default()
        }),
        ContentRange::Part { length, .. } if body_length.is_some_and(|body| body != length) => {
            return Err(ServiceError::invalid("Content-Range", "its length is not that of the body").into());
        }
        ContentRange::Part { first, length, total } => Some(UploadPart {
            offset: first,
            length: Some(length),
            total,
            more: total.is_none(),
            checksum,
        }),
    })
}

fn status_of(status: UploadStatus) -> Response {
    match status {
        UploadStatus::Complete(image) => Json(ImageBody::from(*image)).into_response(),
        UploadStatus::Incomplete { received } => {
            let body = Json(UploadProgress {
                received_bytes: received,
            });
            match received.checked_sub(1) {
                Some(last) => {
                    let range = [(header::RANGE, format!("bytes=0-{last}"))];
                    (StatusCode::PERMANENT_REDIRECT, range, body).into_response()
                }
                None => (StatusCode::PERMANENT_REDIRECT, body).into_response(),
            }
        }
    }
}
