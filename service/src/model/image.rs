use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::text_enum;
use crate::Timestamp;

/// Id of an image, a UUIDv7.
pub type ImageId = Uuid;

/// Free-form keys and values on an image.
pub type Labels = BTreeMap<String, String>;

/// A record of the inventory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Image {
    /// Id; also the name of its file inside the pool.
    #[schema(value_type = Uuid)]
    pub id: ImageId,
    /// Name, unique in its pool.
    pub name: String,
    /// Pool that holds it.
    pub pool: String,
    /// Format driver; empty while an upload without a claimed format has not been looked at.
    pub format: String,
    /// What can be done with it now.
    pub state: ImageState,
    /// Bytes the guest sees; 0 while uploading.
    pub virtual_size: u64,
    /// Bytes taken on disk.
    pub allocated_size: u64,
    /// Length of the file, in bytes.
    pub file_size: u64,
    /// The base this image is an overlay of.
    #[schema(value_type = Option<Uuid>)]
    pub backing_id: Option<ImageId>,
    /// Grows with every change of its content; together with the id it is the image's fingerprint.
    pub generation: u64,
    /// Free-form keys and values.
    #[schema(value_type = BTreeMap<String, String>)]
    pub labels: Labels,
    /// Whether deletion and change are refused.
    pub protected: bool,
    /// Whether its content is encrypted.
    pub encrypted: bool,
    /// The secrets that open it, by role: an option of its format (`encrypt.key-secret`; `key-secret` for LUKS).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, Uuid>)]
    pub secrets: BTreeMap<String, Uuid>,
    /// While uploading: how many bytes of the file have arrived.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uploaded_bytes: Option<u64>,
    /// Why it is in state `failed` or `missing`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// When the record was made.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When the record was last changed.
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

text_enum! {
    /// What can be done with an image now.
    ImageState, "image state" {
        /// Its file is arriving.
        Uploading = "uploading",
        /// It can be read and changed.
        Ready = "ready",
        /// A job is going to change it or is changing it.
        Busy = "busy",
        /// Its file is gone.
        Missing = "missing",
        /// Its file is there but was refused; `problem` says why.
        Failed = "failed",
    }
}
