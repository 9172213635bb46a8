//! The program's name, its messages and its exit codes.

use std::ffi::OsStr;
use std::fmt;
use std::path::Path;
use std::sync::OnceLock;

use vdisk_engine::{Error, ErrorKind};

use crate::output;

static NAME: OnceLock<&'static str> = OnceLock::new();

/// Takes the program's name from its first argument: `qemu-img` through a link of that name, `vdisk` otherwise.
pub fn set_name(argv0: Option<&OsStr>) {
    let called = argv0.and_then(|a| Path::new(a).file_name());
    let name = if called.is_some_and(|n| n == "qemu-img") {
        "qemu-img"
    } else {
        "vdisk"
    };
    let _ = NAME.set(name);
}

/// The name that messages start with.
pub fn name() -> &'static str {
    NAME.get().copied().unwrap_or("vdisk")
}

/// Why a verb did not do what it was asked for.
#[derive(Debug)]
pub struct Failure {
    message: String,
    /// Whether the caller is told where to find help.
    usage: bool,
    code: u8,
}

/// What a verb gives back: its exit code, or why it failed.
pub type Outcome = Result<u8, Failure>;

impl Failure {
    /// A failure with exit code 1.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            usage: false,
            code: 1,
        }
    }
    /// A wrong command line: the message is followed by a pointer to the help.
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            usage: true,
            ..Self::new(message)
        }
    }
    /// The same with another exit code.
    #[must_use]
    pub fn code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }
    /// The same with words before the message.
    #[must_use]
    pub fn context(mut self, prefix: impl fmt::Display) -> Self {
        self.message = format!("{prefix}: {}", self.message);
        self
    }
    /// The sentence alone.
    pub fn message(&self) -> &str {
        &self.message
    }
    /// Says it on standard error and gives the exit code.
    pub fn report(&self, verb: &str) -> u8 {
        error(&self.message);
        if self.usage {
            output::say(&format!("Try '{} {verb} --help' for more info", name()));
        }
        self.code
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(sentence(&error))
    }
}

/// Says an error on standard error.
pub fn error(message: &str) {
    output::say(&format!("{}: {message}", name()));
}

/// Says a warning on standard error.
pub fn warning(message: &str) {
    output::say(&format!("{}: warning: {message}", name()));
}

/// An engine error as qemu-img words it: without the place, which the caller's own words name, and without the number of a system error.
pub fn sentence(error: &Error) -> String {
    if error.kind() == ErrorKind::Busy {
        return busy(error);
    }
    if error.kind() == ErrorKind::WrongKey {
        return wrong_key(error);
    }
    match error.io_error() {
        Some(io) => format!("{}: {}", capital(error.what()), system_error(io)),
        None => capital(error.what()),
    }
}

/// Why an operation stopped halfway: a system error alone, as qemu-img tells it, or the engine's sentence.
pub fn reason(error: &Error) -> String {
    error.io_error().map_or_else(|| sentence(error), system_error)
}

/// A missing or wrong passphrase in the words that scripts around qemu-img look for.
fn wrong_key(error: &Error) -> String {
    let option = error
        .what()
        .split_once("name its passphrase with option '")
        .and_then(|(_, rest)| rest.split('\'').next());
    match option {
        Some(option) => format!("Parameter '{option}' is required for cipher"),
        None if error.what().contains("no key slot opens") => "Invalid password, cannot unlock any keyslot".to_owned(),
        None => capital(error.what()),
    }
}

fn busy(error: &Error) -> String {
    let (lock, _) = error.what().split_once(": ").unwrap_or((error.what(), ""));
    match error.place() {
        Some(place) => format!("{}\nIs another process using the image [{place}]?", capital(lock)),
        None => capital(error.what()),
    }
}

/// The text of a system error, without its number.
pub fn system_error(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// With a capital, unless it begins with the name of an option.
fn capital(text: &str) -> String {
    let word = text.split(' ').next().unwrap_or_default();
    if word.contains(['-', '=', '_']) && !word.starts_with("non-") {
        return text.to_owned();
    }
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_ascii_uppercase());
    first.into_iter().chain(chars).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_errors_are_said_without_their_number() {
        let io = std::io::Error::from_raw_os_error(2);
        assert_eq!(
            sentence(&Error::io("cannot open", io).at("x")),
            "Cannot open: No such file or directory"
        );
    }
}
