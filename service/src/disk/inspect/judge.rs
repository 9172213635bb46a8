//! What speaks against a file: notes, refusals and the verdict.

use vdisk_engine::image::ImageInfo;
use vdisk_engine::ops::info::Description;
use vdisk_engine::{StorageRef, formats, storage};

use super::headers::data_file;
use super::{Look, MOST, SURE};
use crate::disk::content;
use crate::error::{ErrorCode, Result};
use crate::model::{Finding, Inspection, Severity, Verdict};

impl Inspection {
    pub(super) fn is_refused(&self) -> bool {
        self.verdict == Verdict::Refused
    }

    fn note(&mut self, code: &str, text: impl Into<String>) {
        self.add(Severity::Note, code, text.into());
    }

    pub(super) fn refuse(&mut self, code: ErrorCode, text: impl Into<String>) {
        self.verdict = Verdict::Refused;
        self.add(Severity::Refusal, code.as_str(), text.into());
    }

    fn add(&mut self, severity: Severity, code: &str, text: String) {
        if self.findings.len() < MOST {
            let code = code.to_owned();
            self.findings.push(Finding { severity, code, text });
        }
    }

    /// Content that is wrong is a finding; a disk that fails and a job that is cancelled are errors.
    pub(super) fn refuse_if(&mut self, outcome: Result<()>) -> Result<()> {
        match outcome {
            Ok(()) => Ok(()),
            Err(error) if is_about_content(error.code) => {
                self.refuse(error.code, error.public);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Which format to read it as; more than one sure format, or another than the claimed one, is refused.
    pub(super) fn judge_formats(&mut self, look: &Look) {
        let sure = self.detected.iter().filter(|found| found.confidence >= SURE);
        let sure: Vec<String> = sure.map(|found| found.format.clone()).collect();
        let likeliest = self.detected.first().map(|found| found.format.clone());
        self.format = likeliest.unwrap_or_else(|| "raw".to_owned());
        let claimed = look.claimed.as_deref().map(formats::by_name).transpose();
        let claimed = match claimed {
            Ok(claimed) => claimed.map(|driver| driver.name()),
            Err(error) => return self.refuse(ErrorCode::Unsupported, error.to_string()),
        };
        if let Some(claimed) = claimed {
            self.format = claimed.to_owned();
        }
        let raw_on_record = !look.strict && claimed == Some("raw");
        match sure.as_slice() {
            [] => {}
            _ if raw_on_record => {
                let looks = sure.join(" and ");
                self.note(
                    "content",
                    format!("a guest wrote what looks like {looks}; the image stays raw in every verb"),
                );
            }
            [one] => {
                if claimed.is_some_and(|claimed| claimed != one) {
                    let claimed = claimed.unwrap_or_default();
                    let text = format!("the file was announced as '{claimed}' but is '{one}'");
                    self.refuse(ErrorCode::FormatMismatch, text);
                }
            }
            more => {
                let all = more.join(" and ");
                let text = format!("the file is {all} at the same time; such a file is refused");
                self.refuse(ErrorCode::FormatMismatch, text);
            }
        }
    }

    /// An archive that nobody called a raw disk is refused: unpacked it may be an image, as it is it is none.
    pub(super) fn judge_content(&mut self, storage: &StorageRef, look: &Look) -> Result<()> {
        if self.format != "raw" {
            return Ok(());
        }
        let mut head = [0; content::HEAD];
        storage::read_padded(storage.as_ref(), 0, &mut head)?;
        if let Some(archive) = content::archive(&head) {
            match look.claimed {
                None => self.refuse(
                    ErrorCode::Unsupported,
                    format!(
                        "the file is {archive} and no disk image; unpack it first, or say that its format is 'raw'"
                    ),
                ),
                Some(_) => self.note("content", format!("the content looks like {archive}")),
            }
        }
        if let Some(odd) = content::odd_partitions(&head) {
            self.note("partition_table", odd);
        }
        Ok(())
    }

    /// Another file than a base is refused, the rest is noted.
    pub(super) fn judge_headers(&mut self, description: &Description) {
        self.note_features(&description.image);
        if let Some(name) = data_file(&description.image) {
            let text =
                format!("the file names another file \"{name}\" (data_file); images of the service are one file each");
            self.refuse(ErrorCode::Denied, text);
        }
        if description
            .backing
            .as_ref()
            .is_some_and(|backing| backing.format.is_none())
        {
            self.note(
                "backing_format",
                "the header does not say of which format the base is; the inventory's counts",
            );
        }
    }

    fn note_features(&mut self, image: &ImageInfo) {
        if image.encrypted {
            self.note("encrypted", "the content is encrypted and was not looked into");
        }
        if image.dirty == Some(true) {
            self.note("dirty", "the file was not closed cleanly, or somebody writes to it");
        }
        if !image.snapshots.is_empty() {
            self.note(
                "snapshots",
                "internal snapshots hold content that the current state does not show",
            );
        }
    }
}

/// Whether an error says something of the file and not of the machine.
fn is_about_content(code: ErrorCode) -> bool {
    use ErrorCode::{CorruptImage, Denied, FormatMismatch, InvalidArgument, LimitExceeded, Unsupported};
    [
        CorruptImage,
        Denied,
        FormatMismatch,
        InvalidArgument,
        LimitExceeded,
        Unsupported,
    ]
    .contains(&code)
}
