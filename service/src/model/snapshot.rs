use serde::Serialize;
use utoipa::ToSchema;

use crate::Timestamp;

/// An internal snapshot of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Snapshot {
    /// Id inside the image, as the format stores it.
    pub id: String,
    /// Name, unique in the image where we made it.
    pub name: String,
    /// When it was taken, as the image says.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// Bytes of saved machine state; 0 for a disk-only snapshot.
    pub vm_state_size: u64,
    /// Virtual size of the disk at that time, in bytes.
    pub virtual_size: Option<u64>,
}
