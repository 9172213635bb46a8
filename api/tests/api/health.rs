//! Health over gRPC, of every service that reflection lists.

use std::time::Duration;

use futures::StreamExt;
use http::Uri;
use tonic::Code;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::{v1, v1alpha};
use vdisk_api::App;
use vdisk_api::vdisk_service::{Service, ServiceConfig};

use crate::grpc::channel;
use crate::server::Server;

fn about(service: &str) -> HealthCheckRequest {
    let service = service.to_owned();
    HealthCheckRequest { service }
}

/// The names that one version of reflection lists.
macro_rules! listed {
    ($version:ident, $channel:expr) => {{
        use $version::server_reflection_request::MessageRequest;
        use $version::server_reflection_response::MessageResponse;
        let ask = $version::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut client = $version::server_reflection_client::ServerReflectionClient::new($channel);
        let asked = client.server_reflection_info(futures::stream::iter([ask])).await;
        let answer = asked.unwrap().into_inner().next().await.unwrap().unwrap();
        match answer.message_response.unwrap() {
            MessageResponse::ListServicesResponse(list) => list.service.into_iter().map(|service| service.name),
            other => panic!("no list: {other:?}"),
        }
    }};
}

async fn names(channel: Channel) -> Vec<String> {
    let mut names: Vec<String> = listed!(v1, channel.clone()).collect();
    names.extend(listed!(v1alpha, channel));
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn every_service_that_reflection_lists_has_a_health() {
    let server = Server::start().await;
    let names = names(channel(&server).await).await;
    for service in ["Image", "Job", "Pool", "Secret", "Format"] {
        assert!(names.contains(&format!("vdisk.v1.{service}Service")), "{names:?}");
    }
    let mut health = HealthClient::new(channel(&server).await);
    for name in names.iter().map(String::as_str).chain([""]) {
        let checked = health.check(about(name)).await.unwrap().into_inner();
        assert_eq!(checked.status(), ServingStatus::Serving, "{name}");
        let mut watched = health.watch(about(name)).await.unwrap().into_inner();
        let first = watched.next().await.unwrap().unwrap();
        assert_eq!(first.status(), ServingStatus::Serving, "{name}");
    }
    // What the protocol says of names that are none.
    let unknown = health.check(about("vdisk.v1.NoService")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    let mut watched = health.watch(about("vdisk.v1.NoService")).await.unwrap().into_inner();
    let first = watched.next().await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::ServiceUnknown);
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_watch_hear_that_the_server_stops() {
    let server = Server::start().await;
    let mut health = HealthClient::new(channel(&server).await);
    let mut seen = Vec::new();
    let mut watched = Vec::new();
    for name in ["", "vdisk.v1.JobService"] {
        let mut watch = health.watch(about(name)).await.unwrap().into_inner();
        seen.push(vec![watch.next().await.unwrap().unwrap().status()]);
        watched.push(watch);
    }
    server.stop().await;
    for (watch, seen) in watched.into_iter().zip(&mut seen) {
        let rest: Vec<_> = watch.collect().await;
        seen.extend(rest.into_iter().flatten().map(|answer| answer.status()));
        assert_eq!(*seen, [ServingStatus::Serving, ServingStatus::NotServing]);
    }
}

/// As `/readyz` and for as long as it says so; the transport need not stop for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_not_ready_does_not_serve() {
    let dir = tempfile::tempdir().unwrap();
    let config = ServiceConfig::new(dir.path().join("data"));
    let service = Service::open(config).await.unwrap();
    let routes = vdisk_api::router(App::new(service.clone()));
    let mut health = HealthClient::with_origin(routes, Uri::from_static("http://localhost"));
    let mut watched = health.watch(about("")).await.unwrap().into_inner();
    assert_eq!(watched.next().await.unwrap().unwrap().status(), ServingStatus::Serving);
    service.shutdown(Duration::ZERO).await;
    assert!(service.ready().await.is_err());
    for name in ["", "vdisk.v1.ImageService", "grpc.health.v1.Health"] {
        let checked = health.check(about(name)).await.unwrap().into_inner();
        assert_eq!(checked.status(), ServingStatus::NotServing, "{name}");
    }
    let news = tokio::time::timeout(Duration::from_secs(60), watched.next());
    let news = news.await.expect("those who watch hear of it").unwrap().unwrap();
    assert_eq!(news.status(), ServingStatus::NotServing);
}
