//! The gRPC interface: the same verbs over the same service. One file a service; conversions stand in `convert/`.

mod access;
mod convert;
mod format;
mod health;
mod image;
mod job;
pub mod observe;
mod plan;
mod pool;
mod secret;
mod status;
mod upload;
mod webhook;

use axum::Router;
use axum::extract::{MatchedPath, Request};
use http::header;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;
use vdisk_service::request::Call;

use self::health::Health;
use crate::errors::TransportCode;
use crate::http::extract::idempotency::call_of;
use crate::proto;
use crate::proto::audit_service_server::AuditServiceServer;
use crate::proto::format_service_server::FormatServiceServer;
use crate::proto::image_service_server::ImageServiceServer;
use crate::proto::job_service_server::JobServiceServer;
use crate::proto::plan_service_server::PlanServiceServer;
use crate::proto::pool_service_server::PoolServiceServer;
use crate::proto::secret_service_server::SecretServiceServer;
use crate::proto::token_service_server::TokenServiceServer;
use crate::proto::webhook_service_server::WebhookServiceServer;
use crate::state::App;

/// Result of every call.
type Answer<T> = Result<tonic::Response<T>, tonic::Status>;

/// What reflection shows, beside itself.
const OURS: [&[u8]; 2] = [proto::DESCRIPTORS, tonic_health::pb::FILE_DESCRIPTOR_SET];

/// The services, with health and reflection.
pub fn router(app: &App) -> Router {
    let api = Api(app.clone());
    let mut routes = Routes::builder();
    routes
        .add_service(ImageServiceServer::new(api.clone()))
        .add_service(JobServiceServer::new(api.clone()))
        .add_service(PlanServiceServer::new(api.clone()))
        .add_service(PoolServiceServer::new(api.clone()))
        .add_service(SecretServiceServer::new(api.clone()))
        .add_service(WebhookServiceServer::new(api.clone()))
        .add_service(TokenServiceServer::new(api.clone()))
        .add_service(AuditServiceServer::new(api.clone()))
        .add_service(FormatServiceServer::new(api))
        .add_service(HealthServer::new(Health::new(app)));
    let reflection = || {
        let builder = tonic_reflection::server::Builder::configure();
        OURS.into_iter().fold(builder, |builder, set| {
            builder.register_encoded_file_descriptor_set(set)
        })
    };
    // The descriptors are those that the build made, so both always build.
    if let Ok(service) = reflection().build_v1() {
        routes.add_service(service);
    }
    if let Ok(service) = reflection().build_v1alpha() {
        routes.add_service(service);
    }
    routes.routes().into_axum_router()
}

/// Whether a request is a gRPC call. Where a route of ours matches it is none, whatever the content type says.
pub fn is_call(request: &Request) -> bool {
    let kind = request.headers().get(header::CONTENT_TYPE);
    request.extensions().get::<MatchedPath>().is_none()
        && kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// A refusal as the answer to a call.
pub fn refusal(code: TransportCode, detail: &str) -> axum::response::Response {
    status::of_transport(code, detail).into_http()
}

/// An error of the service as the answer to a call.
pub fn failure(error: vdisk_service::ServiceError) -> axum::response::Response {
    status::of(error).into_http()
}

/// The handlers' object.
#[derive(Clone)]
struct Api(App);

/// What goes with a call, from its metadata.
fn call<T>(request: &tonic::Request<T>) -> Result<Call, tonic::Status> {
    call_of(request.metadata().as_ref()).map_err(status::of)
}
