use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

use crate::config::ServiceLimits;
use crate::error::{Result, ServiceError};
use crate::model::Page;
use crate::request::PageRequest;

/// Where a page starts and how long it is.
pub struct Window {
    /// The last id of the page before.
    pub from: Option<Uuid>,
    size: u32,
}

impl Window {
    /// Reads what a client asked for.
    ///
    /// # Errors
    /// `invalid_argument` for a token that is not ours.
    pub fn new(request: &PageRequest, limits: &ServiceLimits) -> Result<Self> {
        let from = match request.page_token.as_deref().filter(|token| !token.is_empty()) {
            Some(token) => Some(decode(token)?),
            None => None,
        };
        let wanted = request
            .page_size
            .filter(|size| *size > 0)
            .unwrap_or(limits.page_size_default);
        Ok(Self {
            from,
            size: wanted.min(limits.page_size_max).max(1),
        })
    }

    /// How many rows to ask for: one more than shown, to know whether there are more.
    pub fn rows(&self) -> u32 {
        self.size.saturating_add(1)
    }

    /// The page of the rows that came.
    pub fn page<T>(&self, mut items: Vec<T>, id: impl Fn(&T) -> Uuid) -> Page<T> {
        let size = usize::try_from(self.size).unwrap_or(usize::MAX);
        let more = items.len() > size;
        items.truncate(size);
        let last = items.last().filter(|_| more);
        Page {
            next_page_token: last.map(|item| URL_SAFE_NO_PAD.encode(id(item).as_bytes())),
            items,
        }
    }
}

fn decode(token: &str) -> Result<Uuid> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok();
    let id = bytes.and_then(|bytes| Uuid::from_slice(&bytes).ok());
    id.ok_or_else(|| ServiceError::invalid("page_token", "the page token is not one of ours"))
}
