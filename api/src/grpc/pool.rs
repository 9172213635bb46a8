use tonic::{Request, Response};

use super::{Answer, Api, call, status};
use crate::proto::pool_service_server::PoolService;
use crate::proto::{GetPoolRequest, Job, ListPoolsRequest, ListPoolsResponse, Pool, ScanPoolRequest};

#[tonic::async_trait]
impl PoolService for Api {
    async fn list_pools(&self, _: Request<ListPoolsRequest>) -> Answer<ListPoolsResponse> {
        let pools = self.0.service.pools().await.map_err(status::of)?;
        Ok(Response::new(ListPoolsResponse {
            items: pools.into_iter().map(Into::into).collect(),
        }))
    }

    async fn get_pool(&self, request: Request<GetPoolRequest>) -> Answer<Pool> {
        let pool = self
            .0
            .service
            .pool(&request.into_inner().name)
            .await
            .map_err(status::of)?;
        Ok(Response::new(pool.into()))
    }

    async fn scan_pool(&self, request: Request<ScanPoolRequest>) -> Answer<Job> {
        let call = call(&request)?;
        let job = self
            .0
            .service
            .scan_pool(&request.into_inner().name, &call)
            .await
            .map_err(status::of)?;
        Ok(Response::new(job.into()))
    }
}
