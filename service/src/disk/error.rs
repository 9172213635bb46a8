//! The engine's kinds of error as the service's codes.

use std::fmt;

use vdisk_engine::{Error, ErrorKind};

use crate::error::{ErrorCode, ServiceError, without_numbers};
use crate::pool::is_disk_full;

/// The cause below an error of the gate: the file of an image on record is not there.
#[derive(Debug)]
pub(super) struct FileGone(pub String);

impl fmt::Display for FileGone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for FileGone {}

/// The cause below an error of a file that must not be changed, with what the log should say beyond it.
#[derive(Debug)]
struct Refused(ErrorCode, String, Option<String>);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.1)
    }
}

impl std::error::Error for Refused {}

/// An error of the service on its way through the engine.
pub(super) fn refused(error: ServiceError) -> Error {
    Error::new(ErrorKind::Io, "cannot begin to change the file").because(Refused(
        error.code,
        error.public,
        error.internal,
    ))
}

/// The cause of a kind, however far below.
fn cause<T: std::error::Error + 'static>(error: &Error) -> Option<&T> {
    std::iter::successors(std::error::Error::source(error), |cause| cause.source())
        .find_map(<dyn std::error::Error>::downcast_ref)
}

impl From<Error> for ServiceError {
    fn from(error: Error) -> Self {
        if let Some(Refused(code, public, internal)) = cause(&error) {
            return Self {
                internal: internal.clone(),
                ..Self::new(*code, public.clone())
            };
        }
        let code = match error.kind() {
            ErrorKind::Io if cause::<FileGone>(&error).is_some() => ErrorCode::ImageNotReady,
            ErrorKind::Io if error.io_error().is_some_and(is_disk_full) => ErrorCode::InsufficientStorage,
            ErrorKind::Io => ErrorCode::Io,
            ErrorKind::NotThisFormat => ErrorCode::FormatMismatch,
            ErrorKind::Corrupt => ErrorCode::CorruptImage,
            ErrorKind::Unsupported => ErrorCode::Unsupported,
            ErrorKind::InvalidArgument => ErrorCode::InvalidArgument,
            ErrorKind::LimitExceeded => ErrorCode::LimitExceeded,
            ErrorKind::Denied => ErrorCode::Denied,
            ErrorKind::Busy => ErrorCode::ImageBusy,
            ErrorKind::WrongKey => ErrorCode::WrongKey,
            ErrorKind::Cancelled => ErrorCode::Cancelled,
            _ => ErrorCode::Internal,
        };
        // Places in engine messages are the names we opened the files under: names inside the pool, no paths.
        let text = error.to_string();
        let words = without_numbers(&text);
        if words == text {
            return Self::new(code, words);
        }
        Self::new(code, words).with_internal(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_has_its_own_code() {
        let full = Error::io("cannot write", std::io::Error::from(std::io::ErrorKind::StorageFull));
        assert_eq!(ServiceError::from(full).code, ErrorCode::InsufficientStorage);
        let other = Error::io("cannot write", std::io::Error::other("cable"));
        assert_eq!(ServiceError::from(other).code, ErrorCode::Io);
    }

    #[test]
    fn numbers_of_the_operating_system_are_for_the_log() {
        let error = ServiceError::from(Error::io("cannot write", std::io::Error::from_raw_os_error(5)));
        assert!(
            error.public.starts_with("cannot write: ") && !error.public.contains("os error"),
            "{error}"
        );
        assert!(error.internal.unwrap().ends_with("(os error 5)"));
        // As an HTTP client reports it: an error within an error.
        let inner = std::io::Error::other(format!("io: {}", std::io::Error::from_raw_os_error(111)));
        let error = ServiceError::from(Error::io("cannot fetch", inner));
        assert!(
            error.public.starts_with("cannot fetch: io: ") && !error.public.contains("os error"),
            "{error}"
        );
    }
}
