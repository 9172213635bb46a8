//! Whom to tell what happened, and how far they were told.

use std::time::Duration;

use super::events::last_number;
use super::row::{Columns, json_text, stored};
use super::secrets::SealedSecret;
use super::{Store, Tx};
use crate::clock::Timestamp;
use crate::error::{Result, ServiceError};
use crate::model::{EventKind, Webhook, WebhookId};

/// A webhook with what its deliveries are signed with.
#[derive(Clone)]
pub struct WebhookRecord {
    /// As it is shown.
    pub webhook: Webhook,
    /// The sealed secret.
    pub secret: SealedSecret,
}

impl Tx {
    /// Registers a webhook that is told of what happens after this transaction.
    pub async fn insert_webhook(
        &mut self,
        id: WebhookId,
        url: &str,
        events: &[EventKind],
        secret: &SealedSecret,
    ) -> Result<()> {
        let sql = concat!(
            "INSERT INTO webhooks (id, url, events, sealed, key_id, delivered, failures, next_try, created_at) \
             VALUES ($1, $2, $3, $4, $5, ",
            last_number!(),
            ", 0, 0, $6)"
        );
        sqlx::query(sql)
            .bind(id.to_string())
            .bind(url)
            .bind(json_text(&events)?)
            .bind(&secret.sealed)
            .bind(&secret.key_id)
            .bind(self.now.0)
            .execute(&mut *self.inner)
            .await?;
        Ok(())
    }

    /// How many there are.
    pub async fn count_webhooks(&mut self) -> Result<u64> {
        let sql = "SELECT COUNT(*) AS n FROM webhooks";
        sqlx::query(sql).fetch_one(&mut *self.inner).await?.size("n")
    }

    /// Removes a webhook.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn delete_webhook(&mut self, id: WebhookId) -> Result<()> {
        let deleted = sqlx::query("DELETE FROM webhooks WHERE id = $1")
            .bind(id.to_string())
            .execute(&mut *self.inner)
            .await?;
        match deleted.rows_affected() {
            0 => Err(ServiceError::not_found("webhook", id)),
            _ => Ok(()),
        }
    }

    /// Takes a webhook that is due up for a while, so that no other process tells the same. Whether it was due.
    pub async fn claim_webhook(&mut self, id: WebhookId, lease: Duration) -> Result<bool> {
        let claimed = sqlx::query("UPDATE webhooks SET next_try = $2 WHERE id = $1 AND next_try <= $3")
            .bind(id.to_string())
            .bind(self.now.after(lease).0)
            .bind(self.now.0)
            .execute(&mut *self.inner)
            .await?;
        Ok(claimed.rows_affected() == 1)
    }

    /// Ends a claim: the webhook is due again at that moment.
    pub async fn give_back_webhook(&mut self, id: WebhookId, next_try: Timestamp) -> Result<()> {
        sqlx::query("UPDATE webhooks SET next_try = $2 WHERE id = $1")
            .bind(id.to_string())
            .bind(next_try.0)
            .execute(&mut *self.inner)
            .await?;
        Ok(())
    }

    /// Ends the claims of processes that are gone: only right when no other can be alive. What failed keeps its pause.
    pub async fn give_back_all_webhooks(&mut self) -> Result<()> {
        let sql = "UPDATE webhooks SET next_try = 0 WHERE failures = 0";
        sqlx::query(sql).execute(&mut *self.inner).await?;
        Ok(())
    }

    /// Notes how far a webhook was told, and until when this process has it. Whether it still is on record.
    pub async fn webhook_told(&mut self, id: WebhookId, delivered: u64, until: Timestamp) -> Result<bool> {
        let sql = "UPDATE webhooks SET delivered = $2, failures = 0, problem = NULL, next_try = $3 WHERE id = $1";
        let noted = sqlx::query(sql)
            .bind(id.to_string())
            .bind(stored(delivered)?)
            .bind(until.0)
            .execute(&mut *self.inner)
            .await?;
        Ok(noted.rows_affected() == 1)
    }

    /// Notes a delivery that failed, and when the next may be tried.
    pub async fn webhook_failed(&mut self, id: WebhookId, problem: &str, next_try: Timestamp) -> Result<()> {
        let sql = "UPDATE webhooks SET failures = failures + 1, problem = $2, next_try = $3 WHERE id = $1";
        sqlx::query(sql)
            .bind(id.to_string())
            .bind(problem)
            .bind(next_try.0)
            .execute(&mut *self.inner)
            .await?;
        Ok(())
    }
}

impl Store {
    /// One webhook.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn webhook(&self, id: WebhookId) -> Result<WebhookRecord> {
        let sql = "SELECT id, url, events, sealed, key_id, delivered, failures, problem, created_at FROM webhooks \
             WHERE id = $1";
        let row = sqlx::query(sql)
            .bind(id.to_string())
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref()
            .map(record)
            .transpose()?
            .ok_or_else(|| ServiceError::not_found("webhook", id))
    }

    /// Every webhook, oldest first: their number is bounded.
    pub async fn webhooks(&self) -> Result<Vec<WebhookRecord>> {
        let sql = "SELECT id, url, events, sealed, key_id, delivered, failures, problem, created_at FROM webhooks \
             ORDER BY id";
        let rows = sqlx::query(sql).fetch_all(&self.readers).await?;
        rows.iter().map(record).collect()
    }

    /// Those that are due and have something to be told.
    pub async fn due_webhooks(&self) -> Result<Vec<WebhookId>> {
        let sql = concat!(
            "SELECT id FROM webhooks WHERE next_try <= $1 AND delivered < ",
            last_number!(),
            " ORDER BY id"
        );
        let rows = sqlx::query(sql).bind(self.now().0).fetch_all(&self.readers).await?;
        rows.iter().map(|row| row.id("id")).collect()
    }
}

fn record(row: &sqlx::any::AnyRow) -> Result<WebhookRecord> {
    Ok(WebhookRecord {
        webhook: Webhook {
            id: row.id("id")?,
            url: row.text("url")?,
            events: row.json("events")?,
            delivered: row.size("delivered")?,
            failures: row.size("failures")?,
            problem: row.text_or_null("problem")?,
            created_at: row.time("created_at")?,
        },
        secret: SealedSecret {
            sealed: row.text("sealed")?,
            key_id: row.text("key_id")?,
        },
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::SealedSecret;
    use crate::model::{EventKind, WebhookId};
    use crate::store::testing::{TestStore, on_both_databases};

    on_both_databases! {
        a_claim_ends_with_its_process_or_by_itself,
    }

    async fn a_claim_ends_with_its_process_or_by_itself(test: TestStore) {
        let store = &test.store;
        let (lease, secret) = (
            Duration::from_secs(60),
            SealedSecret {
                sealed: "s".to_owned(),
                key_id: "k".to_owned(),
            },
        );
        let (told, failing) = (WebhookId::now_v7(), WebhookId::now_v7());
        let mut tx = store.begin().await.unwrap();
        for id in [told, failing] {
            tx.insert_webhook(id, "https://hooks.example/", &[EventKind::ImageCreated], &secret)
                .await
                .unwrap();
            assert!(tx.claim_webhook(id, lease).await.unwrap());
            assert!(!tx.claim_webhook(id, lease).await.unwrap(), "claimed twice");
        }
        let later = tx.now.after(lease * 2);
        tx.webhook_failed(failing, "it is down", later).await.unwrap();
        tx.give_back_all_webhooks().await.unwrap();
        assert!(tx.claim_webhook(told, lease).await.unwrap(), "still another's");
        assert!(
            !tx.claim_webhook(failing, lease).await.unwrap(),
            "not before its pause has ended"
        );
        tx.give_back_webhook(told, tx.now.after(Duration::from_secs(1)))
            .await
            .unwrap();
        tx.commit().await.unwrap();

        test.clock.advance(1001);
        let mut tx = store.begin().await.unwrap();
        assert!(tx.claim_webhook(told, lease).await.unwrap());
        let until = tx.now.after(lease);
        assert!(tx.webhook_told(told, 1, until).await.unwrap());
        tx.delete_webhook(told).await.unwrap();
        assert!(!tx.webhook_told(told, 2, until).await.unwrap(), "told after its end");
    }
}
