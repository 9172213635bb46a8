use futures::Stream;
use futures::stream::BoxStream;

use super::{Service, waiting};
use crate::Bytes;
use crate::error::Result;
use crate::model::ImageId;
use crate::request::{ByteRange, UploadPart, UploadStatus};

/// Bytes on their way out.
pub struct Download {
    /// Where `body` starts in the whole.
    pub offset: u64,
    /// Bytes of `body`.
    pub length: u64,
    /// Bytes of the whole.
    pub total: u64,
    /// Changes whenever the content does (without quotes); for `ETag` and `If-Range`.
    pub etag: String,
    /// A file name to propose to the client.
    pub filename: String,
    /// The bytes. Dropping it ends the read.
    pub body: BoxStream<'static, Result<Bytes>>,
}

impl Service {
    /// Takes a part of an image's file in. What arrived before the client went away is kept.
    ///
    /// # Errors
    /// `not_found`, `image_not_ready` (not uploading), `image_busy` (another upload of it runs),
    /// `upload_offset_mismatch`, `upload_interrupted`, `limit_exceeded`, `insufficient_storage`, `checksum_mismatch`,
    /// and when the file is complete `format_mismatch`, `corrupt_image`, `denied` (it refers to other files),
    /// `unsupported`. After the last five the image is in state `failed`.
    pub async fn upload<S, E>(&self, _id: ImageId, _part: UploadPart, _body: S) -> Result<UploadStatus>
    where
        S: Stream<Item = Result<Bytes, E>> + Send + Unpin,
        E: std::fmt::Display + Send,
    {
        Err(waiting("upload"))
    }

    /// How far an upload is.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn upload_status(&self, _id: ImageId) -> Result<UploadStatus> {
        Err(waiting("upload"))
    }

    /// The stored file of an image.
    ///
    /// # Errors
    /// `not_found`, `image_not_ready`, `image_busy`, `range_not_satisfiable`.
    pub async fn read_file(&self, _id: ImageId, _range: Option<ByteRange>) -> Result<Download> {
        Err(waiting("download"))
    }

    /// The bytes that a guest sees, through the whole chain.
    ///
    /// # Errors
    /// `not_found`, `image_not_ready`, `image_busy`, `range_not_satisfiable`, `corrupt_image`, `secret_required`.
    pub async fn read_data(&self, _id: ImageId, _range: Option<ByteRange>) -> Result<Download> {
        Err(waiting("download"))
    }
}
