//! Results for people or for programs.

use std::io::{self, Write};

use serde_json::Value;

use crate::app::Failure;
use crate::text::qdict;

/// Who reads the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// A person.
    #[default]
    Human,
    /// A program.
    Json,
}

impl Format {
    /// The value of `--output`.
    pub fn parse(given: Option<&str>) -> Result<Self, Failure> {
        match given {
            None | Some("human") => Ok(Self::Human),
            Some("json") => Ok(Self::Json),
            Some(other) => Err(Failure::usage(format!(
                "--output expects 'human' or 'json' not '{other}'"
            ))),
        }
    }
    /// Whether a program reads it.
    pub fn is_json(self) -> bool {
        self == Self::Json
    }
}

/// Prints text to standard output; a reader that went away is no error worth a message.
pub fn print(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Says a line on standard error; work does not end because nobody hears it.
pub fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Prints a line.
pub fn line(text: &str) {
    print(&format!("{text}\n"));
}

/// Prints JSON as QEMU's programs do.
pub fn json(value: &Value) {
    line(&qdict::pretty(value));
}
