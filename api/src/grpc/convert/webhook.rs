use vdisk_service::ServiceError;
use vdisk_service::model::Webhook;
use vdisk_service::request::NewWebhook;

use super::value::timestamp;
use crate::proto;

impl From<Webhook> for proto::Webhook {
    fn from(webhook: Webhook) -> Self {
        Self {
            id: webhook.id.to_string(),
            url: webhook.url,
            events: webhook.events.iter().map(ToString::to_string).collect(),
            delivered: webhook.delivered,
            failures: webhook.failures,
            problem: webhook.problem,
            created_at: timestamp(webhook.created_at),
        }
    }
}

impl TryFrom<proto::CreateWebhookRequest> for NewWebhook {
    type Error = ServiceError;

    fn try_from(request: proto::CreateWebhookRequest) -> Result<Self, ServiceError> {
        let events = request.events.iter().map(|kind| kind.parse());
        Ok(Self {
            url: request.url,
            events: events.collect::<Result<_, _>>()?,
            secret: request.secret.into(),
        })
    }
}
