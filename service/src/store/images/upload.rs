//! Uploads: how far they are, and what they said of the whole file.

use super::change::require_one;
use super::{Announced, FileFacts};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::{EventKind, ImageId};
use crate::store::Tx;
use crate::store::row::{Columns, stored, stored_or_null};

impl Tx {
    /// Notes how much of an upload is stored.
    ///
    /// # Errors
    /// `image_not_ready` when the image is not uploading.
    pub async fn record_upload(&mut self, id: ImageId, received: u64) -> Result<()> {
        let sql = "UPDATE images SET uploaded_bytes = $2, updated_at = $3 WHERE id = $1 AND state = 'uploading'";
        let changed = sqlx::query(sql)
            .bind(id.to_string())
            .bind(stored(received)?)
            .bind(self.now.0)
            .execute(&mut *self.inner)
            .await?;
        require_uploading(changed.rows_affected())
    }

    /// What earlier parts of an upload said of the whole file.
    pub async fn announced(&mut self, id: ImageId) -> Result<Announced> {
        let row = sqlx::query("SELECT upload_sha256, upload_total FROM images WHERE id = $1")
            .bind(id.to_string())
            .fetch_optional(&mut *self.inner)
            .await?;
        let Some(row) = row else {
            return Ok(Announced::default());
        };
        Ok(Announced {
            sha256: row.text_or_null("upload_sha256")?,
            total: row.size_or_null("upload_total")?,
        })
    }

    /// Keeps it.
    pub async fn announce(&mut self, id: ImageId, announced: &Announced) -> Result<()> {
        sqlx::query("UPDATE images SET upload_sha256 = $2, upload_total = $3 WHERE id = $1")
            .bind(id.to_string())
            .bind(announced.sha256.clone())
            .bind(stored_or_null("size", announced.total)?)
            .execute(&mut *self.inner)
            .await?;
        Ok(())
    }

    /// Ends an upload well: the file is in place.
    ///
    /// # Errors
    /// `image_not_ready` when the image is not uploading any more.
    pub async fn finish_upload(&mut self, id: ImageId, file: &str, facts: &FileFacts) -> Result<()> {
        let sql = "UPDATE images SET state = 'ready', uploaded_bytes = NULL, problem = NULL, file = $2, \
             generation = generation + 1, updated_at = $3 WHERE id = $1 AND state = 'uploading'";
        let changed = sqlx::query(sql)
            .bind(id.to_string())
            .bind(file)
            .bind(self.now.0)
            .execute(&mut *self.inner)
            .await?;
        require_uploading(changed.rows_affected())?;
        self.write_facts(id, facts).await?;
        self.image_event(EventKind::ImageUpdated, id);
        Ok(())
    }
}

fn require_uploading(rows: u64) -> Result<()> {
    require_one(rows, || {
        ServiceError::new(ErrorCode::ImageNotReady, "the image is not waiting for its file")
    })
}
