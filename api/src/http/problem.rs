//! Errors as RFC 9457 problem+json.

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;
use vdisk_service::{ErrorCode, ServiceError};

use crate::errors::{self, Row, TransportCode};

/// Media type of problems.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// What went wrong (RFC 9457).
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Problem {
    /// A URI for the kind of problem: `urn:vdisk:problem:` and the code.
    #[serde(rename = "type")]
    #[schema(value_type = String)]
    pub kind: Box<str>,
    /// The kind of problem in a few words; the same for every problem of this code.
    pub title: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// Why, and how to go on.
    #[schema(value_type = String)]
    pub detail: Box<str>,
    /// Stable code for programs (`not_found`, `conflict_dependents`, ...).
    pub code: &'static str,
    /// The request field at fault (`options.cluster_size`).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub field: Option<Box<str>>,
    /// With `conflict_dependents`: ids of the images built on the one in question.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Uuid>>)]
    pub dependents: Option<Box<[Uuid]>>,
    /// With `range_not_satisfiable` and `upload_offset_mismatch`: the size to go by, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range_total: Option<u64>,
}

/// Result of every handler.
pub type Answer<T> = Result<T, Problem>;

impl Problem {
    /// A problem met before the service was asked.
    pub fn transport(code: TransportCode, detail: impl Into<String>) -> Self {
        Self::of(code.row(), detail.into())
    }

    /// Names the request field at fault.
    pub fn with_field(mut self, field: impl Into<Box<str>>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// A problem of this row as the documentation shows it.
    pub fn example(row: Row) -> Self {
        let conflict = row.code == ErrorCode::ConflictDependents.as_str();
        Self {
            dependents: conflict.then(|| [Uuid::from_u128(0x01890a5d_ac96_774b_bcce_b302099a8057)].into()),
            ..Self::of(
                row,
                "a sentence that says what was expected and what was found".to_owned(),
            )
        }
    }

    fn of(row: Row, detail: String) -> Self {
        Self {
            kind: format!("urn:vdisk:problem:{}", row.code).into(),
            title: row.title,
            status: row.status.as_u16(),
            detail: detail.into(),
            code: row.code,
            field: None,
            dependents: None,
            range_total: None,
        }
    }
}

impl From<ServiceError> for Problem {
    fn from(error: ServiceError) -> Self {
        let row = errors::row(error.code);
        if row.status.is_server_error() {
            tracing::error!(code = row.code, detail = error.internal, "{}", error.public);
        } else {
            tracing::debug!(code = row.code, detail = error.internal, "{}", error.public);
        }
        let conflict = error.code == ErrorCode::ConflictDependents;
        Self {
            field: error.field.map(Into::into),
            dependents: conflict.then(|| error.dependents.into()),
            range_total: error.range_total,
            ..Self::of(row, error.public)
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = http::StatusCode::from_u16(self.status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
        let outside = (self.code == "range_not_satisfiable")
            .then_some(self.range_total)
            .flatten();
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if let Some(Ok(value)) = outside.map(|total| HeaderValue::try_from(format!("bytes */{total}"))) {
            headers.insert(header::CONTENT_RANGE, value);
        }
        response
    }
}
