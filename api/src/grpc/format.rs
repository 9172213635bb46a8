use tonic::{Request, Response};

use super::{Answer, Api};
use crate::proto::format_service_server::FormatService;
use crate::proto::{ListFormatsRequest, ListFormatsResponse};

#[tonic::async_trait]
impl FormatService for Api {
    async fn list_formats(&self, _: Request<ListFormatsRequest>) -> Answer<ListFormatsResponse> {
        let items = self.0.service.formats().into_iter().map(Into::into).collect();
        Ok(Response::new(ListFormatsResponse { items }))
    }
}
