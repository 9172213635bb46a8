use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::Image;

/// A range of bytes as the `Range` header gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteRange {
    /// `bytes=first-` or `bytes=first-last` (both inclusive).
    From {
        /// First byte.
        first: u64,
        /// Last byte, inclusive; a value behind the end means the end.
        last: Option<u64>,
    },
    /// `bytes=-count`: the last bytes.
    Last(u64),
}

impl ByteRange {
    /// Offset and length inside a body of `total` bytes.
    ///
    /// # Errors
    /// [`ErrorCode::RangeNotSatisfiable`] when no byte of the body is meant (RFC 9110 section 14.1.2).
    pub fn resolve(self, total: u64) -> Result<(u64, u64)> {
        let outside = || {
            let public = format!("the range lies outside the {total} bytes there are");
            ServiceError::new(ErrorCode::RangeNotSatisfiable, public).with_range_total(total)
        };
        let end = total.checked_sub(1).ok_or_else(outside)?;
        match self {
            Self::From { first, last } => {
                let last = last.unwrap_or(end).min(end);
                if first > last {
                    return Err(outside());
                }
                Ok((first, last - first + 1))
            }
            Self::Last(0) => Err(outside()),
            Self::Last(count) => Ok((total - count.min(total), count.min(total))),
        }
    }
}

/// A digest of the whole file that an upload must match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// SHA-256.
    Sha256([u8; 32]),
}

/// What is known of an upload's body before it arrives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UploadPart {
    /// Where the part starts in the file. 0 starts anew; otherwise it must be where the last part ended.
    pub offset: u64,
    /// Bytes of this part, from `Content-Length`; fewer mean an interrupted upload.
    pub length: Option<u64>,
    /// Bytes of the whole file, from `Content-Range: bytes a-b/total`; the same in every part. `None` with no `Content-Range`: the body
    /// is the whole file, unless an earlier part said how long that is.
    pub total: Option<u64>,
    /// Whether more parts follow although `total` is unknown (`Content-Range: bytes a-b/*`).
    pub more: bool,
    /// Digest of the whole file, checked when it is complete.
    pub checksum: Option<Checksum>,
}

/// Where an upload stands after a part.
#[derive(Clone, Debug)]
pub enum UploadStatus {
    /// More is to come, from `received` on.
    Incomplete {
        /// Bytes that are stored.
        received: u64,
    },
    /// The file is complete, was looked at and is recorded.
    Complete(Box<Image>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_follow_rfc_9110() {
        let from = |first, last| ByteRange::From { first, last };
        let cases = [
            (from(0, Some(499)), 1000, Some((0, 500))),
            (from(500, None), 1000, Some((500, 500))),
            (from(999, Some(5000)), 1000, Some((999, 1))),
            (from(1000, None), 1000, None),
            (from(5, Some(4)), 1000, None),
            (ByteRange::Last(500), 1000, Some((500, 500))),
            (ByteRange::Last(5000), 1000, Some((0, 1000))),
            (ByteRange::Last(0), 1000, None),
            (from(0, None), 0, None),
            (from(0, Some(u64::MAX)), u64::MAX, Some((0, u64::MAX))),
        ];
        for (range, total, expected) in cases {
            assert_eq!(range.resolve(total).ok(), expected, "{range:?} of {total}");
        }
    }
}
