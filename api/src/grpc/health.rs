//! Health as gRPC has it (`grpc.health.v1`), of the server and of each service that reflection lists. It is that of `/readyz`, found out
//! when somebody asks.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};
use prost::Message;
use prost_types::FileDescriptorSet;
use tokio::sync::OwnedSemaphorePermit;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_server};
use tonic_reflection::pb;

use super::{Answer, OURS, status};
use crate::access::limits::Watchers;
use crate::state::App;

/// How often it is found out again for those who watch.
const LOOK: Duration = Duration::from_secs(2);

/// The health service.
#[derive(Clone)]
pub struct Health {
    app: App,
    known: Arc<BTreeSet<String>>,
    /// Whoever may watch without a token takes no place from those who have one.
    watchers: Watchers,
}

impl Health {
    pub fn new(app: &App) -> Self {
        // The server as a whole has no name.
        let known = services().chain([String::new()]).collect();
        Self {
            app: app.clone(),
            known: Arc::new(known),
            watchers: Watchers::default(),
        }
    }

    fn knows(&self, service: &str) -> bool {
        self.known.contains(service)
    }

    async fn now(&self) -> ServingStatus {
        if self.app.stopping.is_cancelled() || self.app.service.ready().await.is_err() {
            return ServingStatus::NotServing;
        }
        ServingStatus::Serving
    }
}

/// The full names of all services.
fn services() -> impl Iterator<Item = String> {
    let reflection = [pb::v1::FILE_DESCRIPTOR_SET, pb::v1alpha::FILE_DESCRIPTOR_SET];
    // The descriptors are those that the build made, so they can be read.
    let files = OURS.into_iter().chain(reflection);
    let files = files.flat_map(|set| FileDescriptorSet::decode(set).unwrap_or_default().file);
    files.flat_map(|file| {
        let package = file.package.unwrap_or_default();
        let names = file.service.into_iter().filter_map(|service| service.name);
        names.map(move |name| format!("{package}.{name}")).collect::<Vec<_>>()
    })
}

/// Somebody who watches, and what was told last.
struct Watch {
    health: Health,
    known: bool,
    told: Option<ServingStatus>,
    _place: OwnedSemaphorePermit,
}

impl Watch {
    /// Waits for news. There is none after the server was said to stop.
    async fn next(mut self) -> Option<(Result<HealthCheckResponse, Status>, Self)> {
        let stopping = self.health.app.stopping.clone();
        loop {
            let over = stopping.is_cancelled();
            let now = match self.known {
                true => self.health.now().await,
                false => ServingStatus::ServiceUnknown,
            };
            if self.told != Some(now) {
                self.told = Some(now);
                return Some((Ok(answer(now)), self));
            }
            if over {
                return None;
            }
            tokio::select! {
                () = stopping.cancelled() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl health_server::Health for Health {
    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Answer<HealthCheckResponse> {
        let service = request.into_inner().service;
        if !self.knows(&service) {
            return Err(Status::not_found(format!(
                "there is no service \"{}\"",
                service.escape_debug()
            )));
        }
        Ok(Response::new(answer(self.now().await)))
    }

    /// A service that is not known is told to be that, as the protocol has it: it is no error.
    async fn watch(&self, request: Request<HealthCheckRequest>) -> Answer<Self::WatchStream> {
        let watch = Watch {
            known: self.knows(&request.into_inner().service),
            told: None,
            _place: self.watchers.enter().map_err(status::of)?,
            health: self.clone(),
        };
        Ok(Response::new(stream::unfold(watch, Watch::next).boxed()))
    }
}
