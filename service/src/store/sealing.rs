//! Which master key everything is sealed under.

use uuid::Uuid;

use super::row::Columns;
use super::secrets::SealedSecret;
use super::{Store, Tx};
use crate::error::Result;
use crate::model::{JobId, JobKind};

/// What holds sealed values.
#[derive(Clone, Copy, Debug)]
pub enum Sealed {
    /// Secrets of users.
    Secrets,
    /// Secrets that deliveries of webhooks are signed with.
    Webhooks,
}

impl Sealed {
    /// All.
    pub const ALL: [Self; 2] = [Self::Secrets, Self::Webhooks];
}

impl Tx {
    /// The master key that seals; `None` when the database does not say.
    pub async fn sealing_key(&mut self) -> Result<Option<String>> {
        let row = sqlx::query("SELECT key_id FROM sealing_key")
            .fetch_optional(&mut *self.inner)
            .await?;
        row.map(|row| row.text("key_id")).transpose()
    }

    /// Lets a master key seal from now on.
    pub async fn set_sealing_key(&mut self, key_id: &str) -> Result<()> {
        let sql = "INSERT INTO sealing_key (slot, key_id) VALUES (1, $1) ON CONFLICT (slot) DO UPDATE SET key_id = excluded.key_id";
        sqlx::query(sql).bind(key_id).execute(&mut *self.inner).await?;
        Ok(())
    }

    /// Up to `limit` values behind an id that are sealed under another key than this one.
    pub async fn sealed_otherwise(
        &mut self,
        what: Sealed,
        key_id: &str,
        after: Uuid,
        limit: u32,
    ) -> Result<Vec<(Uuid, SealedSecret)>> {
        let sql = match what {
            Sealed::Secrets => {
                "SELECT id, sealed, key_id FROM secrets WHERE key_id <> $1 AND id > $2 ORDER BY id LIMIT $3"
            }
            Sealed::Webhooks => {
                "SELECT id, sealed, key_id FROM webhooks WHERE key_id <> $1 AND id > $2 ORDER BY id LIMIT $3"
            }
        };
        let rows = sqlx::query(sql)
            .bind(key_id)
            .bind(after.to_string())
            .bind(i64::from(limit))
            .fetch_all(&mut *self.inner)
            .await?;
        rows.iter()
            .map(|row| {
                let sealed = SealedSecret {
                    sealed: row.text("sealed")?,
                    key_id: row.text("key_id")?,
                };
                Ok((row.id("id")?, sealed))
            })
            .collect()
    }

    /// Replaces a sealed value.
    pub async fn reseal(&mut self, what: Sealed, id: Uuid, value: &SealedSecret) -> Result<()> {
        let sql = match what {
            Sealed::Secrets => "UPDATE secrets SET sealed = $2, key_id = $3 WHERE id = $1",
            Sealed::Webhooks => "UPDATE webhooks SET sealed = $2, key_id = $3 WHERE id = $1",
        };
        sqlx::query(sql)
            .bind(id.to_string())
            .bind(&value.sealed)
            .bind(&value.key_id)
            .execute(&mut *self.inner)
            .await?;
        Ok(())
    }

    /// A job of a kind that has not ended.
    pub async fn open_job_of(&mut self, kind: JobKind) -> Result<Option<JobId>> {
        let sql = "SELECT id FROM jobs WHERE kind = $1 AND state IN ('queued', 'running') LIMIT 1";
        let row = sqlx::query(sql)
            .bind(kind.as_str())
            .fetch_optional(&mut *self.inner)
            .await?;
        row.map(|row| row.id("id")).transpose()
    }
}

impl Store {
    /// The master keys that something is sealed under, and the one that seals.
    pub async fn master_keys(&self) -> Result<Vec<String>> {
        let sql = "SELECT key_id FROM secrets UNION SELECT key_id FROM webhooks UNION SELECT key_id FROM sealing_key";
        let rows = sqlx::query(sql).fetch_all(&self.readers).await?;
        rows.iter().map(|row| row.text("key_id")).collect()
    }
}
