use uuid::Uuid;

use super::{Backing, FileFacts, ImageRecord, NewImage, Origin};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::{EventKind, ImageId, ImageState, Labels, SecretId};
use crate::request::{SecretRefs, UpdateImage};
use crate::store::idempotency::Outcome;
use crate::store::row::{Columns, json_text, stored};
use crate::store::{Tx, is_duplicate};

impl Tx {
    /// Adds a row for an image to come.
    ///
    /// # Errors
    /// `name_taken`.
    pub async fn insert_image(&mut self, new: &NewImage) -> Result<()> {
        self.require_free_name(&new.pool, &new.name).await?;
        let (state, reserved_by, uploaded) = match new.origin {
            Origin::ReservedBy(holder) => ("reserved", Some(holder.to_string()), None),
            Origin::Upload => ("uploading", None, Some(0_i64)),
        };
        let sql = "INSERT INTO images (id, name, pool, file, format, state, virtual_size, allocated_size, file_size, \
             backing_id, backing_generation, backing_name, generation, labels, protected, encrypted, uploaded_bytes, \
             reserved_by, created_at, updated_at) \
             VALUES ($1, $2, $3, $4, $5, $6, 0, 0, 0, $7, $8, $9, 0, $10, 0, 0, $11, $12, $13, $13)";
        let inserted = sqlx::query(sql)
            .bind(new.id.to_string())
            .bind(&new.name)
            .bind(&new.pool)
            .bind(&new.file)
            .bind(&new.format)
            .bind(state)
            .bind(new.backing.as_ref().map(|backing| backing.id.to_string()))
            .bind(
                new.backing
                    .as_ref()
                    .map(|backing| stored(backing.generation))
                    .transpose()?,
            )
            .bind(new.backing.as_ref().map(|backing| backing.name.clone()))
            .bind(json_text(&new.labels)?)
            .bind(uploaded)
            .bind(reserved_by)
            .bind(self.now.0)
            .execute(&mut *self.inner)
            .await;
        match inserted {
            Ok(_) => {
                self.insert_labels(new.id, &new.labels).await?;
                if !new.secrets.is_empty() {
                    self.write_roles(new.id, &new.secrets).await?;
                }
            }
            Err(error) if is_duplicate(&error) => return Err(file_taken()),
            Err(error) => return Err(error.into()),
        }
        match new.origin {
            Origin::Upload => self.image_event(EventKind::ImageCreated, new.id),
            Origin::ReservedBy(_) => {}
        }
        Ok(())
    }

    /// Whether a pool has an image of that name, shown or reserved.
    pub async fn is_name_taken(&mut self, pool: &str, name: &str) -> Result<bool> {
        let sql = "SELECT COUNT(*) AS taken FROM images WHERE pool = $1 AND name = $2";
        let row = sqlx::query(sql)
            .bind(pool)
            .bind(name)
            .fetch_one(&mut *self.inner)
            .await?;
        Ok(row.number("taken")? > 0)
    }

    /// Fails where the file belongs to an image, shown or reserved.
    ///
    /// # Errors
    /// `name_taken`.
    pub async fn require_free_file(&mut self, pool: &str, file: &str) -> Result<()> {
        match self.image_of_file(pool, file).await? {
            Some(_) => Err(file_taken()),
            None => Ok(()),
        }
    }

    async fn require_free_name(&mut self, pool: &str, name: &str) -> Result<()> {
        if self.is_name_taken(pool, name).await? {
            let public = format!("pool '{pool}' has an image named '{name}' already");
            return Err(ServiceError::new(ErrorCode::NameTaken, public).with_field("name"));
        }
        Ok(())
    }

    async fn write_labels(&mut self, id: ImageId, labels: &Labels) -> Result<()> {
        let clear = "DELETE FROM image_labels WHERE image_id = $1";
        sqlx::query(clear)
            .bind(id.to_string())
            .execute(&mut *self.inner)
            .await?;
        self.insert_labels(id, labels).await
    }

    async fn insert_labels(&mut self, id: ImageId, labels: &Labels) -> Result<()> {
        for (key, value) in labels {
            sqlx::query("INSERT INTO image_labels (image_id, key, value) VALUES ($1, $2, $3)")
                .bind(id.to_string())
                .bind(key)
                .bind(value)
                .execute(&mut *self.inner)
                .await?;
        }
        Ok(())
    }

    /// Names the secrets that open an image.
    ///
    /// # Errors
    /// `not_found` when there is no such secret.
    async fn write_roles(&mut self, id: ImageId, secrets: &SecretRefs) -> Result<()> {
        let clear = "DELETE FROM image_secrets WHERE image_id = $1";
        sqlx::query(clear)
            .bind(id.to_string())
            .execute(&mut *self.inner)
            .await?;
        for (role, secret) in secrets {
            self.require_secret(*secret).await?;
            sqlx::query("INSERT INTO image_secrets (image_id, role, secret_id) VALUES ($1, $2, $3)")
                .bind(id.to_string())
                .bind(role)
                .bind(secret.to_string())
                .execute(&mut *self.inner)
                .await?;
        }
        sqlx::query("UPDATE images SET secrets = $2 WHERE id = $1")
            .bind(id.to_string())
            .bind(json_text(secrets)?)
            .execute(&mut *self.inner)
            .await?;
        Ok(())
    }

    /// Puts another secret in the place of one, in the role that an image names it in; an image that names another one is left alone.
    ///
    /// # Errors
    /// `not_found` when the new secret does not exist.
    pub async fn replace_role(&mut self, id: ImageId, role: &str, old: SecretId, new: SecretId) -> Result<()> {
        let mut secrets = self.image(id).await?.image.secrets;
        match secrets.get_mut(role) {
            Some(named) if *named == old => *named = new,
            _ => return self.require_secret(new).await,
        }
        self.write_roles(id, &secrets).await?;
        self.image_event(EventKind::ImageUpdated, id);
        Ok(())
    }

    /// Shows a reserved image to the world: its file is in place under `file`.
    ///
    /// # Errors
    /// `lease_lost` when the row is not `holder`'s any more.
    pub async fn publish_image(&mut self, id: ImageId, holder: Uuid, file: &str, facts: &FileFacts) -> Result<()> {
        let sql = "UPDATE images SET state = 'ready', reserved_by = NULL, file = $3, generation = 1, updated_at = $4 \
             WHERE id = $1 AND state = 'reserved' AND reserved_by = $2";
        let changed = sqlx::query(sql)
            .bind(id.to_string())
            .bind(holder.to_string())
            .bind(file)
            .bind(self.now.0)
            .execute(&mut *self.inner)
            .await?;
        if changed.rows_affected() != 1 {
            let public = "the image is not reserved for this work any more";
            return Err(ServiceError::new(ErrorCode::LeaseLost, public));
        }
        self.write_facts(id, facts).await?;
        self.image_event(EventKind::ImageCreated, id);
        Ok(())
    }

    /// Records what the file of an image is like after a change, `new_content` when the guest sees other bytes. Where it does not, and
    /// nobody of ours has begun to change the file, it stays on record as it was left: a change is one by others.
    pub async fn record_change(&mut self, id: ImageId, facts: &FileFacts, new_content: bool) -> Result<()> {
        let left = self.any_image(id).await?.and_then(|record| record.file_stamp);
        match left.filter(|_| !new_content) {
            Some(stamp) => self.write_facts(id, &FileFacts { stamp, ..facts.clone() }).await?,
            None => self.write_facts(id, facts).await?,
        }
        let sql = "UPDATE images SET generation = generation + $2, updated_at = $3 WHERE id = $1";
        sqlx::query(sql)
            .bind(id.to_string())
            .bind(i64::from(new_content))
            .bind(self.now.0)
            .execute(&mut *self.inner)
            .await?;
        self.image_event(EventKind::ImageUpdated, id);
        Ok(())
    }

    pub(super) async fn write_facts(&mut self, id: ImageId, facts: &FileFacts) -> Result<()> {
        let sql = "UPDATE images SET format = $2, virtual_size = $3, allocated_size = $4, file_size = $5, \
             encrypted = $6, file_stamp = $7, stamp_before = NULL WHERE id = $1";
        let changed = sqlx::query(sql)
            .bind(id.to_string())
            .bind(&facts.format)
            .bind(stored(facts.virtual_size)?)
            .bind(stored(facts.allocated_size)?)
            .bind(stored(facts.file_size)?)
            .bind(i64::from(facts.encrypted))
            .bind(&facts.stamp)
            .execute(&mut *self.inner)
            .await?;
        if changed.rows_affected() != 1 {
            return Err(ServiceError::internal(format!(
                "image {id} has no row to write facts to"
            )));
        }
        Ok(())
    }

    /// Records the sizes of a file that others changed, unless the record is another by now than the one that was looked at: then somebody
    /// of ours is changing the image, or has.
    pub async fn note_sizes(&mut self, seen: &ImageRecord, facts: &FileFacts) -> Result<()> {
        let id = seen.image.id;
        if self.any_image(id).await?.as_ref() != Some(seen) {
            return Ok(());
        }
        let sql =
            "UPDATE images SET virtual_size = $2, allocated_size = $3, file_size = $4, updated_at = $5 WHERE id = $1";
        sqlx::query(sql)
            .bind(id.to_string())
            .bind(stored(facts.virtual_size)?)
            .bind(stored(facts.allocated_size)?)
            .bind(stored(facts.file_size)?)
            .bind(self.now.0)
            .execute(&mut *self.inner)
            .await?;
        self.image_event(EventKind::ImageUpdated, id);
        Ok(())
    }

    /// The file of an image is about to change: what it looks like is open until that is recorded.
    pub async fn open_change(&mut self, id: ImageId) -> Result<()> {
        let sql = "UPDATE images SET stamp_before = file_stamp, file_stamp = NULL \
             WHERE id = $1 AND file_stamp IS NOT NULL";
        sqlx::query(sql).bind(id.to_string()).execute(&mut *self.inner).await?;
        self.overtake(id).await
    }

    /// Ends a change that came to nothing, or to a part: the file is what was found. Where that is not known it is on record as it was
    /// before, so that whatever else it is counts as a change by others.
    pub async fn close_change(&mut self, id: ImageId, found: Option<&FileFacts>) -> Result<()> {
        if let Some(facts) = found {
            return self.record_change(id, facts, false).await;
        }
        // No file has an empty stamp.
        let sql = "UPDATE images SET file_stamp = COALESCE(stamp_before, ''), stamp_before = NULL \
             WHERE id = $1 AND file_stamp IS NULL";
        sqlx::query(sql).bind(id.to_string()).execute(&mut *self.inner).await?;
        Ok(())
    }

    /// Replaces the edge to the base.
    pub async fn set_backing(&mut self, id: ImageId, backing: Option<&Backing>) -> Result<()> {
        let sql = "UPDATE images SET backing_id = $2, backing_generation = $3, backing_name = $4 WHERE id = $1";
        sqlx::query(sql)
            .bind(id.to_string())
            .bind(backing.map(|backing| backing.id.to_string()))
            .bind(backing.map(|backing| stored(backing.generation)).transpose()?)
            .bind(backing.map(|backing| backing.name.clone()))
            .execute(&mut *self.inner)
            .await?;
        Ok(())
    }

    /// Notes that the guest of an image is to see other bytes.
    pub async fn raise_generation(&mut self, id: ImageId) -> Result<()> {
        let sql = "UPDATE images SET generation = generation + 1, updated_at = $2 WHERE id = $1";
        sqlx::query(sql)
            .bind(id.to_string())
            .bind(self.now.0)
            .execute(&mut *self.inner)
            .await?;
        self.image_event(EventKind::ImageUpdated, id);
        Ok(())
    }

    /// Binds all overlays of a base to its present generation: their content did not change with it.
    pub async fn rebind_overlays(&mut self, base: ImageId) -> Result<()> {
        let sql = "UPDATE images SET backing_generation = (SELECT b.generation FROM images b WHERE b.id = $1) \
             WHERE backing_id = $1";
        sqlx::query(sql)
            .bind(base.to_string())
            .execute(&mut *self.inner)
            .await?;
        Ok(())
    }

    /// Puts an image in a state with a reason, or back to `ready` with none.
    pub async fn set_image_state(&mut self, id: ImageId, state: ImageState, problem: Option<&str>) -> Result<()> {
        let sql = "UPDATE images SET state = $2, problem = $3, updated_at = $4 WHERE id = $1";
        sqlx::query(sql)
            .bind(id.to_string())
            .bind(state.as_str())
            .bind(problem)
            .bind(self.now.0)
            .execute(&mut *self.inner)
            .await?;
        self.image_event(EventKind::ImageUpdated, id);
        Ok(())
    }

    /// Changes what a client may change; where nothing differs, nothing is written and nobody is told. The name was checked by the caller.
    ///
    /// # Errors
    /// `not_found`, `name_taken`.
    pub async fn update_image(&mut self, id: ImageId, update: &UpdateImage) -> Result<()> {
        let record = self.image(id).await?;
        let name = update.name.as_ref().filter(|name| **name != record.image.name);
        if let Some(name) = name {
            self.require_free_name(&record.image.pool, name).await?;
        }
        let labels = update.labels.as_ref().unwrap_or(&record.image.labels);
        let protected = update.protected.unwrap_or(record.image.protected);
        if name.is_none()
            && *labels == record.image.labels
            && protected == record.image.protected
            && update.secrets.is_none()
        {
            return Ok(());
        }
        let sql = "UPDATE images SET name = $2, labels = $3, protected = $4, updated_at = $5 WHERE id = $1";
        sqlx::query(sql)
            .bind(id.to_string())
            .bind(name.unwrap_or(&record.image.name))
            .bind(json_text(labels)?)
            .bind(i64::from(protected))
            .bind(self.now.0)
            .execute(&mut *self.inner)
            .await?;
        self.write_labels(id, labels).await?;
        if let Some(secrets) = &update.secrets {
            self.write_roles(id, secrets).await?;
        }
        self.image_event(EventKind::ImageUpdated, id);
        Ok(())
    }

    /// Refuses what must not be changed or deleted.
    ///
    /// # Errors
    /// `image_protected`; `conflict_dependents` with the overlays other than those in `except`.
    pub async fn require_free_of_dependents(&mut self, id: ImageId, except: &[ImageId]) -> Result<()> {
        let mut dependents = self.dependents(id).await?;
        dependents.retain(|dependent| !except.contains(dependent));
        if dependents.is_empty() {
            return Ok(());
        }
        let count = dependents.len();
        let public = format!("{count} image(s) are built on image {id}; rebase, flatten or delete them first");
        Err(ServiceError::new(ErrorCode::ConflictDependents, public).with_dependents(dependents))
    }

    /// Removes the row of an image without dependents.
    ///
    /// # Errors
    /// `not_found`, `conflict_dependents`.
    pub async fn delete_image(&mut self, id: ImageId) -> Result<()> {
        self.image(id).await?;
        self.require_free_of_dependents(id, &[]).await?;
        self.tell_deletion(id).await?;
        sqlx::query("DELETE FROM images WHERE id = $1")
            .bind(id.to_string())
            .execute(&mut *self.inner)
            .await?;
        Ok(())
    }

    /// Removes the rows that were reserved for work that came to nothing. The keys of requests that they stood for can be used again.
    pub async fn delete_reserved(&mut self, holder: Uuid) -> Result<()> {
        let sql = "DELETE FROM images WHERE state = 'reserved' AND reserved_by = $1 RETURNING id";
        let deleted = sqlx::query(sql)
            .bind(holder.to_string())
            .fetch_all(&mut *self.inner)
            .await?;
        for row in deleted {
            self.forget_outcome(Outcome::Image(row.id("id")?)).await?;
        }
        Ok(())
    }
}

pub(super) fn require_one(rows: u64, otherwise: impl FnOnce() -> ServiceError) -> Result<()> {
    if rows == 1 { Ok(()) } else { Err(otherwise()) }
}

fn file_taken() -> ServiceError {
    ServiceError::new(ErrorCode::NameTaken, "the file is in the inventory already")
}
