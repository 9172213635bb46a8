//! Uploads and downloads as streams of messages.

use std::sync::Arc;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use tonic::{Status, Streaming};
use vdisk_service::model::ImageId;
use vdisk_service::request::{ByteRange, Checksum, UploadPart};
use vdisk_service::{Bytes, Download, ServiceError};

use super::convert::id_of;
use super::status;
use crate::access::untaken::not_ignored;
use crate::metrics::Metrics;
use crate::proto::download_response::Part as Sent;
use crate::proto::upload_file_request::Part as Received;
use crate::proto::{DownloadRequest, DownloadResponse, DownloadStart, UploadFileRequest, UploadStart};

/// Reads the start of an upload.
///
/// # Errors
/// `invalid_argument` when the first message is no start, or the digest has not 32 bytes.
pub async fn start(messages: &mut Streaming<UploadFileRequest>) -> Result<(ImageId, UploadPart), Status> {
    let first = messages.message().await?.and_then(|message| message.part);
    let Some(Received::Start(start)) = first else {
        return Err(status::of(ServiceError::invalid(
            "start",
            "the first message of an upload is its start",
        )));
    };
    read_start(&start).map_err(status::of)
}

fn read_start(start: &UploadStart) -> Result<(ImageId, UploadPart), ServiceError> {
    let digest = |bytes: &Vec<u8>| <[u8; 32]>::try_from(bytes.as_slice()).map(Checksum::Sha256);
    let checksum = start.sha256.as_ref().map(digest).transpose();
    let checksum = checksum.map_err(|_| ServiceError::invalid("start.sha256", "a SHA-256 digest has 32 bytes"))?;
    let part = UploadPart {
        offset: start.offset,
        length: None,
        total: start.total,
        more: false,
        checksum,
    };
    Ok((id_of("image", &start.id)?, part))
}

/// The bytes of an upload behind its start.
pub fn chunks(messages: Streaming<UploadFileRequest>) -> impl Stream<Item = Result<Bytes, Status>> + Send + Unpin {
    messages.map(|message| match message?.part {
        Some(Received::Chunk(bytes)) => Ok(bytes),
        _ => Err(status::of(ServiceError::invalid(
            "chunk",
            "only chunks follow the start of an upload",
        ))),
    })
}

/// Reads which bytes are asked for.
///
/// # Errors
/// `not_found` for an id that is no UUID, `invalid_argument` for a range without bytes.
pub fn wanted(request: DownloadRequest) -> Result<(ImageId, Option<ByteRange>), ServiceError> {
    let range = request.range.map(|range| {
        if range.length == Some(0) {
            return Err(ServiceError::invalid(
                "range.length",
                "expected at least one byte, found 0",
            ));
        }
        // A range may go on behind the end.
        let last = range.length.map(|length| range.offset.saturating_add(length - 1));
        Ok::<_, ServiceError>(ByteRange::From {
            first: range.offset,
            last,
        })
    });
    Ok((id_of("image", &request.id)?, range.transpose()?))
}

/// A download as messages.
pub fn messages(download: Download, metrics: &Arc<Metrics>) -> BoxStream<'static, Result<DownloadResponse, Status>> {
    let metrics = Arc::clone(metrics);
    let Download {
        offset,
        length,
        total,
        etag,
        body,
        ..
    } = download;
    let start = DownloadResponse {
        part: Some(Sent::Start(DownloadStart {
            offset,
            length,
            total,
            etag,
        })),
    };
    let chunk = move |bytes: Bytes| {
        metrics.sent(bytes.len());
        DownloadResponse {
            part: Some(Sent::Chunk(bytes)),
        }
    };
    let body = not_ignored(body).map(move |bytes| bytes.map(&chunk).map_err(status::of));
    futures::stream::iter([Ok(start)]).chain(body).boxed()
}
