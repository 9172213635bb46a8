//! What others did to the file of an image: its sizes come on record with the next look. What overlays are bound to, generation and stamp,
//! does not change with that.

use super::Inner;
use super::background::blocking;
use crate::disk::look_again;
use crate::error::Result;
use crate::fault::Step;
use crate::model::{Image, ImageState};
use crate::store::images::{FileFacts, ImageRecord};

impl Inner {
    /// An image with the sizes that its file has now. They go on record; where the file cannot be looked at, those on record are told.
    pub(super) async fn as_it_is(&self, record: ImageRecord) -> Image {
        let id = record.image.id;
        let facts = match self.facts_now(&record).await {
            Ok(Some(facts)) => facts,
            Ok(None) => return record.image,
            Err(error) => {
                tracing::debug!(image = %id, %error, "what others did to an image could not be looked at");
                return record.image;
            }
        };
        let mut image = record.image.clone();
        facts.sizes_into(&mut image);
        if image != record.image
            && let Err(error) = self.note_sizes(&record, &facts).await
        {
            tracing::warn!(image = %id, %error, "the sizes of an image that others changed are not on record");
        }
        image
    }

    async fn facts_now(&self, record: &ImageRecord) -> Result<Option<FileFacts>> {
        if record.image.state != ImageState::Ready {
            return Ok(None);
        }
        let (layer, limits) = (self.without_keys(record.clone())?, self.limits.clone());
        blocking(move || look_again(&layer, &limits)).await
    }

    async fn note_sizes(&self, seen: &ImageRecord, facts: &FileFacts) -> Result<()> {
        let mut tx = self.store.begin().await?;
        tx.note_sizes(seen, facts).await?;
        tx.commit_as(Step::UpdateImage).await
    }
}
