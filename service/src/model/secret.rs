use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::Timestamp;

/// Id of a secret, a UUIDv7.
pub type SecretId = Uuid;

/// A secret as it is shown: never its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Secret {
    /// Id by which requests name it.
    #[schema(value_type = Uuid)]
    pub id: SecretId,
    /// Name the user gave it, unique.
    pub name: String,
    /// When it was stored.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}
