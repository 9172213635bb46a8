use serde::Serialize;
use utoipa::ToSchema;

use super::ImageId;

/// A guest range of one status. Neighbouring extents differ in something and leave no gap; the last of a page that took long may go on
/// in the first of the next page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Extent {
    /// First guest byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// Layer that answers for it: 0 is the image itself, 1 its base, and so on.
    pub depth: u32,
    /// Whether any layer allocates it.
    pub present: bool,
    /// Whether it reads as zeros for sure.
    pub zero: bool,
    /// Whether bytes are stored for it.
    pub data: bool,
    /// Whether those bytes are compressed.
    pub compressed: bool,
    /// Where they start in the layer's file, when they are stored plainly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// Name of the layer's file inside its pool, when `offset` is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filename: Option<String>,
    /// The layer's image, when the inventory knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Uuid>)]
    pub image_id: Option<ImageId>,
}

/// A part of an image's map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct MapPage {
    /// Extents in guest order.
    pub extents: Vec<Extent>,
    /// Opaque; ask again with it for what follows. `None` at the end.
    pub next_cursor: Option<String>,
}

/// One layer of a backing chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ChainLayer {
    /// The layer's image.
    #[schema(value_type = Option<Uuid>)]
    pub image_id: Option<ImageId>,
    /// The image's name.
    pub name: String,
    /// Its format.
    pub format: String,
    /// Name of its file inside its pool.
    pub filename: String,
    /// Its virtual size, in bytes.
    pub virtual_size: u64,
    /// 0 for the image asked about, 1 for its base, and so on.
    pub depth: u32,
}

/// What a conversion would need, in bytes, as `qemu-img measure` counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct MeasureReport {
    /// File size when only the present data is written.
    pub required: u64,
    /// File size when every guest byte is allocated.
    pub fully_allocated: u64,
    /// Bytes that persistent bitmaps would add.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bitmaps: Option<u64>,
}
