//! A close look at a file of unknown origin: what it is, what it names, whether it is sound. Opens nothing but the file.

mod headers;
mod judge;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use vdisk_engine::{Control, Limits, StorageRef, formats};

use super::{OpenSecrets, check_structures, file_stamp};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::{Detected, Inspection, InspectionLimits, ParsedIn, Severity, Verdict};
use crate::pool::PoolFolder;
use crate::store::images::FileFacts;

/// Confidence from which a driver's word counts against another format.
pub(super) const SURE: u8 = 50;
/// Names and findings in a report.
const MOST: usize = 64;

/// What to look for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Look {
    /// The format that was announced.
    pub claimed: Option<String>,
    /// Whether the structures are checked too: takes as long as reading all metadata.
    pub check: bool,
    /// Whether content that looks like another format is a reason to refuse; not so for a raw image on record, whose
    /// guest may write what it likes.
    pub strict: bool,
}

impl Look {
    /// A look at a file that is to be taken in.
    pub fn strict(claimed: Option<String>, check: bool) -> Self {
        let strict = true;
        Self { claimed, check, strict }
    }
}

/// A file that was looked at.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Looked {
    /// The base that its header names, with the format claimed for it.
    pub backing: Option<(String, Option<String>)>,
    /// The report.
    pub inspection: Inspection,
}

impl Looked {
    /// The file, if nothing speaks against it.
    ///
    /// # Errors
    /// The first refusal: `format_mismatch`, `denied`, `corrupt_image`, `unsupported`, `limit_exceeded`.
    pub fn accepted(self) -> Result<Self> {
        let refusal = self
            .inspection
            .findings
            .iter()
            .find(|found| found.severity == Severity::Refusal);
        let Some(refusal) = refusal else { return Ok(self) };
        let code = refusal.code.parse().unwrap_or(ErrorCode::CorruptImage);
        let error = ServiceError::new(code, &refusal.text);
        if code == ErrorCode::FormatMismatch && self.inspection.claimed_format.is_some() {
            return Err(error.with_field("format"));
        }
        Err(error)
    }

    /// What the inventory keeps of the file.
    ///
    /// # Errors
    /// `image_not_ready` when it is gone from its pool.
    pub fn facts(&self, pool: &PoolFolder, file: &str) -> Result<FileFacts> {
        let gone = || {
            ServiceError::new(
                ErrorCode::ImageNotReady,
                format!("the file '{file}' is gone from its pool"),
            )
        };
        let stat = pool.stat(file)?.ok_or_else(gone)?;
        Ok(FileFacts {
            format: self.inspection.format.clone(),
            virtual_size: self.inspection.virtual_size.unwrap_or(0),
            allocated_size: u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512),
            file_size: u64::try_from(stat.st_size).unwrap_or(0),
            encrypted: self.inspection.encrypted,
            stamp: file_stamp(&stat),
        })
    }
}

/// Looks at a file.
///
/// # Errors
/// That the file cannot be read, or that the look was cancelled. What is wrong with its content is in the report.
pub fn look(storage: &StorageRef, look: &Look, limits: &Limits, control: &Control) -> Result<Looked> {
    let found = formats::detect(storage.as_ref())?;
    let detected = found.iter().map(|(driver, confidence)| Detected {
        format: driver.name().to_owned(),
        confidence: *confidence,
    });
    let mut looked = Looked {
        backing: None,
        inspection: Inspection {
            verdict: Verdict::Accepted,
            claimed_format: look.claimed.clone(),
            format: String::new(),
            detected: detected.collect(),
            file_size: storage.len()?,
            virtual_size: None,
            encrypted: false,
            references: Vec::new(),
            features: Vec::new(),
            limits: InspectionLimits {
                virtual_size: limits.virtual_size,
                table_bytes: limits.table_bytes,
                decompressed_bytes: limits.decompressed_bytes,
            },
            findings: Vec::new(),
            parsed_in: ParsedIn::default(),
        },
    };
    let report = &mut looked.inspection;
    report.judge_formats(look);
    report.judge_content(storage, look)?;
    if !report.is_refused() {
        match report.read_headers(storage, limits) {
            Ok(description) => {
                report.judge_headers(&description);
                looked.backing = description.backing.map(|backing| (backing.name, backing.format));
            }
            Err(error) => report.refuse_if(Err(error))?,
        }
    }
    if look.check && !report.is_refused() && !report.encrypted {
        let checked = check_structures(
            storage.clone(),
            &report.format,
            limits,
            &OpenSecrets::default(),
            control,
        );
        report.refuse_if(checked)?;
    }
    Ok(looked)
}
