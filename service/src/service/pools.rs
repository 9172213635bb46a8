use super::{Service, waiting};
use crate::error::Result;
use crate::model::{Job, Pool};
use crate::request::Call;

impl Service {
    /// Every pool, by name.
    ///
    /// # Errors
    /// [`crate::ErrorCode::Unavailable`] when the database does not answer.
    pub async fn pools(&self) -> Result<Vec<Pool>> {
        Err(waiting("pools"))
    }

    /// One pool.
    ///
    /// # Errors
    /// [`crate::ErrorCode::NotFound`].
    pub async fn pool(&self, _name: &str) -> Result<Pool> {
        Err(waiting("pools"))
    }

    /// Queues a job that registers the files found in the pool, with their chains.
    ///
    /// # Errors
    /// [`crate::ErrorCode::NotFound`].
    pub async fn scan_pool(&self, _name: &str, _call: &Call) -> Result<Job> {
        Err(waiting("scan"))
    }
}
