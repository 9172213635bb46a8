//! Several ranges as `multipart/byteranges` (RFC 9110 section 14.6).

use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use uuid::Uuid;
use vdisk_service::{Bytes, Download, Result};

use super::content_range;

/// A body of several parts.
pub struct Multipart {
    /// With the boundary.
    pub content_type: String,
    /// Bytes of `body`.
    pub length: u64,
    /// The parts with their heads, and the end.
    pub body: BoxStream<'static, Result<Bytes>>,
}

/// Puts the parts behind each other, in the order that they were asked for.
pub fn of(parts: Vec<Download>) -> Multipart {
    let boundary = format!("vdisk-{}", Uuid::new_v4().simple());
    let end = format!("\r\n--{boundary}--\r\n");
    let mut length = size(&end);
    let mut pieces = Vec::new();
    for (number, part) in parts.into_iter().enumerate() {
        let line = if number == 0 { "" } else { "\r\n" };
        let range = content_range(&part);
        let head =
            format!("{line}--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: {range}\r\n\r\n");
        length = length.saturating_add(size(&head)).saturating_add(part.length);
        pieces.push(text(head).chain(part.body).boxed());
    }
    pieces.push(text(end).boxed());
    Multipart {
        content_type: format!("multipart/byteranges; boundary={boundary}"),
        length,
        body: stream::iter(pieces).flatten().boxed(),
    }
}

fn text(text: String) -> stream::Iter<std::option::IntoIter<Result<Bytes>>> {
    stream::iter(Some(Ok(Bytes::from(text))))
}

fn size(text: &str) -> u64 {
    u64::try_from(text.len()).unwrap_or(u64::MAX)
}
