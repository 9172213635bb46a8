//! Images: their records. Making one and deleting one, which take a file too, have files of their own.

mod create;
mod delete;

use std::time::Duration;

use super::Service;
use super::paging::Window;
use crate::error::{ErrorCode, Result, ServiceError};
use crate::fault::Step;
use crate::jobs::require_secrets;
use crate::model::{Image, ImageId, Labels, Page};
use crate::pool::check_image_name;
use crate::request::{Call, CreateImage, ImageFilter, PageRequest, UpdateImage};

impl Service {
    /// Makes an empty image, or an empty overlay on a base.
    ///
    /// # Errors
    /// `invalid_name`, `name_taken`, `not_found` (pool, base, secret), `unsupported` (format or option),
    /// `invalid_argument`, `image_not_ready` (base), `image_busy` (base), `base_changed`, `limit_exceeded`, `insufficient_storage`,
    /// `idempotency_conflict`.
    pub async fn create_image(&self, request: CreateImage, call: &Call) -> Result<Image> {
        check_image_name(&request.name)?;
        self.check_labels(&request.labels)?;
        require_secrets(&self.inner, &request.secrets).await?;
        let key = call.bind("create_image", "", &request)?;
        let inner = self.inner.clone();
        self.to_the_end(async move { create::create(&inner, request, key).await })
            .await
    }

    /// Images that match, oldest first.
    ///
    /// # Errors
    /// `invalid_argument` for a page token that is not ours.
    pub async fn list_images(&self, filter: &ImageFilter, page: &PageRequest) -> Result<Page<Image>> {
        let ImageFilter {
            pool,
            format,
            name,
            label,
            ..
        } = filter;
        for (field, text) in [("pool", pool), ("format", format), ("name", name), ("label", label)] {
            refuse_nul(field, text)?;
        }
        let window = Window::new(page, &self.inner.config.limits)?;
        let images = self.inner.store.list_images(filter, window.from, window.rows()).await?;
        Ok(window.page(images, |image| image.id))
    }

    /// One image. Its sizes are those of its file, whoever changed it, as far as it can be looked at.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn image(&self, id: ImageId) -> Result<Image> {
        let record = self.inner.store.image(id).await?;
        Ok(self.inner.as_it_is(record).await)
    }

    /// Changes a record: name, labels, protection.
    ///
    /// # Errors
    /// `not_found`, `invalid_name`, `name_taken`, `limit_exceeded` (labels).
    pub async fn update_image(&self, id: ImageId, request: UpdateImage) -> Result<Image> {
        request.name.as_deref().map_or(Ok(()), check_image_name)?;
        request
            .labels
            .as_ref()
            .map_or(Ok(()), |labels| self.check_labels(labels))?;
        refuse_nul("secrets", request.secrets.iter().flatten().map(|(role, _)| role))?;
        let mut tx = self.inner.store.begin().await?;
        tx.update_image(id, &request).await?;
        let image = tx.image(id).await?.image;
        tx.commit_as(Step::UpdateImage).await?;
        Ok(image)
    }

    /// Deletes an image and its file. Also ends an upload.
    ///
    /// # Errors
    /// `not_found`, `conflict_dependents`, `image_protected`, `image_busy`.
    pub async fn delete_image(&self, id: ImageId) -> Result<()> {
        let inner = self.inner.clone();
        self.to_the_end(async move { delete::delete(&inner, id).await }).await
    }

    pub(super) fn check_labels(&self, labels: &Labels) -> Result<()> {
        let limits = &self.inner.config.limits;
        let long = |text: &String| text.chars().count() > limits.label_chars;
        if labels.len() > limits.labels || labels.iter().any(|(key, value)| long(key) || long(value)) {
            let public = format!(
                "at most {} labels, keys and values of at most {} characters",
                limits.labels, limits.label_chars
            );
            return Err(ServiceError::new(ErrorCode::LimitExceeded, public).with_field("labels"));
        }
        refuse_nul("labels", labels.keys().chain(labels.values()))?;
        if labels.keys().any(|key| key.is_empty() || key.contains('=')) {
            return Err(ServiceError::invalid(
                "labels",
                "a label's key is not empty and has no '='",
            ));
        }
        Ok(())
    }
}

/// Refuses the character that not every database can store.
pub(super) fn refuse_nul<'a>(field: &str, texts: impl IntoIterator<Item = &'a String>) -> Result<()> {
    match texts.into_iter().any(|text| text.contains('\0')) {
        true => Err(ServiceError::invalid(field, "text has no U+0000")),
        false => Ok(()),
    }
}

/// Before each try to undo what failed: until one succeeds the name of an unfinished image is taken, or the file of one that stays is aside.
const UNDO_PAUSES: [Duration; 3] = [Duration::ZERO, Duration::from_millis(200), Duration::from_secs(2)];

/// Tries to undo what failed, with a word in the log on each try that fails too. Whether it is undone.
async fn undo<F>(image: ImageId, not_undone: &str, attempt: impl Fn() -> F) -> bool
where
    F: Future<Output = Result<()>>,
{
    for pause in UNDO_PAUSES {
        tokio::time::sleep(pause).await;
        match attempt().await {
            Ok(()) => return true,
            Err(error) => tracing::warn!(%image, %error, "{not_undone}"),
        }
    }
    false
}
