use uuid::Uuid;
use vdisk_engine::crypto::{SealedUnder, Secret as EngineSecret, SecretFormat, decode_secret};

use super::Service;
use super::paging::Window;
use crate::error::{ErrorCode, Result, ServiceError};
use crate::fault::Step;
use crate::model::{Page, Secret, SecretId};
use crate::pool::check_image_name;
use crate::request::{Call, NewSecret, PageRequest, SecretForm};
use crate::store::idempotency::Outcome;

impl Service {
    /// Seals and stores a secret.
    ///
    /// # Errors
    /// `invalid_name`, `name_taken`, `limit_exceeded` (too long), `invalid_argument` (empty).
    pub async fn create_secret(&self, request: NewSecret, call: &Call) -> Result<Secret> {
        check_image_name(&request.name)?;
        if request.value.is_empty() {
            return Err(ServiceError::invalid("value", "a secret is not empty"));
        }
        let limit = self.inner.config.limits.secret_bytes;
        if request.value.len() > limit {
            let public = format!("a secret has at most {limit} bytes");
            return Err(ServiceError::new(ErrorCode::LimitExceeded, public).with_field("value"));
        }
        let value = self.decode(&request).await?;
        let id = Uuid::now_v7();
        let digest = self.inner.vault.keyed_digest(&[request.name.as_bytes(), value.bytes()]);
        let key = call.bind("create_secret", "", &digest)?;
        let mut tx = self.inner.store.begin().await?;
        if let Some(Outcome::Secret(id)) = tx.recall(key.as_ref()).await? {
            drop(tx);
            return self.inner.store.secret(id).await;
        }
        let sealed = self
            .inner
            .vault
            .seal(tx.sealing_key().await?.as_deref(), id, value.bytes())?;
        let secret = tx.insert_secret(id, &request.name, &sealed).await?;
        tx.remember(key.as_ref(), Outcome::Secret(id)).await?;
        tx.commit_as(Step::CreateSecret).await?;
        Ok(secret)
    }

    /// The value itself, from the form it came in.
    async fn decode(&self, request: &NewSecret) -> Result<EngineSecret> {
        let format = match request.format {
            SecretForm::Raw => SecretFormat::Raw,
            SecretForm::Base64 => SecretFormat::Base64,
        };
        // What the decoder says may quote what it was given.
        let refused = |_| ServiceError::invalid("value", "the value cannot be decoded with this format, key and iv");
        let (keyid, iv) = match (request.keyid, &request.iv) {
            (None, None) => return decode_secret(&request.value, format, None).map_err(refused),
            (Some(keyid), Some(iv)) => (keyid, iv),
            _ => return Err(ServiceError::invalid("iv", "'keyid' and 'iv' go together")),
        };
        let sealed = self.inner.store.sealed_secret(keyid).await;
        let sealed = sealed.map_err(|error| error.with_field("keyid"))?;
        let master = EngineSecret::new(self.inner.vault.open_secret(keyid, &sealed)?.to_vec());
        let under = SealedUnder { master: &master, iv };
        decode_secret(&request.value, format, Some(under)).map_err(refused)
    }

    /// The secrets' names, oldest first.
    ///
    /// # Errors
    /// `invalid_argument` for a page token that is not ours.
    pub async fn list_secrets(&self, page: &PageRequest) -> Result<Page<Secret>> {
        let window = Window::new(page, &self.inner.config.limits)?;
        let secrets = self.inner.store.list_secrets(window.from, window.rows()).await?;
        Ok(window.page(secrets, |secret| secret.id))
    }

    /// One secret's record.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn secret(&self, id: SecretId) -> Result<Secret> {
        self.inner.store.secret(id).await
    }

    /// Deletes a secret.
    ///
    /// # Errors
    /// `not_found`; `secret_in_use` while images name it as their key, or jobs that have not ended.
    pub async fn delete_secret(&self, id: SecretId) -> Result<()> {
        let mut tx = self.inner.store.begin().await?;
        tx.delete_secret(id).await?;
        tx.commit_as(Step::DeleteSecret).await
    }
}
