use serde::Serialize;
use utoipa::ToSchema;

/// A folder that holds images. Clients know it by name; its path is the operator's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Pool {
    /// Name by which requests choose it.
    pub name: String,
    /// Bytes of the file system below it.
    pub capacity: u64,
    /// Bytes that the pool's images take on disk.
    pub allocated: u64,
    /// Bytes still available to the service.
    pub free: u64,
    /// Images recorded in it.
    pub image_count: u64,
    /// Whether requests that name no pool go here.
    pub default: bool,
}
