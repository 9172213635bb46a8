use serde::Serialize;
use uuid::Uuid;

use crate::Timestamp;

/// Id of a secret, a UUIDv7.
pub type SecretId = Uuid;

/// A secret as it is shown: never its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Secret {
    /// Id by which requests name it.
    pub id: SecretId,
    /// Name the user gave it, unique.
    pub name: String,
    /// When it was stored.
    pub created_at: Timestamp,
}
