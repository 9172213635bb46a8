use super::{
    CheckRequest, CommitRequest, CompareRequest, CompressRequest, ConvertRequest, DecryptRequest, EncryptRequest,
    FlattenRequest, ImportImage, RebaseRequest, RekeyRequest, ResizeRequest,
};
use crate::model::ImageId;

/// A request that would lead to a job.
#[derive(Clone, Debug)]
pub enum JobRequest {
    /// Make a new image with the content of this one.
    Convert(ImageId, ConvertRequest),
    /// Make a new, encrypted image with the content of this one.
    Encrypt(ImageId, EncryptRequest),
    /// Make a new image that is not encrypted with the content of this one.
    Decrypt(ImageId, DecryptRequest),
    /// Change this image's keys in place.
    Rekey(ImageId, RekeyRequest),
    /// Compress this image in place.
    Compress(ImageId, CompressRequest),
    /// Put this overlay on another base, or on none.
    Rebase(ImageId, RebaseRequest),
    /// Write this overlay's content into a base.
    Commit(ImageId, CommitRequest),
    /// Make this overlay stand alone.
    Flatten(ImageId, FlattenRequest),
    /// Look for errors in this image.
    Check(ImageId, CheckRequest),
    /// Change this image's virtual size.
    Resize(ImageId, ResizeRequest),
    /// Tell whether this image and another have the same content.
    Compare(ImageId, CompareRequest),
    /// Take a file in. An upload is no job.
    Import(ImportImage),
    /// Register the files found in this pool.
    Scan(String),
}
