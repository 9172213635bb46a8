use tonic::{Request, Response};

use super::convert::id_of;
use super::{Answer, Api, call, status};
use crate::proto::webhook_service_server::WebhookService;
use crate::proto::{
    CreateWebhookRequest, DeleteWebhookRequest, GetWebhookRequest, ListWebhooksRequest, ListWebhooksResponse, Webhook,
};

#[tonic::async_trait]
impl WebhookService for Api {
    async fn create_webhook(&self, request: Request<CreateWebhookRequest>) -> Answer<Webhook> {
        let call = call(&request)?;
        let request = request.into_inner().try_into().map_err(status::of)?;
        let webhook = self.0.service.create_webhook(request, &call).await;
        Ok(Response::new(webhook.map_err(status::of)?.into()))
    }

    async fn list_webhooks(&self, _: Request<ListWebhooksRequest>) -> Answer<ListWebhooksResponse> {
        let webhooks = self.0.service.list_webhooks().await.map_err(status::of)?;
        Ok(Response::new(ListWebhooksResponse {
            items: webhooks.into_iter().map(Into::into).collect(),
        }))
    }

    async fn get_webhook(&self, request: Request<GetWebhookRequest>) -> Answer<Webhook> {
        let id = id_of("webhook", &request.into_inner().id).map_err(status::of)?;
        Ok(Response::new(
            self.0.service.webhook(id).await.map_err(status::of)?.into(),
        ))
    }

    async fn delete_webhook(&self, request: Request<DeleteWebhookRequest>) -> Answer<()> {
        let id = id_of("webhook", &request.into_inner().id).map_err(status::of)?;
        self.0.service.delete_webhook(id).await.map_err(status::of)?;
        Ok(Response::new(()))
    }
}
