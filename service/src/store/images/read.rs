use std::collections::BTreeMap;

use sqlx::{Any, Executor};
use uuid::Uuid;

use super::{ImageRecord, record, select_images};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::{Image, ImageId, ImageState, JobId};
use crate::request::ImageFilter;
use crate::store::row::Columns;
use crate::store::{Store, Tx};

/// Sum over a pool's images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolUse {
    /// Images.
    pub images: u64,
    /// Their bytes on disk.
    pub allocated: u64,
}

const TO_CHANGE: &str = select_images!(
    "WHERE i.file_stamp IS NULL AND i.reserved_by IS NULL AND i.id IN \
     (SELECT l.image_id FROM image_locks l WHERE l.holder = $1 AND l.mode = 'exclusive') ORDER BY i.id"
);

const ABANDONED: &str = select_images!(
    "WHERE i.file_stamp IS NULL AND i.reserved_by IS NULL AND i.state IN ('ready', 'missing') AND NOT EXISTS \
     (SELECT 1 FROM image_locks l WHERE l.image_id = i.id AND l.mode = 'exclusive') ORDER BY i.id"
);

impl Store {
    /// One visible record.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn image(&self, id: ImageId) -> Result<ImageRecord> {
        visible(find(&self.readers, id).await?, id)
    }

    /// Up to `limit` visible images behind an id, oldest first.
    pub async fn list_images(&self, filter: &ImageFilter, after: Option<Uuid>, limit: u32) -> Result<Vec<Image>> {
        let sql = select_images!(
            "WHERE i.state <> 'reserved' AND i.id > $1 AND ($2 = '' OR i.pool = $2) AND ($3 = '' OR i.format = $3) \
             AND ($4 = '' OR i.name = $4) AND ($5 = '' OR i.backing_id = $5) AND ($6 = '' OR EXISTS (SELECT 1 FROM \
             image_labels a WHERE a.image_id = i.id AND a.key = $6 AND ($7 = 0 OR a.value = $8))) AND ($9 = '' OR $9 = \
             CASE WHEN i.state = 'ready' AND EXISTS (SELECT 1 FROM image_locks l WHERE l.image_id = i.id AND \
             l.mode = 'exclusive') THEN 'busy' ELSE i.state END) ORDER BY i.id LIMIT $10"
        );
        let (key, value) = match filter.label.as_deref().unwrap_or_default().split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (filter.label.as_deref().unwrap_or_default(), None),
        };
        let rows = sqlx::query(sql)
            .bind(after.map_or(String::new(), |id| id.to_string()))
            .bind(filter.pool.as_deref().unwrap_or_default())
            .bind(filter.format.as_deref().unwrap_or_default())
            .bind(filter.name.as_deref().unwrap_or_default())
            .bind(filter.backing.map_or(String::new(), |id| id.to_string()))
            .bind(key)
            .bind(i64::from(value.is_some()))
            .bind(value.unwrap_or_default())
            .bind(filter.state.map_or("", ImageState::as_str))
            .bind(i64::from(limit))
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(|row| Ok(record(row)?.image)).collect()
    }

    /// The chain of records from an image down, the image first.
    ///
    /// # Errors
    /// `not_found`; `limit_exceeded` when it is deeper than `depth`.
    pub async fn chain(&self, id: ImageId, depth: usize) -> Result<Vec<ImageRecord>> {
        let mut chain = vec![self.image(id).await?];
        while let Some(base) = chain.last().and_then(|layer| layer.image.backing_id) {
            if chain.len() >= depth {
                return Err(too_deep(depth));
            }
            let layer = find(&self.readers, base).await?;
            chain.push(layer.ok_or_else(|| ServiceError::internal(format!("image {base} is a base without a row")))?);
        }
        Ok(chain)
    }

    /// Sums by pool.
    pub async fn pool_use(&self) -> Result<BTreeMap<String, PoolUse>> {
        let sql = "SELECT pool, COUNT(*) AS images, CAST(SUM(allocated_size) AS BIGINT) AS allocated FROM images \
             WHERE state <> 'reserved' GROUP BY pool";
        let rows = sqlx::query(sql).fetch_all(&self.readers).await?;
        let sum = |row: &sqlx::any::AnyRow| {
            let sum = PoolUse {
                images: row.size("images")?,
                allocated: row.size("allocated")?,
            };
            Ok((row.text("pool")?, sum))
        };
        rows.iter().map(sum).collect()
    }

    /// The records that a job names or has reserved.
    pub async fn job_records(&self, job: JobId) -> Result<Vec<ImageRecord>> {
        let sql = select_images!(
            "WHERE i.reserved_by = $1 OR i.id IN (SELECT m.image_id FROM job_images m WHERE m.job_id = $1) ORDER BY i.id"
        );
        self.records(sql, &job.to_string()).await
    }

    async fn records(&self, sql: &'static str, key: &str) -> Result<Vec<ImageRecord>> {
        let rows = sqlx::query(sql).bind(key).fetch_all(&self.readers).await?;
        rows.iter().map(record).collect()
    }

    /// The names of the pools that images are recorded in.
    pub async fn pools_on_record(&self) -> Result<Vec<String>> {
        let rows = sqlx::query("SELECT DISTINCT pool FROM images ORDER BY pool")
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(|row| row.text("pool")).collect()
    }

    /// The records of images that a job or a request has begun to change.
    pub async fn records_to_change(&self, holder: Uuid) -> Result<Vec<ImageRecord>> {
        self.records(TO_CHANGE, &holder.to_string()).await
    }

    /// The records of images that somebody began to change who holds them no more, and has not said what came of it.
    pub async fn abandoned_changes(&self) -> Result<Vec<ImageRecord>> {
        let rows = sqlx::query(ABANDONED).fetch_all(&self.readers).await?;
        rows.iter().map(record).collect()
    }

    /// Every record of a pool, the reserved ones too.
    pub async fn pool_records(&self, pool: &str) -> Result<Vec<ImageRecord>> {
        let sql = select_images!("WHERE i.pool = $1 ORDER BY i.id");
        self.records(sql, pool).await
    }
}

impl Tx {
    /// One visible record, as this transaction sees it.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn image(&mut self, id: ImageId) -> Result<ImageRecord> {
        visible(find(&mut *self.inner, id).await?, id)
    }

    /// One record, visible or not.
    pub async fn any_image(&mut self, id: ImageId) -> Result<Option<ImageRecord>> {
        find(&mut *self.inner, id).await
    }

    /// As [`Store::records_to_change`].
    pub async fn records_to_change(&mut self, job: JobId) -> Result<Vec<ImageRecord>> {
        let rows = sqlx::query(TO_CHANGE)
            .bind(job.to_string())
            .fetch_all(&mut *self.inner)
            .await?;
        rows.iter().map(record).collect()
    }

    /// The record of a pool's file, visible or not.
    pub async fn image_of_file(&mut self, pool: &str, file: &str) -> Result<Option<ImageRecord>> {
        let sql = select_images!("WHERE i.pool = $1 AND i.file = $2");
        let row = sqlx::query(sql)
            .bind(pool)
            .bind(file)
            .fetch_optional(&mut *self.inner)
            .await?;
        row.as_ref().map(record).transpose()
    }

    /// How many overlays stand on each other above an image, where they are most.
    pub async fn height(&mut self, id: ImageId) -> Result<usize> {
        let sql = "WITH RECURSIVE above (id, height) AS (SELECT id, 1 FROM images WHERE backing_id = $1 UNION ALL \
             SELECT i.id, a.height + 1 FROM images i JOIN above a ON i.backing_id = a.id) \
             SELECT CAST(COALESCE(MAX(height), 0) AS BIGINT) AS height FROM above";
        let row = sqlx::query(sql)
            .bind(id.to_string())
            .fetch_one(&mut *self.inner)
            .await?;
        Ok(usize::try_from(row.number("height")?).unwrap_or(usize::MAX))
    }

    /// The chain of records from an image down, as this transaction sees it.
    ///
    /// # Errors
    /// As [`Store::chain`].
    pub async fn chain(&mut self, id: ImageId, depth: usize) -> Result<Vec<ImageRecord>> {
        let mut chain = vec![self.image(id).await?];
        while let Some(base) = chain.last().and_then(|layer| layer.image.backing_id) {
            if chain.len() >= depth {
                return Err(too_deep(depth));
            }
            let layer = self.any_image(base).await?;
            chain.push(layer.ok_or_else(|| ServiceError::internal(format!("image {base} is a base without a row")))?);
        }
        Ok(chain)
    }

    /// Ids of the overlays directly on an image, reserved ones included.
    pub async fn dependents(&mut self, id: ImageId) -> Result<Vec<ImageId>> {
        let sql = "SELECT id FROM images WHERE backing_id = $1 ORDER BY id";
        let rows = sqlx::query(sql)
            .bind(id.to_string())
            .fetch_all(&mut *self.inner)
            .await?;
        rows.iter().map(|row| row.id("id")).collect()
    }
}

async fn find(executor: impl Executor<'_, Database = Any>, id: ImageId) -> Result<Option<ImageRecord>> {
    let sql = select_images!("WHERE i.id = $1");
    let row = sqlx::query(sql).bind(id.to_string()).fetch_optional(executor).await?;
    row.as_ref().map(record).transpose()
}

fn visible(found: Option<ImageRecord>, id: ImageId) -> Result<ImageRecord> {
    found
        .filter(|record| record.reserved_by.is_none())
        .ok_or_else(|| ServiceError::not_found("image", id))
}

fn too_deep(depth: usize) -> ServiceError {
    let public = format!("the backing chain has more than {depth} layers; flatten or commit some first");
    ServiceError::new(ErrorCode::LimitExceeded, public)
}
