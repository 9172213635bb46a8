use super::{Service, waiting};
use crate::error::Result;
use crate::model::{ImageId, Job};
use crate::request::{
    Call, CheckRequest, CommitRequest, CompareRequest, CompressRequest, ConvertRequest, FlattenRequest, RebaseRequest,
    ResizeRequest,
};

/// The verbs that queue a job. Each checks what can be checked at once, and holds the images it needs from then on:
/// shared for every layer it reads, exclusive for what it writes. Common errors: `not_found`, `invalid_argument`,
/// `unsupported`, `image_not_ready`, `image_busy`, `limit_exceeded` (too many open jobs), `idempotency_conflict`.
impl Service {
    /// Makes a new image with the content of this one; `result.image_id` names it.
    ///
    /// # Errors
    /// The common ones; `invalid_name`, `name_taken`.
    pub async fn convert_image(&self, _id: ImageId, _request: ConvertRequest, _call: &Call) -> Result<Job> {
        Err(waiting("convert"))
    }

    /// Compresses an image in place.
    ///
    /// # Errors
    /// The common ones; `conflict_dependents`, `image_protected`.
    pub async fn compress_image(&self, _id: ImageId, _request: CompressRequest, _call: &Call) -> Result<Job> {
        Err(waiting("compress"))
    }

    /// Puts an overlay on another base, or on none.
    ///
    /// # Errors
    /// The common ones; `conflict_cycle`, `conflict_dependents` (unsafe mode), `image_protected`.
    pub async fn rebase_image(&self, _id: ImageId, _request: RebaseRequest, _call: &Call) -> Result<Job> {
        Err(waiting("rebase"))
    }

    /// Writes an overlay's content into a base.
    ///
    /// # Errors
    /// The common ones; `conflict_dependents` when the base has other overlays, `image_protected` (base).
    pub async fn commit_image(&self, _id: ImageId, _request: CommitRequest, _call: &Call) -> Result<Job> {
        Err(waiting("commit"))
    }

    /// Looks for errors in the image's structures, and repairs them when asked.
    ///
    /// # Errors
    /// The common ones; `image_protected` with repair.
    pub async fn check_image(&self, _id: ImageId, _request: CheckRequest, _call: &Call) -> Result<Job> {
        Err(waiting("check"))
    }

    /// Changes the virtual size.
    ///
    /// # Errors
    /// The common ones; `conflict_dependents`, `image_protected`.
    pub async fn resize_image(&self, _id: ImageId, _request: ResizeRequest, _call: &Call) -> Result<Job> {
        Err(waiting("resize"))
    }

    /// Tells whether two images have the same content.
    ///
    /// # Errors
    /// The common ones.
    pub async fn compare_images(&self, _id: ImageId, _request: CompareRequest, _call: &Call) -> Result<Job> {
        Err(waiting("compare"))
    }

    /// Makes an overlay stand alone.
    ///
    /// # Errors
    /// The common ones; `image_protected`.
    pub async fn flatten_image(&self, _id: ImageId, _request: FlattenRequest, _call: &Call) -> Result<Job> {
        Err(waiting("flatten"))
    }
}
