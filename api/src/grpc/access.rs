use tonic::{Request, Response};

use super::convert::{id_of, page, token};
use super::{Answer, Api, call, status};
use crate::proto::audit_service_server::AuditService;
use crate::proto::token_service_server::TokenService;
use crate::proto::{
    CreateTokenRequest, CreateTokenResponse, GetTokenRequest, ListAuditRequest, ListAuditResponse, ListTokensRequest,
    ListTokensResponse, RevokeTokenRequest, Token,
};

#[tonic::async_trait]
impl TokenService for Api {
    async fn create_token(&self, request: Request<CreateTokenRequest>) -> Answer<CreateTokenResponse> {
        let call = call(&request)?;
        let request = request.into_inner().try_into().map_err(status::of)?;
        let made = self.0.service.create_token(request, &call).await;
        let (record, token) = made.map_err(status::of)?;
        Ok(Response::new(CreateTokenResponse {
            record: Some(record.into()),
            token: token.map(|token| token.reveal().to_owned()),
        }))
    }

    async fn list_tokens(&self, request: Request<ListTokensRequest>) -> Answer<ListTokensResponse> {
        let page = page(request.into_inner().page);
        let page = self.0.service.list_tokens(&page).await.map_err(status::of)?;
        let page = page.map(Into::into);
        Ok(Response::new(ListTokensResponse {
            items: page.items,
            next_page_token: token(page.next_page_token),
        }))
    }

    async fn get_token(&self, request: Request<GetTokenRequest>) -> Answer<Token> {
        let id = id_of("token", &request.into_inner().id).map_err(status::of)?;
        Ok(Response::new(
            self.0.service.token(id).await.map_err(status::of)?.into(),
        ))
    }

    async fn revoke_token(&self, request: Request<RevokeTokenRequest>) -> Answer<()> {
        let id = id_of("token", &request.into_inner().id).map_err(status::of)?;
        self.0.service.revoke_token(id).await.map_err(status::of)?;
        Ok(Response::new(()))
    }
}

#[tonic::async_trait]
impl AuditService for Api {
    async fn list_audit(&self, request: Request<ListAuditRequest>) -> Answer<ListAuditResponse> {
        let page = page(request.into_inner().page);
        let page = self.0.service.list_audit(&page).await.map_err(status::of)?;
        let page = page.map(Into::into);
        Ok(Response::new(ListAuditResponse {
            items: page.items,
            next_page_token: token(page.next_page_token),
        }))
    }
}
