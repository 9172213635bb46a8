//! Bearer tokens, by their hashes.

use uuid::Uuid;

use super::row::Columns;
use super::{Store, Tx, is_duplicate};
use crate::clock::Timestamp;
use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::{Role, Token, TokenId};

impl Tx {
    /// Stores a token under its hash.
    ///
    /// # Errors
    /// `name_taken`.
    pub async fn insert_token(
        &mut self,
        id: TokenId,
        name: &str,
        role: Role,
        hash: &str,
        expires_at: Option<Timestamp>,
    ) -> Result<Token> {
        let sql = "INSERT INTO tokens (id, name, role, hash, created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6)";
        let inserted = sqlx::query(sql)
            .bind(id.to_string())
            .bind(name)
            .bind(role.as_str())
            .bind(hash)
            .bind(self.now.0)
            .bind(expires_at.map(|at| at.0))
            .execute(&mut *self.inner)
            .await;
        match inserted {
            Ok(_) => Ok(Token {
                id,
                name: name.to_owned(),
                role,
                created_at: self.now,
                expires_at,
            }),
            Err(error) if is_duplicate(&error) => {
                let public = format!("there is a token named '{name}' already");
                Err(ServiceError::new(ErrorCode::NameTaken, public).with_field("name"))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a token count no more.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn delete_token(&mut self, id: TokenId) -> Result<()> {
        let deleted = sqlx::query("DELETE FROM tokens WHERE id = $1")
            .bind(id.to_string())
            .execute(&mut *self.inner)
            .await?;
        match deleted.rows_affected() {
            0 => Err(ServiceError::not_found("token", id)),
            _ => Ok(()),
        }
    }
}

impl Store {
    /// The token with this hash and the hash on record, whether it has expired or not.
    pub async fn token_by_hash(&self, hash: &str) -> Result<Option<(Token, String)>> {
        let sql = "SELECT id, name, role, hash, created_at, expires_at FROM tokens WHERE hash = $1";
        let row = sqlx::query(sql).bind(hash).fetch_optional(&self.readers).await?;
        row.map(|row| Ok((token(&row)?, row.text("hash")?))).transpose()
    }

    /// One token's record.
    pub async fn token(&self, id: TokenId) -> Result<Token> {
        let sql = "SELECT id, name, role, created_at, expires_at FROM tokens WHERE id = $1";
        let row = sqlx::query(sql)
            .bind(id.to_string())
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref()
            .map(token)
            .transpose()?
            .ok_or_else(|| ServiceError::not_found("token", id))
    }

    /// Up to `limit` tokens behind an id, oldest first.
    pub async fn list_tokens(&self, after: Option<Uuid>, limit: u32) -> Result<Vec<Token>> {
        let sql = "SELECT id, name, role, created_at, expires_at FROM tokens WHERE id > $1 ORDER BY id LIMIT $2";
        let rows = sqlx::query(sql)
            .bind(after.map_or(String::new(), |id| id.to_string()))
            .bind(i64::from(limit))
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(token).collect()
    }

    /// Whether any token counts at this moment.
    pub async fn any_token(&self) -> Result<bool> {
        let sql = "SELECT COUNT(*) AS n FROM tokens WHERE expires_at IS NULL OR expires_at > $1";
        let row = sqlx::query(sql).bind(self.now().0).fetch_one(&self.readers).await?;
        row.flag("n")
    }
}

fn token(row: &sqlx::any::AnyRow) -> Result<Token> {
    Ok(Token {
        id: row.id("id")?,
        name: row.text("name")?,
        role: row.text("role")?.parse()?,
        created_at: row.time("created_at")?,
        expires_at: row.time_or_null("expires_at")?,
    })
}
