use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::text_enum;
use crate::Timestamp;

/// Id of a token, a UUIDv7.
pub type TokenId = Uuid;

text_enum! {
    /// What a caller may do. Each role may do what those before it may.
    #[derive(PartialOrd, Ord)]
    Role, "role" {
        /// Sees images, their bytes, jobs, pools and formats.
        Reader = "reader",
        /// Makes, changes and deletes images, runs jobs, keeps secrets.
        Operator = "operator",
        /// Gives out tokens, reads the audit log, registers webhooks.
        Admin = "admin",
    }
}

/// A bearer token as it is shown: never the token itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Token {
    /// Id by which it is revoked.
    #[schema(value_type = Uuid)]
    pub id: TokenId,
    /// Who or what holds it, unique.
    pub name: String,
    /// What its holder may do.
    pub role: Role,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it stops to count; null for never.
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
}

/// What the audit log calls a caller whom nobody knows. No token is named like that.
pub const ANONYMOUS: &str = "anonymous";

/// One request that changed something, or tried to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct AuditEntry {
    /// Id of the entry; later entries have greater ones.
    #[schema(value_type = Uuid)]
    pub id: Uuid,
    /// When it was answered.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Name of the token, name of the client's certificate (`certificate:` and the start of its SHA-256), or `anonymous`.
    pub caller: String,
    /// The caller's role; null when there was no valid token.
    #[schema(required)]
    pub role: Option<Role>,
    /// `http` or `grpc`.
    pub transport: String,
    /// Method and route, or the name of the call: `POST /v1/images`, `ImageService/CreateImage`.
    pub action: String,
    /// The path that was called, without its query; empty over gRPC.
    pub target: String,
    /// The HTTP status, or the gRPC code.
    pub outcome: String,
    /// The request's `X-Request-Id`.
    #[schema(required)]
    pub request_id: Option<String>,
}
