use serde::Serialize;
use utoipa::ToSchema;

use super::{ImageId, JobKind, text_enum};

/// What a job would do, as far as that can be told without doing it. Numbers that cannot be told are absent.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct JobPlan {
    /// Which work.
    pub kind: JobKind,
    /// Images it would read or write.
    #[schema(value_type = Vec<Uuid>)]
    pub image_ids: Vec<ImageId>,
    /// Pool it would work in.
    pub pool: Option<String>,
    /// Bytes of content it would read.
    pub read: Option<Amount>,
    /// Bytes of content it would write.
    pub write: Option<Amount>,
    /// Length of the file that is there in the end.
    pub target_size: Option<Amount>,
    /// Bytes on disk that it would take beside what is there now.
    pub space_needed: Option<Amount>,
    /// Bytes that are free in the pool.
    pub space_free: Option<u64>,
    /// What would be lost.
    pub losses: Vec<Loss>,
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Amount {
    /// How many.
    pub bytes: u64,
    /// How sure that is.
    pub bound: Bound,
}

impl Amount {
    /// Exactly so many.
    pub fn exact(bytes: u64) -> Self {
        let bound = Bound::Exact;
        Self { bytes, bound }
    }

    /// So many, or fewer.
    pub fn at_most(bytes: u64) -> Self {
        let bound = Bound::AtMost;
        Self { bytes, bound }
    }
}

text_enum! {
    /// How sure a number is.
    Bound, "bound" {
        /// It is this number.
        Exact = "exact",
        /// It is this number or a smaller one.
        AtMost = "at_most",
    }
}

/// Something that is there now and would not be there, or not the same, afterwards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Loss {
    /// What.
    pub kind: LossKind,
    /// The image that has it.
    #[schema(value_type = Uuid)]
    pub image_id: ImageId,
    /// In words.
    pub detail: String,
}

text_enum! {
    /// What would be lost.
    LossKind, "loss kind" {
        /// Internal snapshots are not in the result.
        Snapshots = "snapshots",
        /// Persistent bitmaps are not in the result.
        Bitmaps = "bitmaps",
        /// The result is not encrypted.
        Encryption = "encryption",
        /// Bytes behind a new end.
        Data = "data",
        /// What the image shows becomes something else.
        Content = "content",
        /// The image itself.
        Image = "image",
    }
}
