//! Sealed secrets. What is stored here cannot be read without the master key.

use uuid::Uuid;

use super::row::Columns;
use super::{Store, Tx, is_duplicate};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::{Secret, SecretId};

/// A secret's sealed value and the key that sealed it.
#[derive(Clone)]
pub struct SealedSecret {
    /// Base64 of nonce and ciphertext.
    pub sealed: String,
    /// Which master key.
    pub key_id: String,
}

impl Tx {
    /// Stores a sealed secret.
    ///
    /// # Errors
    /// `name_taken`.
    pub async fn insert_secret(&mut self, id: SecretId, name: &str, value: &SealedSecret) -> Result<Secret> {
        let sql = "INSERT INTO secrets (id, name, sealed, key_id, created_at) VALUES ($1, $2, $3, $4, $5)";
        let inserted = sqlx::query(sql)
            .bind(id.to_string())
            .bind(name)
            .bind(&value.sealed)
            .bind(&value.key_id)
            .bind(self.now.0)
            .execute(&mut *self.inner)
            .await;
        match inserted {
            Ok(_) => Ok(Secret {
                id,
                name: name.to_owned(),
                created_at: self.now,
            }),
            Err(error) if is_duplicate(&error) => {
                let public = format!("there is a secret named '{name}' already");
                Err(ServiceError::new(ErrorCode::NameTaken, public).with_field("name"))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// # Errors
    /// `not_found`.
    pub(super) async fn require_secret(&mut self, id: SecretId) -> Result<()> {
        let sql = "SELECT id FROM secrets WHERE id = $1";
        let row = sqlx::query(sql)
            .bind(id.to_string())
            .fetch_optional(&mut *self.inner)
            .await?;
        row.map(drop)
            .ok_or_else(|| ServiceError::not_found("secret", id).with_field("secrets"))
    }

    /// Deletes a secret.
    ///
    /// # Errors
    /// `not_found`; `secret_in_use` with the images that it opens, and while jobs that have not ended name it.
    pub async fn delete_secret(&mut self, id: SecretId) -> Result<()> {
        let sql = "SELECT DISTINCT image_id FROM image_secrets WHERE secret_id = $1 ORDER BY image_id";
        let rows = sqlx::query(sql)
            .bind(id.to_string())
            .fetch_all(&mut *self.inner)
            .await?;
        let images: Vec<Uuid> = rows.iter().map(|row| row.id("image_id")).collect::<Result<_>>()?;
        if !images.is_empty() {
            let public = format!(
                "{} image(s) are opened with secret {id}; give them another first",
                images.len()
            );
            return Err(ServiceError::new(ErrorCode::SecretInUse, public).with_dependents(images));
        }
        self.refuse_named_by_jobs(id).await?;
        let sql = "DELETE FROM secrets WHERE id = $1";
        match sqlx::query(sql)
            .bind(id.to_string())
            .execute(&mut *self.inner)
            .await?
            .rows_affected()
        {
            0 => Err(ServiceError::not_found("secret", id)),
            _ => Ok(()),
        }
    }
}

impl Tx {
    /// A job may be half way between two secrets. Ids are unlike any other text in what a job was given.
    async fn refuse_named_by_jobs(&mut self, id: SecretId) -> Result<()> {
        let sql = "SELECT id FROM jobs WHERE state IN ('queued', 'running') AND payload LIKE $1 ORDER BY id LIMIT 1";
        let row = sqlx::query(sql)
            .bind(format!("%{id}%"))
            .fetch_optional(&mut *self.inner)
            .await?;
        match row {
            None => Ok(()),
            Some(row) => {
                let public = format!(
                    "job {} needs secret {id}; wait for its end or cancel it",
                    row.text("id")?
                );
                Err(ServiceError::new(ErrorCode::SecretInUse, public))
            }
        }
    }
}

impl Store {
    /// One secret's record.
    pub async fn secret(&self, id: SecretId) -> Result<Secret> {
        let sql = "SELECT id, name, created_at FROM secrets WHERE id = $1";
        let row = sqlx::query(sql)
            .bind(id.to_string())
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref()
            .map(secret)
            .transpose()?
            .ok_or_else(|| ServiceError::not_found("secret", id))
    }

    /// One secret's sealed value.
    pub async fn sealed_secret(&self, id: SecretId) -> Result<SealedSecret> {
        let sql = "SELECT sealed, key_id FROM secrets WHERE id = $1";
        let row = sqlx::query(sql)
            .bind(id.to_string())
            .fetch_optional(&self.readers)
            .await?;
        let row = row.ok_or_else(|| ServiceError::not_found("secret", id))?;
        Ok(SealedSecret {
            sealed: row.text("sealed")?,
            key_id: row.text("key_id")?,
        })
    }

    /// Up to `limit` secrets behind an id, oldest first.
    pub async fn list_secrets(&self, after: Option<Uuid>, limit: u32) -> Result<Vec<Secret>> {
        let sql = "SELECT id, name, created_at FROM secrets WHERE id > $1 ORDER BY id LIMIT $2";
        let after = after.map_or(String::new(), |id| id.to_string());
        let rows = sqlx::query(sql)
            .bind(after)
            .bind(i64::from(limit))
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(secret).collect()
    }
}

fn secret(row: &sqlx::any::AnyRow) -> Result<Secret> {
    Ok(Secret {
        id: row.id("id")?,
        name: row.text("name")?,
        created_at: row.time("created_at")?,
    })
}
