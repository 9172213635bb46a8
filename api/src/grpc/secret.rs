use tonic::{Request, Response};

use super::convert::{id_of, page, token};
use super::{Answer, Api, call, status};
use crate::proto::secret_service_server::SecretService;
use crate::proto::{
    CreateSecretRequest, DeleteSecretRequest, GetSecretRequest, Job, ListSecretsRequest, ListSecretsResponse,
    RotateMasterKeyRequest, Secret,
};

#[tonic::async_trait]
impl SecretService for Api {
    async fn create_secret(&self, request: Request<CreateSecretRequest>) -> Answer<Secret> {
        let call = call(&request)?;
        let secret = self
            .0
            .service
            .create_secret(request.into_inner().try_into().map_err(status::of)?, &call)
            .await
            .map_err(status::of)?;
        Ok(Response::new(secret.into()))
    }

    async fn list_secrets(&self, request: Request<ListSecretsRequest>) -> Answer<ListSecretsResponse> {
        let page = page(request.into_inner().page);
        let page = self
            .0
            .service
            .list_secrets(&page)
            .await
            .map_err(status::of)?
            .map(Into::into);
        Ok(Response::new(ListSecretsResponse {
            items: page.items,
            next_page_token: token(page.next_page_token),
        }))
    }

    async fn get_secret(&self, request: Request<GetSecretRequest>) -> Answer<Secret> {
        let id = id_of("secret", &request.into_inner().id).map_err(status::of)?;
        Ok(Response::new(
            self.0.service.secret(id).await.map_err(status::of)?.into(),
        ))
    }

    async fn rotate_master_key(&self, request: Request<RotateMasterKeyRequest>) -> Answer<Job> {
        let call = call(&request)?;
        let request = vdisk_service::request::RotateMasterKeyRequest {
            priority: request.into_inner().priority,
        };
        let job = self.0.service.rotate_master_key(request, &call).await;
        Ok(Response::new(job.map_err(status::of)?.into()))
    }

    async fn delete_secret(&self, request: Request<DeleteSecretRequest>) -> Answer<()> {
        let id = id_of("secret", &request.into_inner().id).map_err(status::of)?;
        self.0.service.delete_secret(id).await.map_err(status::of)?;
        Ok(Response::new(()))
    }
}
