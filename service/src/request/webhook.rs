use std::fmt;

use serde::Deserialize;
use utoipa::ToSchema;
use zeroize::Zeroizing;

use super::values::secret_text;
use crate::model::EventKind;

/// A webhook to register.
#[derive(Clone, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewWebhook {
    /// `http://` or `https://`, without user and fragment.
    pub url: String,
    /// Which events; all but `job.progress` when absent.
    #[serde(default)]
    pub events: Vec<EventKind>,
    /// What deliveries are signed with, 16 bytes or more; never returned.
    #[serde(deserialize_with = "secret_text")]
    #[schema(value_type = String, format = Password)]
    pub secret: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for NewWebhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewWebhook")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}
