use std::sync::Arc;

use axum::extract::FromRef;
use tokio_util::sync::CancellationToken;
use vdisk_service::Service;

use crate::access::Policy;
use crate::access::audit::Strangers;
use crate::access::limits::Watchers;
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
    /// Who may ask for what.
    pub policy: Arc<Policy>,
    /// Places for those who watch or wait.
    pub watchers: Watchers,
    /// How connections are secured; without, they are not.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Requests without a token that counts.
    pub strangers: Strangers,
}

impl App {
    /// Puts a service behind the transports, for a listener on the loopback address.
    pub fn new(service: Service) -> Self {
        Self::with_policy(service, Policy::default())
    }

    /// Puts a service behind the transports.
    pub fn with_policy(service: Service, policy: Policy) -> Self {
        Self {
            service,
            metrics: Arc::default(),
            stopping: CancellationToken::new(),
            policy: Arc::new(policy),
            watchers: Watchers::default(),
            strangers: Strangers::default(),
            tls: None,
        }
    }

    /// Speaks TLS on every connection.
    pub fn with_tls(self, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        Self { tls, ..self }
    }
}

impl FromRef<App> for Service {
    fn from_ref(app: &App) -> Self {
        app.service.clone()
    }
}
