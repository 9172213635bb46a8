//! Service errors as gRPC statuses with details.

use std::collections::HashMap;

use tonic::Status;
use tonic::metadata::MetadataValue;
use tonic_types::{ErrorDetails, StatusExt};
use vdisk_service::ServiceError;

use crate::errors;

/// Domain of the error reasons.
pub const DOMAIN: &str = "vdisk.v1";

/// The status of an error: its gRPC code, its public text, and the stable code as `google.rpc.ErrorInfo`.
pub fn of(error: ServiceError) -> Status {
    let row = errors::row(error.code);
    if row.status.is_server_error() {
        tracing::error!(code = row.code, detail = error.internal, "{}", error.public);
    } else {
        tracing::debug!(code = row.code, detail = error.internal, "{}", error.public);
    }
    let mut metadata = HashMap::new();
    if !error.dependents.is_empty() {
        let ids: Vec<_> = error.dependents.iter().map(ToString::to_string).collect();
        metadata.insert("dependents".to_owned(), ids.join(","));
    }
    metadata.extend(error.field.map(|field| ("field".to_owned(), field)));
    metadata.extend(
        error
            .range_total
            .map(|total| ("range_total".to_owned(), total.to_string())),
    );
    let details = ErrorDetails::with_error_info(row.code, DOMAIN, metadata);
    let mut status = Status::with_error_details(row.grpc, error.public, details);
    status
        .metadata_mut()
        .insert("vdisk-error-code", MetadataValue::from_static(row.code));
    status
}

/// The status of what is refused before the service is asked.
pub fn of_transport(code: errors::TransportCode, detail: &str) -> Status {
    let row = code.row();
    let details = ErrorDetails::with_error_info(row.code, DOMAIN, HashMap::new());
    let mut status = Status::with_error_details(row.grpc, detail, details);
    status
        .metadata_mut()
        .insert("vdisk-error-code", MetadataValue::from_static(row.code));
    status
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use vdisk_service::ErrorCode;

    use super::*;

    #[test]
    fn details_carry_the_stable_code_and_the_dependents() {
        let id = Uuid::from_u128(7);
        let error = ServiceError::new(ErrorCode::ConflictDependents, "in use").with_dependents(vec![id]);
        let status = of(error);
        let info = status.get_details_error_info().unwrap();
        assert_eq!(status.code(), tonic::Code::FailedPrecondition);
        assert_eq!(
            (info.reason.as_str(), info.domain.as_str()),
            ("conflict_dependents", DOMAIN)
        );
        assert_eq!(info.metadata.get("dependents"), Some(&id.to_string()));
    }
}
