//! The engine's one error type.

use std::fmt;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What class of thing went wrong: what a caller can decide by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operating system refused or failed; [`Error::io_kind`] tells more.
    Io,
    /// The bytes are not of the format they were opened as.
    NotThisFormat,
    /// The image contradicts its format's specification.
    Corrupt,
    /// Valid, but this engine (or this format) cannot do it.
    Unsupported,
    /// The caller asked for something that makes no sense.
    InvalidArgument,
    /// One of the [`Limits`](crate::Limits) would be exceeded.
    LimitExceeded,
    /// The open gate, or the read-only state of something, forbids it.
    Denied,
    /// Somebody else holds a lock that excludes us.
    Busy,
    /// No key, or not the right one.
    WrongKey,
    /// The operation's cancel token was set.
    Cancelled,
}

/// An error: what was expected and what was found, where, and why.
///
/// Messages are lower-case without a full stop. `place` names the image or the field; `source` is the cause below.
pub struct Error {
    kind: ErrorKind,
    what: String,
    place: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// A new error of `kind` with the sentence `what`.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self {
            kind,
            what: what.into(),
            place: None,
            source: None,
        }
    }
    /// The bytes are not of this format.
    pub fn not_this_format(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotThisFormat, what)
    }
    /// The image contradicts its specification.
    pub fn corrupt(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, what)
    }
    /// Valid, but cannot be done here.
    pub fn unsupported(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, what)
    }
    /// The caller's mistake.
    pub fn invalid(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, what)
    }
    /// A limit would be exceeded.
    pub fn limit(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::LimitExceeded, what)
    }
    /// Forbidden.
    pub fn denied(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Denied, what)
    }
    /// A lock is held by somebody else.
    pub fn busy(what: impl Into<String>) -> Self {
        Self::new(ErrorKind::Busy, what)
    }
    /// The operation was cancelled.
    pub fn cancelled() -> Self {
        Self::new(ErrorKind::Cancelled, "the operation was cancelled")
    }
    /// An operating-system error with what was being done.
    pub fn io(what: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self {
            kind: ErrorKind::Io,
            what: what.into(),
            place: None,
            source: Some(Box::new(source.into())),
        }
    }

    /// The same error once more, for somebody else who meets it.
    #[must_use]
    pub(crate) fn again(&self) -> Self {
        let source = self.io_error().map(|io| match io.raw_os_error() {
            Some(number) => std::io::Error::from_raw_os_error(number),
            None => std::io::Error::new(io.kind(), io.to_string()),
        });
        Self {
            kind: self.kind,
            what: self.what.clone(),
            place: self.place.clone(),
            source: source.map(|io| Box::new(io) as _),
        }
    }

    /// Names the place (image, structure, field) unless one is named already: the innermost knows best.
    #[must_use]
    pub fn at(mut self, place: impl Into<String>) -> Self {
        self.place.get_or_insert_with(|| place.into());
        self
    }
    /// Attaches the cause.
    #[must_use]
    pub fn because(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }
    /// The class of the error.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
    /// The sentence alone, without place and cause.
    pub fn what(&self) -> &str {
        &self.what
    }
    /// Where it went wrong, if known.
    pub fn place(&self) -> Option<&str> {
        self.place.as_deref()
    }
    /// The operating system's error below, if there is one.
    pub fn io_error(&self) -> Option<&std::io::Error> {
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            if let Some(io) = error.downcast_ref::<std::io::Error>() {
                return Some(io);
            }
            cause = error.source();
        }
        None
    }
    /// The kind of the operating system's error below, if there is one (`StorageFull`, `NotFound`, ...).
    pub fn io_kind(&self) -> Option<std::io::ErrorKind> {
        self.io_error().map(std::io::Error::kind)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.what)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({self})", self.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_names_place_sentence_and_cause() {
        let error = Error::io("cannot read 512 bytes at 0x200", std::io::Error::other("disk on fire"))
            .at("a.qcow2")
            .at("outer");
        assert_eq!(
            error.to_string(),
            "a.qcow2: cannot read 512 bytes at 0x200: disk on fire"
        );
    }

    #[test]
    fn the_io_kind_is_found_below() {
        let error = Error::io("write", std::io::Error::from(std::io::ErrorKind::StorageFull));
        assert_eq!(error.io_kind(), Some(std::io::ErrorKind::StorageFull));
        assert_eq!(Error::corrupt("x").io_kind(), None);
    }
}
