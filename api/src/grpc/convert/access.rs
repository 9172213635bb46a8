use vdisk_service::ServiceError;
use vdisk_service::model::{AuditEntry, Role, Token};
use vdisk_service::request::NewToken;

use super::value::{known, timestamp};
use crate::proto;

impl From<Role> for proto::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Reader => Self::Reader,
            Role::Operator => Self::Operator,
            Role::Admin => Self::Admin,
        }
    }
}

impl From<Token> for proto::Token {
    fn from(token: Token) -> Self {
        Self {
            id: token.id.to_string(),
            name: token.name,
            role: proto::Role::from(token.role).into(),
            created_at: timestamp(token.created_at),
            expires_at: token.expires_at.and_then(timestamp),
        }
    }
}

impl TryFrom<proto::CreateTokenRequest> for NewToken {
    type Error = ServiceError;

    fn try_from(request: proto::CreateTokenRequest) -> Result<Self, ServiceError> {
        let role = match known("role", request.role)? {
            proto::Role::Unspecified => return Err(ServiceError::invalid("role", "role must be given")),
            proto::Role::Reader => Role::Reader,
            proto::Role::Operator => Role::Operator,
            proto::Role::Admin => Role::Admin,
        };
        Ok(Self {
            name: request.name,
            role,
            expires_in_days: request.expires_in_days,
        })
    }
}

impl From<AuditEntry> for proto::AuditEntry {
    fn from(entry: AuditEntry) -> Self {
        let role = entry.role.map_or(proto::Role::Unspecified, Into::into);
        Self {
            id: entry.id.to_string(),
            at: timestamp(entry.at),
            caller: entry.caller,
            role: role.into(),
            transport: entry.transport,
            action: entry.action,
            target: entry.target,
            outcome: entry.outcome,
            request_id: entry.request_id,
        }
    }
}
