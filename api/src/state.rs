use std::sync::Arc;

use axum::extract::FromRef;
use tokio_util::sync::CancellationToken;
use vdisk_service::Service;

use crate::metrics::Metrics;

/// What both transports share.
#[derive(Clone)]
pub struct App {
    /// The service behind every handler.
    pub service: Service,
    /// Counters of this process.
    pub metrics: Arc<Metrics>,
    /// Cancelled when the server stops: ends long polls and event streams.
    pub stopping: CancellationToken,
}

impl App {
    /// Puts a service behind the transports.
    pub fn new(service: Service) -> Self {
        Self {
            service,
            metrics: Arc::default(),
            stopping: CancellationToken::new(),
        }
    }
}

impl FromRef<App> for Service {
    fn from_ref(app: &App) -> Self {
        app.service.clone()
    }
}
