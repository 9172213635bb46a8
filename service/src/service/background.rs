use std::future::Future;

use super::Service;
use crate::error::{Result, ServiceError};

impl Service {
    /// Runs work that must come to its end even when the client goes away in the middle.
    pub(super) async fn to_the_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        tokio::spawn(work)
            .await
            .map_err(|error| ServiceError::internal(format!("a request's task ended: {error}")))?
    }
}

/// Runs engine code on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ServiceError::internal(format!("a request's thread ended: {error}")))?
}
