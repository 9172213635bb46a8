//! What is known of a layer, and what may be asked of it.

use serde_json::{Map, Value};

use super::SnapshotInfo;

/// Facts about an open layer; the names are those of `qemu-img info --output=json`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ImageInfo {
    /// Allocation unit in bytes, where the format has one.
    pub cluster_size: Option<u64>,
    /// Whether guest data is encrypted.
    pub encrypted: bool,
    /// Whether the image as a whole is of compressed units (streamOptimized and the like).
    pub compressed: bool,
    /// The image was not closed properly; `None` where `qemu-img info` leaves that out.
    pub dirty: Option<bool>,
    /// Internal snapshots.
    pub snapshots: Vec<SnapshotInfo>,
    /// `format-specific.data` under QEMU's keys; `None` where QEMU has none and we have nothing to add.
    pub specific: Option<Map<String, Value>>,
}

/// What `check` may mend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Repair {
    /// Nothing.
    #[default]
    No,
    /// Space nobody uses (`-r leaks`).
    Leaks,
    /// Everything it can (`-r all`).
    All,
}

/// What `check` found; the names are those of `qemu-img check --output=json`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Things that could not be checked.
    pub check_errors: u64,
    /// Contradictions that can lose data.
    pub corruptions: u64,
    /// Space that nothing refers to.
    pub leaks: u64,
    /// Contradictions that were mended.
    pub corruptions_fixed: u64,
    /// Leaks that were mended.
    pub leaks_fixed: u64,
    /// End of the last used byte of the file.
    pub image_end_offset: Option<u64>,
    /// Clusters of the virtual size.
    pub total_clusters: Option<u64>,
    /// Clusters with data.
    pub allocated_clusters: Option<u64>,
    /// Of these, not at the place that a sequential read expects.
    pub fragmented_clusters: Option<u64>,
    /// Of these, compressed.
    pub compressed_clusters: Option<u64>,
    /// One sentence a finding; bounded in number by the driver.
    pub messages: Vec<String>,
}

/// How space is reserved when an image is created or grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preallocation {
    /// None.
    #[default]
    Off,
    /// Tables only.
    Metadata,
    /// Tables, and space reserved by the file system.
    Falloc,
    /// Tables, and zeroes written.
    Full,
}

/// Changing the virtual size.
#[derive(Debug, Clone, Copy, Default)]
pub struct Resize {
    /// The new virtual size in bytes.
    pub virtual_size: u64,
    /// Data past the new end may be thrown away.
    pub shrink: bool,
    /// For the new part.
    pub preallocation: Preallocation,
}
