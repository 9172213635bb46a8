//! Idempotency keys: the same key with the same request gets the first answer again.

use std::time::Duration;

use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::Tx;
use super::row::Columns;
use crate::clock::Timestamp;
use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::ImageId;
use crate::secrets::hex;

/// A key together with what it was used for.
#[derive(Clone, Debug)]
pub struct IdempotentRequest {
    key: String,
    hash: String,
}

/// What the first request led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An image was made.
    Image(Uuid),
    /// A job was queued.
    Job(Uuid),
    /// A secret was stored.
    Secret(Uuid),
    /// A token was made.
    Token(Uuid),
    /// A webhook was registered.
    Webhook(Uuid),
    /// A change of this image was begun at that time. Whether it was carried out is not on record.
    Begun(Uuid, Timestamp),
    /// The same, and since then somebody has begun another change of the image.
    Overtaken(Uuid, Timestamp),
}

impl IdempotentRequest {
    /// A key for a verb on a target (an id, a pool, or nothing) with a request body.
    ///
    /// # Errors
    /// `invalid_argument` for a key that is not 1 to 255 visible ASCII characters.
    pub fn new(key: &str, verb: &str, target: &str, request: &impl serde::Serialize) -> Result<Self> {
        if key.is_empty() || key.len() > 255 || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            let public = "an idempotency key is 1 to 255 visible ASCII characters";
            return Err(ServiceError::invalid("idempotency_key", public));
        }
        let body = serde_json::to_vec(request).map_err(ServiceError::internal)?;
        let mut digest = Sha256::new();
        for part in [verb.as_bytes(), target.as_bytes(), &body] {
            digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
            digest.update(part);
        }
        let hash = hex(&digest.finalize());
        Ok(Self {
            key: key.to_owned(),
            hash,
        })
    }
}

impl Tx {
    /// What the key led to before; `None` when it is new.
    ///
    /// # Errors
    /// `idempotency_conflict` when it was used for another request.
    pub async fn recall(&mut self, request: Option<&IdempotentRequest>) -> Result<Option<Outcome>> {
        let Some(request) = request else { return Ok(None) };
        let sql = "SELECT request_hash, outcome, created_at FROM idempotency WHERE key = $1";
        let Some(row) = sqlx::query(sql)
            .bind(&request.key)
            .fetch_optional(&mut *self.inner)
            .await?
        else {
            return Ok(None);
        };
        if row.text("request_hash")? != request.hash {
            let public = "the idempotency key was used before for another request; use a new key";
            return Err(ServiceError::new(ErrorCode::IdempotencyConflict, public));
        }
        Outcome::parse(&row.text("outcome")?, row.time("created_at")?).map(Some)
    }

    /// Binds a new key to what its request led to.
    pub async fn remember(&mut self, request: Option<&IdempotentRequest>, outcome: Outcome) -> Result<()> {
        let Some(request) = request else { return Ok(()) };
        let at = match outcome {
            Outcome::Begun(_, at) | Outcome::Overtaken(_, at) => at,
            _ => self.now,
        };
        sqlx::query("INSERT INTO idempotency (key, request_hash, outcome, created_at) VALUES ($1, $2, $3, $4)")
            .bind(&request.key)
            .bind(&request.hash)
            .bind(outcome.to_text())
            .bind(at.0)
            .execute(&mut *self.inner)
            .await?;
        Ok(())
    }

    /// Binds a key, new or begun, to what its request has led to by now.
    ///
    /// # Errors
    /// `idempotency_conflict` when it was used for another request meanwhile.
    pub async fn remember_again(&mut self, request: Option<&IdempotentRequest>, outcome: Outcome) -> Result<()> {
        let Some(known) = request else { return Ok(()) };
        self.recall(request).await?;
        let sql = "DELETE FROM idempotency WHERE key = $1";
        sqlx::query(sql).bind(&known.key).execute(&mut *self.inner).await?;
        self.remember(request, outcome).await
    }

    /// Somebody begins to change an image: what others had begun to do to it cannot be told from what the image shows any more.
    pub async fn overtake(&mut self, image: ImageId) -> Result<()> {
        let sql = "UPDATE idempotency SET outcome = $2 WHERE outcome = $1";
        sqlx::query(sql)
            .bind(Outcome::Begun(image, self.now).to_text())
            .bind(Outcome::Overtaken(image, self.now).to_text())
            .execute(&mut *self.inner)
            .await?;
        Ok(())
    }

    /// Forgets the key of a request that came to nothing, so that it can be tried again.
    pub async fn forget_outcome(&mut self, outcome: Outcome) -> Result<()> {
        let sql = "DELETE FROM idempotency WHERE outcome = $1";
        sqlx::query(sql)
            .bind(outcome.to_text())
            .execute(&mut *self.inner)
            .await?;
        Ok(())
    }

    /// Forgets keys older than `retention`.
    pub async fn prune_idempotency(&mut self, retention: Duration) -> Result<()> {
        let before = self.now.before(retention).0;
        sqlx::query("DELETE FROM idempotency WHERE created_at < $1")
            .bind(before)
            .execute(&mut *self.inner)
            .await?;
        Ok(())
    }
}

impl Outcome {
    fn to_text(self) -> String {
        match self {
            Self::Image(id) => format!("image:{id}"),
            Self::Job(id) => format!("job:{id}"),
            Self::Secret(id) => format!("secret:{id}"),
            Self::Token(id) => format!("token:{id}"),
            Self::Webhook(id) => format!("webhook:{id}"),
            Self::Begun(id, _) => format!("begun:{id}"),
            Self::Overtaken(id, _) => format!("overtaken:{id}"),
        }
    }

    fn parse(text: &str, at: Timestamp) -> Result<Self> {
        let broken = || ServiceError::internal(format!("database: '{text}' is no outcome"));
        let (kind, id) = text.split_once(':').ok_or_else(broken)?;
        let id = id.parse().map_err(|_| broken())?;
        match kind {
            "image" => Ok(Self::Image(id)),
            "job" => Ok(Self::Job(id)),
            "secret" => Ok(Self::Secret(id)),
            "token" => Ok(Self::Token(id)),
            "webhook" => Ok(Self::Webhook(id)),
            "begun" => Ok(Self::Begun(id, at)),
            "overtaken" => Ok(Self::Overtaken(id, at)),
            _ => Err(broken()),
        }
    }
}
