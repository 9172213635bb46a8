use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::values::{required_or_null, scalar_map};
use super::{ImageRef, Options, SecretRefs};
use crate::model::{ImageId, JobKind, JobState, Labels, text_enum};

/// Make a new image with the content of this one.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ConvertRequest {
    /// Name of the new image, unique in the pool.
    pub name: String,
    /// Pool of the new image; the source's pool when absent.
    pub pool: Option<String>,
    /// Format of the new image.
    pub format: String,
    /// Options of that format.
    #[serde(default, deserialize_with = "scalar_map")]
    #[schema(value_type = BTreeMap<String, String>)]
    pub options: Options,
    /// Write compressed clusters.
    #[serde(default)]
    pub compress: bool,
    /// Take the content of this internal snapshot.
    pub snapshot: Option<String>,
    /// Make the result an overlay on this base: only what differs from it is written.
    #[schema(value_type = Option<Uuid>)]
    pub backing: Option<ImageRef>,
    /// Secrets by the names that `options` give them, or by role (`encrypt.key-secret`). The new image remembers those that open it. A
    /// source that names no secrets of its own is opened with these. One that nothing uses is refused: a key alone makes no image encrypted
    /// where an option says whether it is (`encrypt.format`).
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, Uuid>)]
    pub secrets: SecretRefs,
    /// Labels of the new image.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>)]
    pub labels: Labels,
    /// Read the result back and compare its digest with the source's before the job succeeds.
    #[serde(default)]
    pub verify: bool,
    /// Bytes per second.
    pub rate_limit: Option<u64>,
    /// Higher runs earlier.
    pub priority: Option<i32>,
}

/// Compress an image in place.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CompressRequest {
    /// How.
    pub algorithm: CompressionAlgorithm,
    /// Effort; the algorithm's own scale.
    pub level: Option<i32>,
    /// Read the result back and compare its digest with the source's before the job succeeds.
    #[serde(default)]
    pub verify: bool,
    /// Bytes per second.
    pub rate_limit: Option<u64>,
    /// Higher runs earlier.
    pub priority: Option<i32>,
}

text_enum! {
    /// How clusters are compressed.
    CompressionAlgorithm, "compression algorithm" {
        /// Deflate: every qcow2 reader knows it.
        Zlib = "zlib",
        /// Zstandard: qcow2 version 3, QEMU 5.1 and newer.
        Zstd = "zstd",
    }
}

/// Put an overlay on another base, or on none.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RebaseRequest {
    /// The new base; `null` makes the image stand alone. Must be given.
    #[serde(deserialize_with = "required_or_null")]
    #[schema(value_type = Option<Uuid>)]
    pub backing: Option<ImageRef>,
    /// Whether the content is kept.
    #[serde(default)]
    pub mode: RebaseMode,
    /// Read the result back and compare its digest with the source's before the job succeeds.
    #[serde(default)]
    pub verify: bool,
    /// Bytes per second.
    pub rate_limit: Option<u64>,
    /// Higher runs earlier.
    pub priority: Option<i32>,
}

text_enum! {
    /// Whether a rebase keeps what the guest sees.
    #[derive(Default)]
    RebaseMode, "mode" {
        /// Content stays; what differs between the bases is copied into the overlay.
        #[default]
        Safe = "safe",
        /// Only the reference changes; the content becomes what the new base says.
        Unsafe = "unsafe",
    }
}

/// Write an overlay's content into a base.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CommitRequest {
    /// The base; the direct one when absent.
    #[schema(value_type = Option<Uuid>)]
    pub base: Option<ImageRef>,
    /// Delete the overlay (and the layers between) when done.
    pub drop: bool,
    /// Read the result back and compare its digest with the source's before the job succeeds.
    pub verify: bool,
    /// Bytes per second.
    pub rate_limit: Option<u64>,
    /// Higher runs earlier.
    pub priority: Option<i32>,
}

/// Look for errors in an image's own structures.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CheckRequest {
    /// What to repair; nothing when absent.
    pub repair: Option<Repair>,
    /// Higher runs earlier.
    pub priority: Option<i32>,
}

text_enum! {
    /// What a check repairs.
    Repair, "repair" {
        /// Clusters that are counted but not used.
        Leaks = "leaks",
        /// Everything that can be repaired.
        All = "all",
    }
}

/// Change the virtual size.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResizeRequest {
    /// New size, in bytes.
    pub virtual_size: u64,
    /// Must be `true` to make the image smaller: what lies behind the new end is lost.
    #[serde(default)]
    pub shrink: bool,
    /// Higher runs earlier.
    pub priority: Option<i32>,
}

/// Tell whether two images have the same content.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CompareRequest {
    /// The other image.
    #[schema(value_type = Uuid)]
    pub other: ImageRef,
    /// Sizes must agree too, and so must what is allocated.
    #[serde(default)]
    pub strict: bool,
    /// Higher runs earlier.
    pub priority: Option<i32>,
}

/// How large the image would be in a format. Answered at once.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MeasureRequest {
    /// The format.
    pub format: String,
    /// Options of that format.
    #[serde(default, deserialize_with = "scalar_map")]
    #[schema(value_type = BTreeMap<String, String>)]
    pub options: Options,
}

/// Make an overlay stand alone: copy into it what it takes from its bases.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FlattenRequest {
    /// Read the result back and compare its digest with the source's before the job succeeds.
    pub verify: bool,
    /// Bytes per second.
    pub rate_limit: Option<u64>,
    /// Higher runs earlier.
    pub priority: Option<i32>,
}

/// Changes of a job that has not ended. Absent fields stay.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct UpdateJob {
    /// Bytes per second; 0 takes the limit away.
    pub rate_limit: Option<u64>,
    /// Higher runs earlier.
    pub priority: Option<i32>,
}

/// Which jobs a list shows, newest first. Absent fields do not narrow it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct JobFilter {
    /// Only those in this state.
    pub state: Option<JobState>,
    /// Only this kind.
    pub kind: Option<JobKind>,
    /// Only those that read or write this image.
    pub image: Option<ImageId>,
    /// Only this pool's.
    pub pool: Option<String>,
}

/// What [`crate::Service::wait_job`] waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WaitUntil {
    /// The job's state is another than at the time of the call, or an end.
    #[default]
    StateChanges,
    /// The job has ended.
    Finished,
    /// Anything about the job changed since this version, progress included.
    VersionAfter(u64),
}
