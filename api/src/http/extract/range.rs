//! `Range` and `If-Range` of downloads, `Content-Range` of uploads (RFC 9110 section 14).

use axum::extract::FromRequestParts;
use http::request::Parts;
use http::{HeaderMap, HeaderName, Method, header};
use vdisk_service::request::ByteRange;
use vdisk_service::{ErrorCode, ServiceError};

use crate::errors::TransportCode;
use crate::http::problem::{Answer, Problem};

/// Ranges of one request. Each takes a reader of its own.
const MOST_RANGES: usize = 8;

/// Which bytes a download asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct RangeHeaders {
    /// `Range`, when it is in bytes and the method is GET: no other has ranges (RFC 9110 section 14.2).
    pub ranges: Vec<ByteRange>,
    /// `If-Range`: the ranges count only while the entity tag is this one.
    pub if_range: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for RangeHeaders {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Answer<Self> {
        if parts.method != Method::GET {
            return Ok(Self::default());
        }
        let ranges = text(&parts.headers, header::RANGE)?.map(parse_ranges).transpose()?;
        let if_range = text(&parts.headers, header::IF_RANGE)?.map(strong_tag);
        Ok(Self {
            ranges: ranges.unwrap_or_default(),
            if_range,
        })
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

impl ContentRange {
    /// Whether the body is all of the file.
    pub fn is_whole(self) -> bool {
        match self {
            Self::Whole => true,
            Self::Part { first, length, total } => first == 0 && total == Some(length),
            Self::Status => false,
        }
    }
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

/// The opaque part of a strong entity tag. Anything else, a weak tag or a date, is no tag of ours.
fn strong_tag(value: &str) -> String {
    let opaque = value.trim().strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    opaque.unwrap_or_default().to_owned()
}

/// A unit that is not `bytes` is ignored, as RFC 9110 section 14.2 says.
fn parse_ranges(value: &str) -> Answer<Vec<ByteRange>> {
    let expected = || malformed("Range", "expected 'bytes=FIRST-LAST', 'bytes=FIRST-' or 'bytes=-COUNT'");
    let (unit, set) = value.split_once('=').ok_or_else(expected)?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Ok(Vec::new());
    }
    // A list may have empty elements (RFC 9110 section 5.6.1).
    let ranges = set.split(',').map(str::trim).filter(|range| !range.is_empty());
    let ranges: Vec<_> = ranges
        .map(|range| parse_range(range).ok_or_else(expected))
        .collect::<Answer<_>>()?;
    if ranges.len() > MOST_RANGES {
        let text = format!("one request has at most {MOST_RANGES} ranges");
        let refused = ServiceError::new(ErrorCode::RangeNotSatisfiable, text).with_field("Range");
        return Err(refused.into());
    }
    if ranges.is_empty() {
        return Err(expected());
    }
    Ok(ranges)
}

fn parse_range(range: &str) -> Option<ByteRange> {
    match range.split_once('-')? {
        ("", count) => number(count).map(ByteRange::Last),
        (first, "") => number(first).map(|first| ByteRange::From { first, last: None }),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(ByteRange::From {
                first,
                last: Some(last),
            })
        }
    }
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
        let from = |first, last| Ok(vec![ByteRange::From { first, last }]);
        let cases = [
            ("bytes=0-499", from(0, Some(499))),
            ("bytes=9500-", from(9500, None)),
            ("Bytes=0-0", from(0, Some(0))),
            ("bytes=-500", Ok(vec![ByteRange::Last(500)])),
            ("pages=1-2", Ok(Vec::new())),
            (
                "bytes=0-0, ,-1",
                Ok(vec![
                    ByteRange::From {
                        first: 0,
                        last: Some(0),
                    },
                    ByteRange::Last(1),
                ]),
            ),
            ("bytes=0-0,1-1,2-2,3-3,4-4,5-5,6-6,7-7,8-8", Err(416)),
            ("bytes=0-0,5-4", Err(400)),
            ("bytes=5-4", Err(400)),
            ("bytes=a-b", Err(400)),
            ("bytes=+1-2", Err(400)),
            ("bytes=-", Err(400)),
            ("bytes=,", Err(400)),
            ("bytes=", Err(400)),
            ("bytes", Err(400)),
            ("bytes=0-99999999999999999999", Err(400)),
        ];
        for (value, expected) in cases {
            assert_eq!(
                parse_ranges(value).map_err(|problem| problem.status),
                expected,
                "{value}"
            );
        }
    }

    #[test]
    fn only_strong_entity_tags_are_compared() {
        for (value, expected) in [
            ("\"a-1\"", "a-1"),
            ("W/\"a-1\"", ""),
            ("a-1", ""),
            ("Sat, 28 Nov 2026 17:52:00 GMT", ""),
        ] {
            assert_eq!(strong_tag(value), expected, "{value}");
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
