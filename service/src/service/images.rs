use super::{Service, waiting};
use crate::error::Result;
use crate::model::{Image, ImageId, Page};
use crate::request::{Call, CreateImage, ImageFilter, ImportImage, ImportOutcome, PageRequest, UpdateImage};

impl Service {
    /// Makes an empty image, or an empty overlay on a base.
    ///
    /// # Errors
    /// `invalid_name`, `name_taken`, `not_found` (pool, base, secret), `unsupported` (format or option),
    /// `invalid_argument`, `image_not_ready` (base), `limit_exceeded`, `insufficient_storage`, `idempotency_conflict`.
    pub async fn create_image(&self, _request: CreateImage, _call: &Call) -> Result<Image> {
        Err(waiting("create"))
    }

    /// Records an image whose bytes exist: starts an upload, or queues a job that takes a file of the pool in.
    ///
    /// # Errors
    /// As [`Service::create_image`]; `unsupported` for a URL.
    pub async fn import_image(&self, _request: ImportImage, _call: &Call) -> Result<ImportOutcome> {
        Err(waiting("import"))
    }

    /// Images that match, oldest first.
    ///
    /// # Errors
    /// `invalid_argument` for a page token that is not ours.
    pub async fn list_images(&self, _filter: &ImageFilter, _page: &PageRequest) -> Result<Page<Image>> {
        Err(waiting("list"))
    }

    /// One image.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn image(&self, _id: ImageId) -> Result<Image> {
        Err(waiting("image"))
    }

    /// Changes a record: name, labels, protection.
    ///
    /// # Errors
    /// `not_found`, `invalid_name`, `name_taken`, `limit_exceeded` (labels).
    pub async fn update_image(&self, _id: ImageId, _request: UpdateImage) -> Result<Image> {
        Err(waiting("update"))
    }

    /// Deletes an image and its file. Also ends an upload.
    ///
    /// # Errors
    /// `not_found`, `conflict_dependents`, `image_protected`, `image_busy`.
    pub async fn delete_image(&self, _id: ImageId) -> Result<()> {
        Err(waiting("delete"))
    }
}
