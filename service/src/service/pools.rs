use serde_json::json;

use super::Service;
use crate::error::Result;
use crate::jobs::plan_scan;
use crate::model::{Job, Pool};
use crate::pool::PoolFolder;
use crate::request::Call;
use crate::store::images::PoolUse;

impl Service {
    /// Every pool, by name.
    ///
    /// # Errors
    /// [`crate::ErrorCode::Unavailable`] when the database does not answer.
    pub async fn pools(&self) -> Result<Vec<Pool>> {
        let used = self.inner.store.pool_use().await?;
        let pools = self.inner.pools.values();
        pools
            .map(|pool| self.describe(pool, used.get(pool.name()).copied().unwrap_or_default()))
            .collect()
    }

    /// One pool.
    ///
    /// # Errors
    /// [`crate::ErrorCode::NotFound`].
    pub async fn pool(&self, name: &str) -> Result<Pool> {
        let pool = self.inner.pool(name)?;
        let used = self.inner.store.pool_use().await?;
        self.describe(&pool, used.get(name).copied().unwrap_or_default())
    }

    /// Queues a job that registers the files found in the pool, with their chains.
    ///
    /// # Errors
    /// [`crate::ErrorCode::NotFound`].
    pub async fn scan_pool(&self, name: &str, call: &Call) -> Result<Job> {
        self.queue("scan", name, &json!({}), call, async |tx| {
            plan_scan(tx, &self.inner, name).await
        })
        .await
    }

    fn describe(&self, pool: &PoolFolder, used: PoolUse) -> Result<Pool> {
        let space = pool.space()?;
        Ok(Pool {
            name: pool.name().to_owned(),
            capacity: space.capacity,
            allocated: used.allocated,
            free: space.free,
            image_count: used.images,
            default: pool.name() == self.inner.config.default_pool,
        })
    }
}
