use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::EventKind;
use crate::Timestamp;

/// Id of a webhook, a UUIDv7.
pub type WebhookId = Uuid;

/// A webhook as it is shown: never its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Webhook {
    /// Id by which it is removed.
    #[schema(value_type = Uuid)]
    pub id: WebhookId,
    /// Where events are sent.
    pub url: String,
    /// Which events.
    pub events: Vec<EventKind>,
    /// Number of the last event that was delivered, or was not wanted.
    pub delivered: u64,
    /// Deliveries that failed in a row.
    pub failures: u64,
    /// Why the last one failed; null when it did not.
    #[schema(required)]
    pub problem: Option<String>,
    /// When it was registered: events from then on are delivered.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}
