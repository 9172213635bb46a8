//! What clients ask for. Every type reads from the JSON of the HTTP contract and refuses fields it does not know.

mod access;
mod image;
mod job;
mod keys;
mod list;
mod plan;
mod transfer;
mod values;
mod webhook;

pub use access::NewToken;
pub use image::{CreateImage, ImageFilter, ImageRef, ImportImage, ImportOutcome, ImportSource, UpdateImage};
pub use job::{
    CheckRequest, CommitRequest, CompareRequest, CompressRequest, CompressionAlgorithm, ConvertRequest, FlattenRequest,
    JobFilter, MeasureRequest, RebaseMode, RebaseRequest, Repair, ResizeRequest, UpdateJob, WaitUntil,
};
pub use keys::{DecryptRequest, EncryptRequest, KeyChange, RekeyRequest, RotateMasterKeyRequest};
pub use list::{Call, EventFilter, MapLayer, MapRequest, PageRequest};
pub use plan::JobRequest;
pub use transfer::{ByteRange, Checksum, UploadPart, UploadStatus};
pub use values::{NewSecret, Options, SecretForm, SecretRefs};
pub use webhook::NewWebhook;
