use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::text_enum;

text_enum! {
    /// Whether a file may become an image.
    Verdict, "verdict" {
        /// It may.
        Accepted = "accepted",
        /// It may not: some finding is a refusal.
        Refused = "refused",
    }
}

text_enum! {
    /// How much a finding weighs.
    Severity, "severity" {
        /// Worth knowing.
        Note = "note",
        /// Reason enough not to take the file.
        Refusal = "refusal",
    }
}

/// What a file is when it is looked at closely, and whether it may be trusted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Inspection {
    /// Whether an import would take the file.
    pub verdict: Verdict,
    /// The format that was announced or is on record.
    #[schema(required)]
    pub claimed_format: Option<String>,
    /// The format that it was read as.
    pub format: String,
    /// Every format that its bytes speak for, the likeliest first. More than one sure one make a polyglot.
    pub detected: Vec<Detected>,
    /// Bytes of the file.
    pub file_size: u64,
    /// Bytes that a guest sees; null when the file could not be opened.
    #[schema(required)]
    pub virtual_size: Option<u64>,
    /// Whether the content is encrypted.
    pub encrypted: bool,
    /// Every file that it names. None but a base that the inventory knows is ever opened.
    pub references: Vec<FoundReference>,
    /// What of its format it uses, as `name` or `name=value`.
    pub features: Vec<String>,
    /// The bounds that it was opened under.
    pub limits: InspectionLimits,
    /// What was found.
    pub findings: Vec<Finding>,
    /// Where the file was parsed.
    pub parsed_in: ParsedIn,
}

/// A format that the bytes of a file speak for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Detected {
    /// The format.
    pub format: String,
    /// How sure, 1 to 100; from 50 on it counts against any other format.
    pub confidence: u8,
}

/// A file that an image names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FoundReference {
    /// `backing`, `data_file` or `extent`.
    pub role: String,
    /// The name as it stands in the image, with what is not printable escaped.
    pub name: String,
    /// The format that the image claims for it.
    #[schema(required)]
    pub format: Option<String>,
}

/// Bounds of an inspection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InspectionLimits {
    /// Largest virtual size, in bytes.
    pub virtual_size: u64,
    /// Bytes of one metadata table in memory.
    pub table_bytes: u64,
    /// Bytes that one compressed unit may unpack to.
    pub decompressed_bytes: u64,
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    /// How much it weighs.
    pub severity: Severity,
    /// The code of the error that an import ends with, or what the note is about.
    pub code: String,
    /// In words.
    pub text: String,
}

/// Where a file was parsed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ParsedIn {
    /// Whether in a child process with bounded memory, time and files.
    pub child: bool,
    /// Whether Landlock kept that process from every file and from the network.
    pub landlock: bool,
    /// Whether seccomp kept it from all system calls but the few that reading takes.
    pub seccomp: bool,
}
