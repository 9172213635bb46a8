//! Telling others what happened: events in the order of their numbers, each at least once, over restarts too. Each webhook has a task
//! of its own while there is something to tell it: a slow one holds up no other.

mod deliver;
mod target;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
pub use target::check_url;
use tokio::task::JoinHandle;

use self::deliver::{Outgoing, post};
use crate::error::{Result, ServiceError, without_numbers};
use crate::fault::{Side, Step, reach};
use crate::model::{Event, WebhookId};
use crate::service::Inner;

/// Events read at once.
const BATCH: u32 = 64;
/// How long this process has a webhook: more than one delivery takes.
const LEASE: Duration = Duration::from_secs(60);
/// The first pause after a failure; each further one is twice as long.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(3600);
const PROBLEM_CHARS: usize = 256;

/// Delivers until the service stops.
pub async fn deliverer(inner: Arc<Inner>) {
    let mut telling = HashMap::new();
    while !inner.stop.is_cancelled() {
        if let Err(error) = start_due(&inner, &mut telling).await {
            tracing::warn!(%error, "webhooks cannot be delivered now; trying again");
        }
        tokio::select! {
            () = inner.stop.cancelled() => {}
            () = tokio::time::sleep(inner.config.poll_interval) => {}
        }
    }
    // They end with the delivery that they are at.
    join_all(telling.into_values()).await;
}

/// Starts telling those that are due and not being told.
async fn start_due(inner: &Arc<Inner>, telling: &mut HashMap<WebhookId, JoinHandle<()>>) -> Result<()> {
    telling.retain(|_, task| !task.is_finished());
    for id in inner.store.due_webhooks().await? {
        let inner = inner.clone();
        telling.entry(id).or_insert_with(|| {
            tokio::spawn(async move {
                if let Err(error) = deliver_to(&inner, id).await {
                    tracing::warn!(%error, webhook = %id, "a webhook cannot be told now; trying again");
                }
            })
        });
    }
    Ok(())
}

/// Tells one webhook what it has not been told, until it is up to date, fails, or is another process's.
async fn deliver_to(inner: &Arc<Inner>, id: WebhookId) -> Result<()> {
    let mut tx = inner.store.begin().await?;
    if !tx.claim_webhook(id, LEASE).await? {
        return Ok(());
    }
    let told = async {
        tx.commit_as(Step::ClaimWebhook).await?;
        tell(inner, id).await
    };
    let told = told.await;
    // It would wait for the end of the lease.
    if told.is_err()
        && let Err(error) = give_back(inner, id).await
    {
        tracing::warn!(%error, webhook = %id, "a webhook waits for the end of its lease");
    }
    told
}

async fn tell(inner: &Arc<Inner>, id: WebhookId) -> Result<()> {
    let record = inner.store.webhook(id).await?;
    let secret = inner.vault.open_secret(id, &record.secret)?;
    let mut told = record.webhook.delivered;
    loop {
        let events = inner.store.events_after(told, None, None, BATCH).await?;
        if events.is_empty() || inner.stop.is_cancelled() {
            return note(inner, id, told, Duration::ZERO).await.map(drop);
        }
        for event in events {
            told = event.seq;
            if !record.webhook.events.contains(&event.kind) {
                continue;
            }
            if let Err(problem) = send(inner, &record.webhook.url, id, &secret, &event).await? {
                return failed(inner, id, record.webhook.failures, &problem).await;
            }
            let goes_on = note(inner, id, told, LEASE).await?;
            if !goes_on {
                return Ok(());
            }
            if inner.stop.is_cancelled() {
                return note(inner, id, told, Duration::ZERO).await.map(drop);
            }
        }
    }
}

/// Lets a webhook be told again soon, where this process could not do it or put it on record.
async fn give_back(inner: &Inner, id: WebhookId) -> Result<()> {
    let mut tx = inner.store.begin().await?;
    let next = tx.now.after(PAUSE);
    tx.give_back_webhook(id, next).await?;
    tx.commit_as(Step::NoteFailure).await
}

async fn send(
    inner: &Inner,
    url: &str,
    id: WebhookId,
    secret: &[u8],
    event: &Event,
) -> Result<std::result::Result<(), String>> {
    let body = serde_json::to_string(event).map_err(ServiceError::internal)?;
    let outgoing = Outgoing::signed(url, id, event.seq, body, secret, inner.store.now())?;
    let anywhere = inner.config.webhooks_anywhere;
    reach(Step::SendEvent, Side::Before)?;
    let sent = tokio::task::spawn_blocking(move || post(&outgoing, anywhere)).await;
    reach(Step::SendEvent, Side::After)?;
    sent.map_err(ServiceError::internal)
}

/// Whether there still is such a webhook.
async fn note(inner: &Inner, id: WebhookId, told: u64, keep: Duration) -> Result<bool> {
    let mut tx = inner.store.begin().await?;
    let until = tx.due_after(keep);
    let is_there = tx.webhook_told(id, told, until).await?;
    tx.commit_as(Step::NoteDelivery).await?;
    Ok(is_there)
}

async fn failed(inner: &Inner, id: WebhookId, failures: u64, problem: &str) -> Result<()> {
    let doublings = u32::try_from(failures).unwrap_or(u32::MAX).min(12);
    let pause = PAUSE.saturating_mul(1 << doublings).min(PAUSE_MAX);
    tracing::info!(webhook = %id, problem, pause_seconds = pause.as_secs(), "a delivery failed");
    let problem: String = without_numbers(problem).chars().take(PROBLEM_CHARS).collect();
    let mut tx = inner.store.begin().await?;
    let next = tx.now.after(pause);
    tx.webhook_failed(id, &problem, next).await?;
    tx.commit_as(Step::NoteFailure).await
}
