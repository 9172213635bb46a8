use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::model::Role;

/// A token to make.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// Who or what will hold it: unique, `[A-Za-z0-9._-]{1,128}`.
    pub name: String,
    /// What its holder may do.
    pub role: Role,
    /// Days until it stops to count, at most 3650; without, it counts until it is revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 3650)]
    pub expires_in_days: Option<u32>,
}
