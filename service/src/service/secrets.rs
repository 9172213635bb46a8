use super::{Service, waiting};
use crate::error::Result;
use crate::model::{Page, Secret, SecretId};
use crate::request::{Call, NewSecret, PageRequest};

impl Service {
    /// Seals and stores a secret.
    ///
    /// # Errors
    /// `invalid_name`, `name_taken`, `limit_exceeded` (too long), `invalid_argument` (empty).
    pub async fn create_secret(&self, _request: NewSecret, _call: &Call) -> Result<Secret> {
        Err(waiting("secrets"))
    }

    /// The secrets' names, oldest first.
    ///
    /// # Errors
    /// `invalid_argument` for a page token that is not ours.
    pub async fn list_secrets(&self, _page: &PageRequest) -> Result<Page<Secret>> {
        Err(waiting("secrets"))
    }

    /// One secret's record.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn secret(&self, _id: SecretId) -> Result<Secret> {
        Err(waiting("secrets"))
    }

    /// Deletes a secret. Jobs that still need it will fail.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn delete_secret(&self, _id: SecretId) -> Result<()> {
        Err(waiting("secrets"))
    }
}
