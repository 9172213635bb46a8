use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use sha2::{Digest, Sha256};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::Service;
use super::paging::Window;
use crate::disk::try_random;
use crate::error::{ErrorCode, Result, ServiceError};
use crate::fault::Step;
use crate::model::{ANONYMOUS, Page, Token, TokenId};
use crate::pool::check_image_name;
use crate::request::{Call, NewToken, PageRequest};
use crate::secrets::hex;
use crate::store::idempotency::Outcome;

/// What every token starts with, so that scanners for leaked secrets know one.
const PREFIX: &str = "vdiskd_";
const RANDOM_BYTES: usize = 32;
const DAY: Duration = Duration::from_secs(24 * 3600);
const DAYS_MAX: u32 = 3650;

/// A token itself: told once, to who made it.
#[derive(Clone, Serialize)]
#[serde(transparent)]
pub struct TokenText(String);

impl TokenText {
    fn random() -> Result<Self> {
        let mut bytes = Zeroizing::new([0; RANDOM_BYTES]);
        try_random(bytes.as_mut_slice()).map_err(ServiceError::internal)?;
        Ok(Self(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes.as_slice()))))
    }

    /// The text, to be shown.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl Drop for TokenText {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.0);
    }
}

impl fmt::Debug for TokenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenText(..)")
    }
}

impl Service {
    /// Makes a token. Its text comes with the first answer alone: a request repeated under the same idempotency key gets
    /// the record without it.
    ///
    /// # Errors
    /// `invalid_name`, `name_taken`, `invalid_argument` (a time out of range).
    pub async fn create_token(&self, request: NewToken, call: &Call) -> Result<(Token, Option<TokenText>)> {
        check_image_name(&request.name)?;
        if request.name.eq_ignore_ascii_case(ANONYMOUS) {
            let public = format!(
                "a token has another name than '{ANONYMOUS}', which the audit log calls callers without a token"
            );
            return Err(ServiceError::new(ErrorCode::InvalidName, public).with_field("name"));
        }
        if request.expires_in_days.is_some_and(|days| days == 0 || days > DAYS_MAX) {
            let public = format!("a token lasts 1 to {DAYS_MAX} days, or until it is revoked");
            return Err(ServiceError::invalid("expires_in_days", public));
        }
        let key = call.bind("create_token", "", &request)?;
        let text = TokenText::random()?;
        let mut tx = self.inner.store.begin().await?;
        if let Some(Outcome::Token(id)) = tx.recall(key.as_ref()).await? {
            drop(tx);
            return Ok((self.inner.store.token(id).await?, None));
        }
        let id = Uuid::now_v7();
        let expires_at = request
            .expires_in_days
            .map(|days| tx.now.after(DAY.saturating_mul(days)));
        let token = tx
            .insert_token(id, &request.name, request.role, &hash(text.reveal()), expires_at)
            .await?;
        tx.remember(key.as_ref(), Outcome::Token(id)).await?;
        tx.commit_as(Step::CreateToken).await?;
        Ok((token, Some(text)))
    }

    /// The tokens' records, oldest first.
    ///
    /// # Errors
    /// `invalid_argument` for a page token that is not ours.
    pub async fn list_tokens(&self, page: &PageRequest) -> Result<Page<Token>> {
        let window = Window::new(page, &self.inner.config.limits)?;
        let tokens = self.inner.store.list_tokens(window.from, window.rows()).await?;
        Ok(window.page(tokens, |token| token.id))
    }

    /// One token's record.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn token(&self, id: TokenId) -> Result<Token> {
        self.inner.store.token(id).await
    }

    /// Makes a token count no more, from the next request on.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn revoke_token(&self, id: TokenId) -> Result<()> {
        let mut tx = self.inner.store.begin().await?;
        tx.delete_token(id).await?;
        tx.commit_as(Step::RevokeToken).await
    }

    /// Whether there is a token that counts now.
    ///
    /// # Errors
    /// [`crate::ErrorCode::Unavailable`] when the database does not answer.
    pub async fn has_tokens(&self) -> Result<bool> {
        self.inner.store.any_token().await
    }

    /// Whose token this is; `None` when it is nobody's, or counts no more.
    ///
    /// The row is looked up by the hash: how long that takes says something of the hash's bytes at most, and who knows no
    /// token cannot choose those. The comparison of the whole hash takes the same time wherever it differs.
    ///
    /// # Errors
    /// [`crate::ErrorCode::Unavailable`] when the database does not answer.
    pub async fn authenticate(&self, presented: &str) -> Result<Option<Token>> {
        if presented.len() > 256 || !presented.starts_with(PREFIX) {
            return Ok(None);
        }
        let hashed = hash(presented);
        let found = self.inner.store.token_by_hash(&hashed).await?;
        let now = self.inner.store.now();
        Ok(found
            .filter(|(_, stored)| same(stored.as_bytes(), hashed.as_bytes()))
            .map(|(token, _)| token)
            .filter(|token| token.expires_at.is_none_or(|end| end > now)))
    }
}

fn hash(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}
