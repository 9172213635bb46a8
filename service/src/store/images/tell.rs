//! What who follows the events is told of images: what is on record when the transaction ends, locks that it lets go of included. So the last
//! event of an image says what a look at it says.

use serde_json::Value;
use sqlx::any::AnyRow;

use super::event_data;
use crate::error::Result;
use crate::model::{EventKind, ImageId, ImageState};
use crate::store::Tx;
use crate::store::row::Columns;

impl Tx {
    /// Will tell of an image, once in a transaction.
    pub(super) fn image_event(&mut self, kind: EventKind, id: ImageId) {
        if !self.untold.iter().any(|(_, image)| *image == id) {
            self.untold.push((kind, id));
        }
    }

    /// Tells now of an image that is about to go.
    pub(super) async fn tell_deletion(&mut self, id: ImageId) -> Result<()> {
        self.tell(EventKind::ImageDeleted, id).await
    }

    /// Tells of the images that changed and are still there.
    pub(in crate::store) async fn tell_images(&mut self) -> Result<()> {
        for (kind, id) in std::mem::take(&mut self.untold) {
            self.tell(kind, id).await?;
        }
        Ok(())
    }

    /// Tells of the images that changed, and of those that were said to be busy and are not any more without these locks.
    pub(in crate::store) async fn tell_freed(&mut self, locks: &[AnyRow]) -> Result<()> {
        for lock in locks {
            let id = lock.id("image_id")?;
            if lock.text("mode")? == "exclusive" && self.is_said_to_be_busy(id).await? {
                self.image_event(EventKind::ImageUpdated, id);
            }
        }
        self.tell_images().await
    }

    async fn is_said_to_be_busy(&mut self, id: ImageId) -> Result<bool> {
        let row = sqlx::query("SELECT data FROM events WHERE image_id = $1 ORDER BY seq DESC LIMIT 1")
            .bind(id.to_string())
            .fetch_optional(&mut *self.inner)
            .await?;
        let Some(row) = row else { return Ok(false) };
        let data: Value = row.json("data")?;
        Ok(data.get("state").and_then(Value::as_str) == Some(ImageState::Busy.as_str()))
    }

    async fn tell(&mut self, kind: EventKind, id: ImageId) -> Result<()> {
        let Some(record) = self.any_image(id).await? else {
            return Ok(());
        };
        self.append_event(kind, None, Some(id), &event_data(&record.image))
            .await
            .map(drop)
    }
}
