use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use vdisk_service::Service;
use vdisk_service::model::{Job, JobPlan, Pool};
use vdisk_service::request::JobRequest;

use super::documented::problems;
use super::extract::{IdempotencyKey, OptionalBody, PoolPath, Query};
use super::problem::Answer;
use super::reply::{PoolList, accepted, listed, planned};
use crate::state::App;

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list_pools))
        .routes(routes!(get_pool))
        .routes(routes!(scan_pool))
}

problems!(ListProblems:);
problems!(PoolProblems: NotFound);
problems!(ScanProblems: NotFound, InvalidArgument, LimitExceeded, IdempotencyConflict;
    MalformedBody, BodyTooLarge, UnsupportedMediaType);

/// List the pools.
///
/// Pools are folders that the operator configured; clients know them by name.
#[utoipa::path(get, path = "/v1/pools", operation_id = "list_pools", tag = "pools",
    responses((status = 200, description = "Every pool, by name.", body = PoolList), ListProblems))]
async fn list_pools(State(service): State<Service>) -> Answer<Json<PoolList>> {
    Ok(listed(service.pools().await?))
}

/// Get a pool.
#[utoipa::path(get, path = "/v1/pools/{pool}", operation_id = "get_pool", tag = "pools", params(PoolPath),
    responses((status = 200, description = "The pool.", body = Pool), PoolProblems))]
async fn get_pool(State(service): State<Service>, PoolPath(pool): PoolPath) -> Answer<Json<Pool>> {
    Ok(Json(service.pool(&pool).await?))
}

/// How a pool is scanned.
#[derive(Default, Deserialize, IntoParams, ToSchema)]
#[serde(default, deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ScanRequest {
    /// Only say what the job would do.
    dry_run: Option<bool>,
}

/// Scan a pool.
///
/// Queues a job that registers the files found in the pool's folder, with their backing chains. `dry_run` counts in the query and in the
/// body.
#[utoipa::path(post, path = "/v1/pools/{pool}/scan", operation_id = "scan_pool", tag = "pools",
    params(PoolPath, IdempotencyKey, ScanRequest), request_body = Option<ScanRequest>,
    responses((status = 200, description = "With `dry_run`: what the job would do.", body = JobPlan),
        (status = 202, description = "The job.", body = Job, headers(("Location", description = "The job."))),
        ScanProblems))]
async fn scan_pool(
    State(service): State<Service>,
    PoolPath(pool): PoolPath,
    IdempotencyKey(call): IdempotencyKey,
    Query(query): Query<ScanRequest>,
    OptionalBody(body): OptionalBody<ScanRequest>,
) -> Answer<Response> {
    if query.dry_run == Some(true) || body.dry_run == Some(true) {
        return Ok(planned(service.plan_job(JobRequest::Scan(pool)).await?));
    }
    Ok(accepted(service.scan_pool(&pool, &call).await?))
}
