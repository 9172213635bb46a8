//! The descriptor: lines of text that say what the disk consists of. Parsing and editing; no I/O.
//!
//! Source: VMware Virtual Disk Format 5.0, "The Disk DescriptorFile".

mod edit;
mod parse;

#[cfg(test)]
mod tests;

pub(super) use self::edit::NewDescriptor;
pub(super) use self::parse::{LOOKED_AT, looks_like_descriptor, may_be_descriptor};
use crate::formats::windows::from_windows;

/// `parentCID` of a disk without a layer below.
pub(super) const NO_PARENT: u32 = u32::MAX;

/// How an extent may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// `RW`
    ReadWrite,
    /// `RDONLY`
    ReadOnly,
}

/// What an extent's file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExtentType {
    /// The guest's bytes as they are (`FLAT`, `VMFS`).
    Flat,
    /// A hosted sparse extent.
    Sparse,
    /// COWD.
    VmfsSparse,
    /// SESparse.
    SeSparse,
    /// No file: zeroes.
    Zero,
}

/// One line of the extent description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExtentLine {
    pub access: Access,
    /// Guest bytes.
    pub len: u64,
    pub kind: ExtentType,
    /// The word for it in the descriptor.
    pub word: String,
    /// Empty for `ZERO`.
    pub name: String,
    /// First byte in the file, for flat ones.
    pub offset: u64,
    /// Number of the line in the text.
    line: usize,
}

/// A descriptor with the fields that matter picked out of its text.
#[derive(Debug, Clone)]
pub(super) struct Descriptor {
    lines: Vec<String>,
    /// The text is not UTF-8: each character of a line stands for one byte.
    bytewise: bool,
    /// What ends a line: as on Windows, or a newline alone.
    line_end: &'static str,
    pub cid: u32,
    pub parent_cid: u32,
    /// Empty where an embedded descriptor does not say it.
    pub create_type: String,
    pub parent_hint: Option<String>,
    pub extents: Vec<ExtentLine>,
}

impl Descriptor {
    /// What the text says under a key, without quotes.
    pub fn word(&self, key: &str) -> Option<&str> {
        parse::value(&self.lines, key).ok().flatten()
    }
}

/// The name of a file here: of a path with a drive letter, which is not here, the last part, which finds the file beside the descriptor.
pub(super) fn local_name(name: &str) -> String {
    match name.get(1..3) {
        Some(":\\" | ":/") => from_windows(name, false),
        _ => name.to_owned(),
    }
}
