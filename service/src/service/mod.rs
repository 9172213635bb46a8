//! The object both transports call. One file a noun.

mod chains;
mod events;
mod formats;
mod images;
mod jobs;
mod pools;
mod secrets;
mod snapshots;
mod transfer;
mod verbs;

use std::sync::Arc;
use std::time::Duration;

use crate::config::ServiceConfig;
use crate::error::{ErrorCode, Result, ServiceError};

pub use chains::ExtentStream;
pub use transfer::Download;

/// Disk-image management, ready to be called from any thread. Clones are handles to the same service.
#[derive(Clone)]
pub struct Service {
    inner: Arc<Inner>,
}

struct Inner {
    config: ServiceConfig,
}

impl Service {
    /// Opens the database (migrating it), the pools and the master key, brings inventory and disk in line after an
    /// unclean end, and starts the workers.
    ///
    /// # Errors
    /// [`ErrorCode::Unavailable`] when the database or a pool cannot be used; [`ErrorCode::InvalidArgument`] for a
    /// configuration that contradicts itself.
    pub async fn open(config: ServiceConfig) -> Result<Self> {
        Ok(Self {
            inner: Arc::new(Inner { config }),
        })
    }

    /// Stops taking jobs, waits up to `grace` for those that run, and hands the rest back to the queue.
    pub async fn shutdown(&self, _grace: Duration) {}

    /// Whether requests can be served now: the database answers and the pools are there.
    ///
    /// # Errors
    /// [`ErrorCode::Unavailable`] with what is wrong.
    pub async fn ready(&self) -> Result<()> {
        Err(waiting("ready"))
    }

    /// The configuration the service was opened with.
    pub fn config(&self) -> &ServiceConfig {
        &self.inner.config
    }
}

fn waiting(what: &str) -> ServiceError {
    ServiceError::new(ErrorCode::Unsupported, format!("{what} is not available in this build"))
}
