//! `Range` and `If-Range` of downloads, `Content-Range` of uploads (RFC 9110 section 14).

use axum::extract::FromRequestParts;
use http::request::Parts;
use http::{HeaderMap, HeaderName, header};
use vdisk_service::request::ByteRange;
use vdisk_service::{ErrorCode, ServiceError};

use crate::errors::TransportCode;
use crate::http::problem::{Answer, Problem};

/// Which bytes a download asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct RangeHeaders {
    /// `Range`, when it is in bytes.
    pub range: Option<ByteRange>,
    /// `If-Range`: the range counts only while the entity tag is this one.
    pub if_range: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for RangeHeaders {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Answer<Self> {
        let range = text(&parts.headers, header::RANGE)?
            .map(parse_range)
            .transpose()?
            .flatten();
        let if_range = text(&parts.headers, header::IF_RANGE)?.map(|tag| tag.trim_matches('"').to_owned());
        Ok(Self { range, if_range })
    }
}

/// Which part of a file an upload's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentRange {
    /// No header: the body is the whole file.
    Whole,
    /// `bytes first-last/total` or `bytes first-last/*`.
    Part {
        /// First byte.
        first: u64,
        /// Bytes.
        length: u64,
        /// Bytes of the whole file.
        total: Option<u64>,
    },
    /// `bytes */total` or `bytes */*`, with an empty body: how far is the upload?
    Status,
}

impl<S: Send + Sync> FromRequestParts<S> for ContentRange {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Answer<Self> {
        match text(&parts.headers, header::CONTENT_RANGE)? {
            None => Ok(Self::Whole),
            Some(value) => parse_content_range(value).ok_or_else(|| {
                let detail = "expected 'bytes FIRST-LAST/TOTAL', with '*' for a total that is not known yet";
                malformed("Content-Range", detail)
            }),
        }
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Answer<Option<&str>> {
    let Some(value) = headers.get(&name) else {
        return Ok(None);
    };
    value
        .to_str()
        .map(Some)
        .map_err(|_| malformed(name.as_str(), "the value is not ASCII"))
}

fn malformed(header: &str, detail: &str) -> Problem {
    Problem::transport(TransportCode::MalformedRequest, format!("{header}: {detail}")).with_field(header)
}

/// A unit that is not `bytes` is ignored, as RFC 9110 section 14.2 says.
fn parse_range(value: &str) -> Answer<Option<ByteRange>> {
    let Some((unit, set)) = value.split_once('=') else {
        return Err(malformed(
            "Range",
            "expected 'bytes=FIRST-LAST', 'bytes=FIRST-' or 'bytes=-COUNT'",
        ));
    };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Ok(None);
    }
    if set.contains(',') {
        let text = "several ranges in one request are not served; ask for one at a time";
        return Err(ServiceError::new(ErrorCode::RangeNotSatisfiable, text)
            .with_field("Range")
            .into());
    }
    let parsed = set
        .trim()
        .split_once('-')
        .and_then(|(first, last)| match (first, last) {
            ("", count) => number(count).map(ByteRange::Last),
            (first, "") => number(first).map(|first| ByteRange::From { first, last: None }),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(ByteRange::From {
                    first,
                    last: Some(last),
                })
            }
        });
    parsed
        .map(Some)
        .ok_or_else(|| malformed("Range", "expected 'bytes=FIRST-LAST', 'bytes=FIRST-' or 'bytes=-COUNT'"))
}

fn parse_content_range(value: &str) -> Option<ContentRange> {
    let (unit, rest) = value.trim().split_once(' ')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (range, total) = rest.trim().split_once('/')?;
    let total = if total == "*" { None } else { Some(number(total)?) };
    if range == "*" {
        return Some(ContentRange::Status);
    }
    let (first, last) = range.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    let length = last.checked_sub(first)?.checked_add(1)?;
    let fits = total.is_none_or(|total| last < total);
    fits.then_some(ContentRange::Part { first, length, total })
}

/// Digits only: `parse` alone would take a plus sign.
fn number(text: &str) -> Option<u64> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_headers_are_read_as_rfc_9110_writes_them() {
        let from = |first, last| Some(Ok(Some(ByteRange::From { first, last })));
        let cases = [
            ("bytes=0-499", from(0, Some(499))),
            ("bytes=9500-", from(9500, None)),
            ("Bytes=0-0", from(0, Some(0))),
            ("bytes=-500", Some(Ok(Some(ByteRange::Last(500))))),
            ("pages=1-2", Some(Ok(None))),
            ("bytes=0-0,-1", Some(Err(416))),
            ("bytes=5-4", Some(Err(400))),
            ("bytes=a-b", Some(Err(400))),
            ("bytes=+1-2", Some(Err(400))),
            ("bytes=", Some(Err(400))),
            ("bytes", Some(Err(400))),
            ("bytes=0-99999999999999999999", Some(Err(400))),
        ];
        for (value, expected) in cases {
            assert_eq!(
                Some(parse_range(value).map_err(|problem| problem.status)),
                expected,
                "{value}"
            );
        }
    }

    #[test]
    fn content_range_headers_are_read_as_rfc_9110_writes_them() {
        let part = |first, length, total| Some(ContentRange::Part { first, length, total });
        let cases = [
            ("bytes 0-9/100", part(0, 10, Some(100))),
            ("bytes 42-1233/*", part(42, 1192, None)),
            ("bytes */1234", Some(ContentRange::Status)),
            ("bytes 0-100/100", None),
            ("bytes 9-0/100", None),
            ("bytes 0-18446744073709551615/*", None),
            ("items 0-1/2", None),
            ("bytes 0-1", None),
        ];
        for (value, expected) in cases {
            assert_eq!(parse_content_range(value), expected, "{value}");
        }
    }
}
