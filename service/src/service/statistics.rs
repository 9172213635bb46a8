use super::Service;
use crate::error::Result;
use crate::model::Statistics;

impl Service {
    /// Sums over the inventory and the queue, for monitoring.
    ///
    /// # Errors
    /// [`crate::ErrorCode::Unavailable`] when the database does not answer.
    pub async fn statistics(&self) -> Result<Statistics> {
        self.inner.store.statistics().await
    }
}
