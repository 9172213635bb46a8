//! The one table from error codes to HTTP statuses and gRPC codes.

use http::StatusCode;
use tonic::Code;
use vdisk_service::ErrorCode;

/// How a code shows in both transports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Stable code as clients see it.
    pub code: &'static str,
    /// HTTP status.
    pub status: StatusCode,
    /// gRPC code.
    pub grpc: Code,
    /// The same sentence for every error of this code.
    pub title: &'static str,
}

/// What a transport refuses before the service is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportCode {
    /// No such path.
    NoSuchPath,
    /// The path does not know the method.
    MethodNotAllowed,
    /// The body is not JSON.
    MalformedBody,
    /// A header or the query cannot be read.
    MalformedRequest,
    /// The body is larger than a JSON body may be.
    BodyTooLarge,
    /// The body is of another media type than is read here.
    UnsupportedMediaType,
    /// A web page of another site sent the request.
    CrossOrigin,
    /// The request calls the service by a name that is not its own.
    UnknownHost,
    /// The path and query are longer than any client needs.
    TargetTooLong,
    /// The header fields are larger than any client needs.
    HeadersTooLarge,
    /// The body did not arrive in time.
    BodyTooSlow,
    /// `If-Match` or `If-None-Match` asks for another version than there is.
    PreconditionFailed,
    /// The request carries no token that counts.
    Unauthenticated,
    /// The caller's role does not allow the request.
    Forbidden,
}

impl TransportCode {
    /// Every code.
    pub const ALL: &'static [Self] = &[
        Self::NoSuchPath,
        Self::MethodNotAllowed,
        Self::MalformedBody,
        Self::MalformedRequest,
        Self::BodyTooLarge,
        Self::UnsupportedMediaType,
        Self::CrossOrigin,
        Self::UnknownHost,
        Self::TargetTooLong,
        Self::HeadersTooLarge,
        Self::BodyTooSlow,
        Self::PreconditionFailed,
        Self::Unauthenticated,
        Self::Forbidden,
    ];

    /// Its row.
    pub fn row(self) -> Row {
        use StatusCode as S;
        let (code, status, grpc, title) = match self {
            Self::NoSuchPath => ("no_such_path", S::NOT_FOUND, Code::Unimplemented, "no such path"),
            Self::MethodNotAllowed => (
                "method_not_allowed",
                S::METHOD_NOT_ALLOWED,
                Code::Unimplemented,
                "method not allowed",
            ),
            Self::MalformedBody => (
                "malformed_body",
                S::BAD_REQUEST,
                Code::InvalidArgument,
                "body is not JSON",
            ),
            Self::MalformedRequest => (
                "malformed_request",
                S::BAD_REQUEST,
                Code::InvalidArgument,
                "request cannot be read",
            ),
            Self::BodyTooLarge => (
                "body_too_large",
                S::PAYLOAD_TOO_LARGE,
                Code::ResourceExhausted,
                "body too large",
            ),
            Self::UnsupportedMediaType => (
                "unsupported_media_type",
                S::UNSUPPORTED_MEDIA_TYPE,
                Code::InvalidArgument,
                "wrong media type",
            ),
            Self::CrossOrigin => (
                "cross_origin",
                S::FORBIDDEN,
                Code::PermissionDenied,
                "request of another site",
            ),
            Self::UnknownHost => (
                "unknown_host",
                S::MISDIRECTED_REQUEST,
                Code::PermissionDenied,
                "not a name of this service",
            ),
            Self::TargetTooLong => (
                "target_too_long",
                S::URI_TOO_LONG,
                Code::InvalidArgument,
                "path or query too long",
            ),
            Self::HeadersTooLarge => (
                "headers_too_large",
                S::REQUEST_HEADER_FIELDS_TOO_LARGE,
                Code::ResourceExhausted,
                "header fields too large",
            ),
            Self::BodyTooSlow => (
                "body_too_slow",
                S::REQUEST_TIMEOUT,
                Code::DeadlineExceeded,
                "body did not arrive in time",
            ),
            Self::PreconditionFailed => (
                "precondition_failed",
                S::PRECONDITION_FAILED,
                Code::FailedPrecondition,
                "a condition is not fulfilled",
            ),
            Self::Unauthenticated => (
                "unauthenticated",
                S::UNAUTHORIZED,
                Code::Unauthenticated,
                "token required",
            ),
            Self::Forbidden => (
                "forbidden",
                S::FORBIDDEN,
                Code::PermissionDenied,
                "role does not allow it",
            ),
        };
        Row {
            code,
            status,
            grpc,
            title,
        }
    }
}

/// The row of a service code. A code that is not in the table yet is shown as an internal error; a test finds it.
pub fn row(code: ErrorCode) -> Row {
    use ErrorCode as E;
    use StatusCode as S;
    let (status, grpc, title) = match code {
        E::NotFound => (S::NOT_FOUND, Code::NotFound, "not found"),
        E::InvalidArgument => (S::UNPROCESSABLE_ENTITY, Code::InvalidArgument, "invalid argument"),
        E::InvalidName => (S::UNPROCESSABLE_ENTITY, Code::InvalidArgument, "invalid name"),
        E::NameTaken => (S::CONFLICT, Code::AlreadyExists, "name is taken"),
        E::ConflictDependents => (
            S::CONFLICT,
            Code::FailedPrecondition,
            "other images are built on this one",
        ),
        E::ConflictCycle => (S::CONFLICT, Code::FailedPrecondition, "the chain would contain itself"),
        E::ImageBusy => (S::CONFLICT, Code::Aborted, "image is in use"),
        E::ImageNotReady => (S::CONFLICT, Code::FailedPrecondition, "image is not ready"),
        E::ImageProtected => (S::CONFLICT, Code::FailedPrecondition, "image is protected"),
        E::JobStateConflict => (S::CONFLICT, Code::FailedPrecondition, "job is in another state"),
        E::IdempotencyConflict => (S::CONFLICT, Code::AlreadyExists, "idempotency key was used before"),
        E::BaseChanged => (S::CONFLICT, Code::FailedPrecondition, "base has changed"),
        E::Unsupported => (S::UNPROCESSABLE_ENTITY, Code::Unimplemented, "not supported"),
        E::FormatMismatch => (S::UNPROCESSABLE_ENTITY, Code::InvalidArgument, "format does not match"),
        E::CorruptImage => (S::UNPROCESSABLE_ENTITY, Code::DataLoss, "image is corrupt"),
        E::InspectionFailed => (S::UNPROCESSABLE_ENTITY, Code::Aborted, "file could not be looked at"),
        E::LimitExceeded => (S::UNPROCESSABLE_ENTITY, Code::ResourceExhausted, "limit exceeded"),
        E::Denied => (S::FORBIDDEN, Code::PermissionDenied, "denied"),
        E::WrongKey => (
            S::UNPROCESSABLE_ENTITY,
            Code::InvalidArgument,
            "secret does not open the image",
        ),
        E::SecretInUse => (S::CONFLICT, Code::FailedPrecondition, "secret is in use"),
        E::SecretRequired => (S::UNPROCESSABLE_ENTITY, Code::InvalidArgument, "secret required"),
        E::ChecksumMismatch => (S::UNPROCESSABLE_ENTITY, Code::DataLoss, "checksum does not match"),
        E::UploadOffsetMismatch => (S::CONFLICT, Code::OutOfRange, "upload goes on elsewhere"),
        E::RangeNotSatisfiable => (S::RANGE_NOT_SATISFIABLE, Code::OutOfRange, "range not satisfiable"),
        E::UploadInterrupted => (S::BAD_REQUEST, Code::Aborted, "upload was interrupted"),
        E::InsufficientStorage => (S::INSUFFICIENT_STORAGE, Code::ResourceExhausted, "insufficient storage"),
        E::Cancelled => (S::CONFLICT, Code::Cancelled, "cancelled"),
        E::LeaseLost => (S::SERVICE_UNAVAILABLE, Code::Unavailable, "worker lost its lease"),
        E::AttemptsExhausted => (S::INTERNAL_SERVER_ERROR, Code::Aborted, "attempts exhausted"),
        E::Unavailable => (S::SERVICE_UNAVAILABLE, Code::Unavailable, "unavailable"),
        E::Io => (S::INTERNAL_SERVER_ERROR, Code::Internal, "storage error"),
        _ => (S::INTERNAL_SERVER_ERROR, Code::Internal, "internal error"),
    };
    Row {
        code: code.as_str(),
        status,
        grpc,
        title,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_service_code_has_a_row_of_its_own() {
        for code in ErrorCode::ALL.iter().filter(|code| **code != ErrorCode::Internal) {
            assert_ne!(row(*code).title, "internal error", "{code} is missing in the table");
        }
    }

    #[test]
    fn every_row_is_an_error_in_both_transports() {
        let service = ErrorCode::ALL.iter().map(|code| row(*code));
        for row in service.chain(TransportCode::ALL.iter().map(|code| code.row())) {
            assert!(row.status.is_client_error() || row.status.is_server_error(), "{row:?}");
            assert_ne!(row.grpc, Code::Ok, "{row:?}");
        }
    }

    #[test]
    fn transport_codes_do_not_shadow_service_codes() {
        for code in TransportCode::ALL {
            assert!(code.row().code.parse::<ErrorCode>().is_err(), "{code:?}");
        }
    }
}
