use uuid::Uuid;

use super::Service;
use crate::error::{ErrorCode, Result, ServiceError};
use crate::fault::Step;
use crate::model::{EventKind, Webhook, WebhookId};
use crate::request::{Call, NewWebhook};
use crate::store::idempotency::Outcome;
use crate::webhooks::check_url;

/// Bytes of a secret.
const SECRET: std::ops::RangeInclusive<usize> = 16..=4096;

impl Service {
    /// Registers a webhook: it is told of every event from now on, in order, at least once.
    ///
    /// # Errors
    /// `invalid_argument` (URL, secret), `limit_exceeded` (too many).
    pub async fn create_webhook(&self, request: NewWebhook, call: &Call) -> Result<Webhook> {
        check_url(&request.url)?;
        if !SECRET.contains(&request.secret.len()) {
            let public = "the secret that deliveries are signed with has 16 to 4096 bytes";
            return Err(ServiceError::invalid("secret", public));
        }
        let mut events = request.events;
        if events.is_empty() {
            let all = EventKind::ALL.iter().copied();
            events = all.filter(|kind| *kind != EventKind::JobProgress).collect();
        }
        let kinds: Vec<_> = events.iter().map(|kind| kind.as_str()).collect();
        let parts = [request.url.as_bytes(), kinds.join(",").as_bytes(), &request.secret].map(<[u8]>::to_vec);
        let parts: Vec<_> = parts.iter().map(Vec::as_slice).collect();
        let key = call.bind("create_webhook", "", &self.inner.vault.keyed_digest(&parts))?;
        let id = Uuid::now_v7();
        let mut tx = self.inner.store.begin().await?;
        if let Some(Outcome::Webhook(id)) = tx.recall(key.as_ref()).await? {
            drop(tx);
            return self.webhook(id).await;
        }
        let limit = self.inner.config.limits.webhooks;
        if tx.count_webhooks().await? >= limit {
            let public = format!("there are {limit} webhooks already; remove one first");
            return Err(ServiceError::new(ErrorCode::LimitExceeded, public));
        }
        let sealed = self
            .inner
            .vault
            .seal(tx.sealing_key().await?.as_deref(), id, &request.secret)?;
        tx.insert_webhook(id, &request.url, &events, &sealed).await?;
        tx.remember(key.as_ref(), Outcome::Webhook(id)).await?;
        tx.commit_as(Step::CreateWebhook).await?;
        self.webhook(id).await
    }

    /// Every webhook, oldest first.
    ///
    /// # Errors
    /// [`ErrorCode::Unavailable`] when the database does not answer.
    pub async fn list_webhooks(&self) -> Result<Vec<Webhook>> {
        let records = self.inner.store.webhooks().await?;
        Ok(records.into_iter().map(|record| record.webhook).collect())
    }

    /// One webhook.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn webhook(&self, id: WebhookId) -> Result<Webhook> {
        Ok(self.inner.store.webhook(id).await?.webhook)
    }

    /// Removes a webhook.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn delete_webhook(&self, id: WebhookId) -> Result<()> {
        let mut tx = self.inner.store.begin().await?;
        tx.delete_webhook(id).await?;
        tx.commit_as(Step::DeleteWebhook).await
    }
}
