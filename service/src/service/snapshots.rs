use super::{Service, waiting};
use crate::error::Result;
use crate::model::{Image, ImageId, Snapshot};
use crate::request::Call;

impl Service {
    /// The image's internal snapshots, oldest first.
    ///
    /// # Errors
    /// `not_found`, `image_not_ready`, `image_busy`, `unsupported` (format).
    pub async fn snapshots(&self, _id: ImageId) -> Result<Vec<Snapshot>> {
        Err(waiting("snapshots"))
    }

    /// Takes a snapshot of the image's present content.
    ///
    /// # Errors
    /// As [`Service::snapshots`]; `invalid_name`, `name_taken`, `image_protected`, `insufficient_storage`.
    pub async fn create_snapshot(&self, _id: ImageId, _name: &str, _call: &Call) -> Result<Snapshot> {
        Err(waiting("snapshots"))
    }

    /// Deletes a snapshot.
    ///
    /// # Errors
    /// As [`Service::snapshots`]; `image_protected`.
    pub async fn delete_snapshot(&self, _id: ImageId, _name: &str) -> Result<()> {
        Err(waiting("snapshots"))
    }

    /// Makes the image's content what the snapshot holds; what was there since is lost.
    ///
    /// # Errors
    /// As [`Service::snapshots`]; `conflict_dependents`, `image_protected`.
    pub async fn apply_snapshot(&self, _id: ImageId, _name: &str, _call: &Call) -> Result<Image> {
        Err(waiting("snapshots"))
    }
}
