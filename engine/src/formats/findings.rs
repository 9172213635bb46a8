//! For formats whose `check` begins with opening: what is wrong with an image, how bad it is, and when that is a reason not to open it.

use crate::{Error, OpenEnv, Result};

/// How far a finding reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The image can be used; a copy of something is missing.
    Note,
    /// It can be read, but nobody should build on it.
    ReadOnly,
    /// What it says contradicts itself: reading could give wrong bytes.
    Refuse,
}

/// What `check` can do about a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fix {
    /// Write the copies of a structure again.
    Copies,
    /// Write a sum again.
    Sum,
    /// Nothing.
    None,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// A sentence.
    pub message: String,
    /// How bad.
    pub severity: Severity,
    /// The cure.
    pub fix: Fix,
}

/// Messages kept of each image; the rest is only counted.
const KEPT: usize = 64;

/// All that is wrong with an image.
#[derive(Debug, Clone, Default)]
pub struct Findings {
    kept: Vec<Finding>,
    /// How many there are in all.
    pub count: u64,
    worst: Option<(Severity, String)>,
}

impl Findings {
    /// Adds one.
    pub fn add(&mut self, severity: Severity, fix: Fix, message: impl Into<String>) {
        let message = message.into();
        self.count += 1;
        if self.worst.as_ref().is_none_or(|(s, _)| *s < severity) {
            self.worst = Some((severity, message.clone()));
        }
        if self.kept.len() < KEPT {
            self.kept.push(Finding { message, severity, fix });
        }
    }
    /// Those that were kept.
    pub fn iter(&self) -> impl Iterator<Item = &Finding> {
        self.kept.iter()
    }
    /// Whether there is one with this cure.
    pub fn any(&self, fix: Fix) -> bool {
        self.kept.iter().any(|f| f.fix == fix)
    }
    /// Whether reading could give wrong bytes.
    pub fn refuse(&self) -> bool {
        self.worst.as_ref().is_some_and(|(s, _)| *s == Severity::Refuse)
    }
    /// Fails when the image must not be opened this way.
    ///
    /// # Errors
    /// `Corrupt` with the worst finding.
    pub fn admit(&self, env: &OpenEnv<'_>) -> Result<()> {
        match &self.worst {
            _ if env.for_check => Ok(()),
            Some((Severity::Refuse, message)) => Err(Error::corrupt(message)),
            Some((Severity::ReadOnly, message)) if env.writable => Err(Error::corrupt(format!(
                "{message}; the image can be read, or mended by a check with repair"
            ))),
            _ => Ok(()),
        }
    }
}
