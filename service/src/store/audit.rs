//! Who asked for what change, bounded in rows.

use uuid::Uuid;

use super::row::Columns;
use super::{Store, Tx};
use crate::error::Result;
use crate::model::AuditEntry;

impl Tx {
    /// Appends an entry. One that is there already stays: a commit that failed may have been carried out all the same.
    pub async fn append_audit(&mut self, entry: &AuditEntry) -> Result<()> {
        let sql = "INSERT INTO audit (id, at, caller, role, transport, action, target, outcome, request_id) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (id) DO NOTHING";
        sqlx::query(sql)
            .bind(entry.id.to_string())
            .bind(entry.at.0)
            .bind(&entry.caller)
            .bind(entry.role.map(crate::model::Role::as_str))
            .bind(&entry.transport)
            .bind(&entry.action)
            .bind(&entry.target)
            .bind(&entry.outcome)
            .bind(&entry.request_id)
            .execute(&mut *self.inner)
            .await?;
        Ok(())
    }

    /// Forgets all but the newest `keep` entries.
    pub async fn prune_audit(&mut self, keep: u32) -> Result<()> {
        let sql = "DELETE FROM audit WHERE id <= (SELECT id FROM audit ORDER BY id DESC LIMIT 1 OFFSET $1)";
        sqlx::query(sql).bind(i64::from(keep)).execute(&mut *self.inner).await?;
        Ok(())
    }
}

impl Store {
    /// The greatest id of an entry.
    pub async fn last_audit(&self) -> Result<Option<Uuid>> {
        let row = sqlx::query("SELECT id FROM audit ORDER BY id DESC LIMIT 1")
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref().map(|row| row.id("id")).transpose()
    }

    /// Up to `limit` entries before an id, newest first.
    pub async fn list_audit(&self, before: Option<Uuid>, limit: u32) -> Result<Vec<AuditEntry>> {
        let sql = "SELECT id, at, caller, role, transport, action, target, outcome, request_id FROM audit \
             WHERE $1 = '' OR id < $1 ORDER BY id DESC LIMIT $2";
        let rows = sqlx::query(sql)
            .bind(before.map_or(String::new(), |id| id.to_string()))
            .bind(i64::from(limit))
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(entry).collect()
    }
}

fn entry(row: &sqlx::any::AnyRow) -> Result<AuditEntry> {
    Ok(AuditEntry {
        id: row.id("id")?,
        at: row.time("at")?,
        caller: row.text("caller")?,
        role: row.text_or_null("role")?.map(|role| role.parse()).transpose()?,
        transport: row.text("transport")?,
        action: row.text("action")?,
        target: row.text("target")?,
        outcome: row.text("outcome")?,
        request_id: row.text_or_null("request_id")?,
    })
}
