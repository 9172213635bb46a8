//! What can go wrong, as codes that stay stable across releases.

use std::fmt;

use crate::model::ImageId;

/// Result of every service call.
pub type Result<T, E = ServiceError> = std::result::Result<T, E>;

macro_rules! error_codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// A stable, machine-readable reason. The text form is `snake_case` and part of the public contract.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[$doc])* $variant,)*
        }

        impl ErrorCode {
            /// Every code, in the order of the documentation.
            pub const ALL: &'static [ErrorCode] = &[$(ErrorCode::$variant,)*];

            /// The text of the code as clients see it.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(ErrorCode::$variant => $text,)*
                }
            }
        }
    };
}

error_codes! {
    /// No image, job, pool, secret or snapshot has that id or name.
    NotFound = "not_found",
    /// A field is missing, out of range or contradicts another.
    InvalidArgument = "invalid_argument",
    /// A name is not `[A-Za-z0-9._-]{1,128}` or starts with `.` or `-`.
    InvalidName = "invalid_name",
    /// The name is taken in its pool (images), in the image (snapshots) or among the secrets.
    NameTaken = "name_taken",
    /// Other images are built on this one; `dependents` lists them.
    ConflictDependents = "conflict_dependents",
    /// The new backing image would make a chain that contains itself.
    ConflictCycle = "conflict_cycle",
    /// Another job or request holds the image.
    ImageBusy = "image_busy",
    /// The image is still uploading, missing or failed.
    ImageNotReady = "image_not_ready",
    /// The image is protected against deletion and change.
    ImageProtected = "image_protected",
    /// The job has ended, or is not in a state that allows the request.
    JobStateConflict = "job_state_conflict",
    /// The idempotency key was used before with another request, or its request was cut off and may not be carried out again.
    IdempotencyConflict = "idempotency_conflict",
    /// The base image is not the one that the overlay was made on.
    BaseChanged = "base_changed",
    /// The request is well-formed, but this format, option or combination is not supported.
    Unsupported = "unsupported",
    /// The file is of another format than was claimed, or its format cannot be told.
    FormatMismatch = "format_mismatch",
    /// The image breaks the rules of its format.
    CorruptImage = "corrupt_image",
    /// The process that looked at the file died or took too long.
    InspectionFailed = "inspection_failed",
    /// A limit on size, depth, cost or count was met.
    LimitExceeded = "limit_exceeded",
    /// The image refers to a file outside the inventory, or policy forbids the request.
    Denied = "denied",
    /// The secret does not open the image.
    WrongKey = "wrong_key",
    /// Images name the secret as their key; `dependents` lists them.
    SecretInUse = "secret_in_use",
    /// A secret is needed and none was named.
    SecretRequired = "secret_required",
    /// The bytes received do not match the checksum that was announced.
    ChecksumMismatch = "checksum_mismatch",
    /// The uploaded part does not start where the last one ended; `range_total` says how many bytes are stored.
    UploadOffsetMismatch = "upload_offset_mismatch",
    /// The requested range lies outside; `range_total` is the size of the whole.
    RangeNotSatisfiable = "range_not_satisfiable",
    /// The client went away before the body was complete; what arrived is kept.
    UploadInterrupted = "upload_interrupted",
    /// The pool or the disk below it is full.
    InsufficientStorage = "insufficient_storage",
    /// The work was cancelled.
    Cancelled = "cancelled",
    /// The worker lost its lease; another one takes the job over.
    LeaseLost = "lease_lost",
    /// The job was tried as often as is allowed and its worker died each time.
    AttemptsExhausted = "attempts_exhausted",
    /// The service is starting, stopping or its database does not answer.
    Unavailable = "unavailable",
    /// The storage below reported an error.
    Io = "io_error",
    /// A bug or a broken installation; details are in the log only.
    Internal = "internal",
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for ErrorCode {
    type Err = UnknownErrorCode;

    fn from_str(text: &str) -> std::result::Result<Self, UnknownErrorCode> {
        Self::ALL
            .iter()
            .copied()
            .find(|code| code.as_str() == text)
            .ok_or(UnknownErrorCode)
    }
}

/// The text names no [`ErrorCode`].
#[derive(Debug)]
pub struct UnknownErrorCode;

/// What the operating system's errors say, without their numbers: the words are for everybody, the numbers for the log.
pub fn without_numbers(text: &str) -> String {
    let mut parts = text.split(" (os error ");
    let mut words = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once(')') {
            Some((number, rest)) if number.parse::<i32>().is_ok() => words.push_str(rest),
            _ => words.extend([" (os error ", part]),
        }
    }
    words
}

/// An error with a text for the client and, apart from it, one for the log.
#[derive(Debug)]
pub struct ServiceError {
    /// Why, for programs.
    pub code: ErrorCode,
    /// Why and how to go on, for the person who asked. Holds no path and no secret.
    pub public: String,
    /// What the log should say beyond `public`; never sent to a client.
    pub internal: Option<String>,
    /// With [`ErrorCode::ConflictDependents`] the images built on the one in question, with [`ErrorCode::SecretInUse`] those it opens.
    pub dependents: Vec<ImageId>,
    /// With [`ErrorCode::RangeNotSatisfiable`] and [`ErrorCode::UploadOffsetMismatch`]: the size to go by, in bytes.
    pub range_total: Option<u64>,
    /// The request field at fault, when there is one (`backing`, `options.cluster_size`).
    pub field: Option<String>,
}

impl ServiceError {
    /// An error with a public text.
    pub fn new(code: ErrorCode, public: impl Into<String>) -> Self {
        let (internal, dependents, range_total, field) = (None, Vec::new(), None, None);
        Self {
            code,
            public: public.into(),
            internal,
            dependents,
            range_total,
            field,
        }
    }

    /// [`ErrorCode::NotFound`] for a thing of this kind, which goes by its id.
    pub fn not_found(kind: &str, id: impl fmt::Display) -> Self {
        Self::new(ErrorCode::NotFound, format!("no {kind} has the id '{id}'"))
    }

    /// [`ErrorCode::NotFound`] for a thing that goes by its name too.
    pub fn no_such_name(kind: &str, name: impl fmt::Display) -> Self {
        Self::new(ErrorCode::NotFound, format!("no {kind} has the id or name '{name}'"))
    }

    /// [`ErrorCode::InvalidArgument`] that names the field at fault.
    pub fn invalid(field: &str, public: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, public).with_field(field)
    }

    /// [`ErrorCode::Internal`]: the client learns nothing but that it happened, the log learns the rest.
    pub fn internal(detail: impl fmt::Display) -> Self {
        Self::new(ErrorCode::Internal, "internal error; the service's log has the details").with_internal(detail)
    }

    /// Adds what only the log may see.
    pub fn with_internal(mut self, detail: impl fmt::Display) -> Self {
        self.internal = Some(detail.to_string());
        self
    }

    /// Names the request field at fault.
    pub fn with_field(mut self, field: &str) -> Self {
        self.field = Some(field.to_owned());
        self
    }

    /// Lists the images built on the one in question.
    pub fn with_dependents(mut self, dependents: Vec<ImageId>) -> Self {
        self.dependents = dependents;
        self
    }

    /// Gives the size that a range should have gone by.
    pub fn with_range_total(mut self, total: u64) -> Self {
        self.range_total = Some(total);
        self
    }
}

impl fmt::Display for ServiceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.public)?;
        match &self.internal {
            Some(detail) => write!(f, " ({detail})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ServiceError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_reads_back_from_its_text() {
        for code in ErrorCode::ALL {
            assert_eq!(code.as_str().parse::<ErrorCode>().unwrap(), *code);
        }
    }

    #[test]
    fn codes_are_distinct_snake_case() {
        let mut texts: Vec<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        assert!(
            texts
                .iter()
                .all(|text| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'))
        );
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), ErrorCode::ALL.len());
    }
}
