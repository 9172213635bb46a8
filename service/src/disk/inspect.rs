//! A close look at a file of unknown origin: what it is, what it names, whether it is sound. Opens nothing but the file.

use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use vdisk_engine::gate::{Gate, Node, Reference, Role};
use vdisk_engine::image::ImageInfo;
use vdisk_engine::{Chain, Control, Error, Limits, OpenEnv, StorageRef, formats, ops, storage};

use super::{OpenSecrets, check_structures, content, file_stamp};
use crate::error::{ErrorCode, Result, ServiceError};
use crate::model::{Detected, Finding, FoundReference, Inspection, InspectionLimits, ParsedIn, Severity, Verdict};
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
        looked.backing = report.read_headers(storage, limits);
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

impl Inspection {
    fn is_refused(&self) -> bool {
        self.verdict == Verdict::Refused
    }

    fn note(&mut self, code: &str, text: impl Into<String>) {
        self.add(Severity::Note, code, text.into());
    }

    fn refuse(&mut self, code: ErrorCode, text: impl Into<String>) {
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
    fn refuse_if(&mut self, outcome: Result<()>) -> Result<()> {
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
    fn judge_formats(&mut self, look: &Look) {
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
    fn judge_content(&mut self, storage: &StorageRef, look: &Look) -> Result<()> {
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

    /// Opens the layer with a gate that notes every name and opens none. Gives back the base that the header names.
    fn read_headers(&mut self, storage: &StorageRef, limits: &Limits) -> Option<(String, Option<String>)> {
        let gate = NotingGate::default();
        let env = OpenEnv {
            metadata_only: true,
            ..OpenEnv::closed(limits).with_gate(&gate)
        };
        let opened = Chain::open(Node::new(storage.clone(), &self.format).without_backing(), &env);
        self.references = gate.noted();
        let described = opened.and_then(|chain| ops::info::describe(chain.top()));
        let description = match described {
            Ok(description) => description,
            Err(error) => {
                let error = ServiceError::from(error);
                self.refuse(error.code, error.public);
                return None;
            }
        };
        self.virtual_size = Some(description.virtual_size);
        self.encrypted = description.image.encrypted;
        self.features = features(&description.image);
        self.note_features(&description.image);
        self.refuse_data_file(&description.image);
        let backing = description.backing?;
        self.references.push(FoundReference {
            role: "backing".to_owned(),
            name: backing.name.escape_debug().to_string(),
            format: backing.format.clone(),
        });
        if backing.format.is_none() {
            self.note(
                "backing_format",
                "the header does not say of which format the base is; the inventory's counts",
            );
        }
        Some((backing.name, backing.format))
    }

    /// A data file is not opened for metadata alone, so the gate does not hear of it.
    fn refuse_data_file(&mut self, image: &ImageInfo) {
        let named = image.specific.as_ref().and_then(|specific| specific.get("data-file"));
        let Some(name) = named.and_then(serde_json::Value::as_str) else {
            return;
        };
        let name = name.escape_debug().to_string();
        let text =
            format!("the file names another file \"{name}\" (data_file); images of the service are one file each");
        self.refuse(ErrorCode::Denied, text);
        let (role, format) = ("data_file".to_owned(), None);
        self.references.push(FoundReference { role, name, format });
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

fn features(image: &ImageInfo) -> Vec<String> {
    let flags = [
        ("encrypted", image.encrypted),
        ("compressed", image.compressed),
        ("dirty", image.dirty == Some(true)),
    ];
    let flags = flags
        .into_iter()
        .filter(|(_, set)| *set)
        .map(|(name, _)| name.to_owned());
    let snapshots = Some(image.snapshots.len()).filter(|count| *count > 0);
    let scalars = image.specific.iter().flatten().filter_map(|(key, value)| match value {
        serde_json::Value::Bool(true) => Some(key.clone()),
        serde_json::Value::String(text) => Some(format!("{key}={}", text.escape_debug())),
        serde_json::Value::Number(number) => Some(format!("{key}={number}")),
        _ => None,
    });
    flags
        .chain(snapshots.map(|count| format!("snapshots={count}")))
        .chain(scalars)
        .take(MOST)
        .collect()
}

/// Notes what an image names, and opens nothing.
#[derive(Default)]
struct NotingGate(Mutex<Vec<FoundReference>>);

impl NotingGate {
    fn noted(&self) -> Vec<FoundReference> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn refuse(&self, reference: &Reference<'_>) -> Error {
        let role = match reference.role {
            Role::Backing => "backing",
            Role::DataFile => "data_file",
            Role::Extent => "extent",
        };
        let name = reference.name.escape_debug().to_string();
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = format!("the file names another file \"{name}\" ({role}); images of the service are one file each");
        if noted.len() < MOST {
            noted.push(FoundReference {
                role: role.to_owned(),
                name,
                format: reference.format.map(|format| format.escape_debug().to_string()),
            });
        }
        Error::denied(text)
    }
}

impl Gate for NotingGate {
    fn open(&self, reference: &Reference<'_>) -> vdisk_engine::Result<Node> {
        Err(self.refuse(reference))
    }

    fn create(&self, reference: &Reference<'_>) -> vdisk_engine::Result<StorageRef> {
        Err(self.refuse(reference))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vdisk_engine::CancelToken;
    use vdisk_engine::control::NoProgress;
    use vdisk_engine::storage::MemoryStorage;

    use super::*;

    /// A qcow2 header (version 3) with no guest bytes, as the specification lays it out.
    fn qcow2() -> Vec<u8> {
        let mut file = vec![0; 4 << 16];
        file[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        file[20..24].copy_from_slice(&16_u32.to_be_bytes());
        file[24..32].copy_from_slice(&(1_u64 << 20).to_be_bytes());
        file[36..40].copy_from_slice(&1_u32.to_be_bytes());
        file[40..48].copy_from_slice(&(3_u64 << 16).to_be_bytes());
        file[48..56].copy_from_slice(&(1_u64 << 16).to_be_bytes());
        file[56..60].copy_from_slice(&1_u32.to_be_bytes());
        file[96..100].copy_from_slice(&4_u32.to_be_bytes());
        file[100..104].copy_from_slice(&104_u32.to_be_bytes());
        file[1 << 16..(1 << 16) + 8].copy_from_slice(&(2_u64 << 16).to_be_bytes());
        for cluster in 0..4 {
            let at = (2 << 16) + cluster * 2;
            file[at..at + 2].copy_from_slice(&1_u16.to_be_bytes());
        }
        file
    }

    fn report(bytes: Vec<u8>, claimed: Option<&str>, strict: bool) -> Inspection {
        let storage: StorageRef = Arc::new(MemoryStorage::new("file", bytes));
        let wanted = Look {
            claimed: claimed.map(str::to_owned),
            check: true,
            strict,
        };
        let control = Control::new(Arc::new(NoProgress), CancelToken::new());
        look(&storage, &wanted, &Limits::untrusted(), &control)
            .unwrap()
            .inspection
    }

    fn codes(report: &Inspection) -> Vec<&str> {
        report.findings.iter().map(|found| found.code.as_str()).collect()
    }

    #[test]
    fn a_sound_file_is_accepted() {
        let found = report(qcow2(), None, true);
        assert_eq!(
            (found.verdict, found.format.as_str()),
            (Verdict::Accepted, "qcow2"),
            "{found:?}"
        );
        assert_eq!(found.virtual_size, Some(1 << 20));
        assert!(
            found.features.contains(&"compat=1.1".to_owned()),
            "{:?}",
            found.features
        );
        assert_eq!(found.references, []);
    }

    #[test]
    fn a_claim_that_is_not_so_is_refused() {
        for claimed in ["raw", "vmdk", "vhdx"] {
            let found = report(qcow2(), Some(claimed), true);
            assert_eq!(
                (found.verdict, codes(&found)),
                (Verdict::Refused, vec!["format_mismatch"]),
                "{claimed}"
            );
        }
        let unknown = report(qcow2(), Some("qcow9"), true);
        assert_eq!(codes(&unknown), ["unsupported"]);
    }

    #[test]
    fn a_raw_image_on_record_stays_raw_whatever_its_guest_wrote() {
        let found = report(qcow2(), Some("raw"), false);
        assert_eq!(
            (found.verdict, found.format.as_str()),
            (Verdict::Accepted, "raw"),
            "{found:?}"
        );
        assert_eq!((codes(&found), found.virtual_size), (vec!["content"], Some(4 << 16)));
    }

    #[test]
    fn a_file_of_two_formats_is_refused() {
        let mut both = qcow2();
        let footer = both.len() - 512;
        both[footer..footer + 8].copy_from_slice(b"conectix");
        // Version 1.0, fixed disk, with the checksum that makes the footer sure.
        both[footer + 8..footer + 16].copy_from_slice(&[0, 0, 0, 2, 0, 1, 0, 0]);
        both[footer + 16..footer + 24].copy_from_slice(&[0xff; 8]);
        both[footer + 63] = 2;
        let sum: u32 = both[footer..].iter().map(|byte| u32::from(*byte)).sum();
        both[footer + 64..footer + 68].copy_from_slice(&(!sum).to_be_bytes());
        for claimed in [None, Some("qcow2"), Some("vpc")] {
            let found = report(both.clone(), claimed, true);
            assert_eq!(
                (found.verdict, codes(&found)),
                (Verdict::Refused, vec!["format_mismatch"]),
                "{found:?}"
            );
        }
    }

    #[test]
    fn archives_are_refused_unless_they_are_called_raw() {
        let mut appliance = vec![0; 4096];
        appliance[257..262].copy_from_slice(b"ustar");
        for (file, name) in [
            (appliance, "tar"),
            (b"\x1f\x8b\x08\0".repeat(200), "gzip"),
            (b"PK\x03\x04".repeat(200), "zip"),
            (b"\xfd7zXZ\0".repeat(200), "xz"),
        ] {
            let found = report(file.clone(), None, true);
            assert_eq!(
                (found.verdict, codes(&found)),
                (Verdict::Refused, vec!["unsupported"]),
                "{name}"
            );
            assert!(found.findings[0].text.contains(name), "{found:?}");
            let raw = report(file, Some("raw"), true);
            assert_eq!(
                (raw.verdict, codes(&raw)),
                (Verdict::Accepted, vec!["content"]),
                "{name}"
            );
        }
    }

    #[test]
    fn every_false_claim_is_refused() {
        let known = formats::DRIVERS.iter().map(|driver| driver.name());
        for claimed in known.filter(|name| !["qcow2", "raw"].contains(name)) {
            let found = report(qcow2(), Some(claimed), true);
            assert_eq!(codes(&found), ["format_mismatch"], "{claimed}");
            assert_eq!(
                report(vec![7; 65_536], Some(claimed), true).verdict,
                Verdict::Refused,
                "{claimed}"
            );
        }
    }

    #[test]
    fn names_inside_are_listed_and_never_opened() {
        let mut overlay = qcow2();
        overlay[8..16].copy_from_slice(&512_u64.to_be_bytes());
        overlay[16..20].copy_from_slice(&11_u32.to_be_bytes());
        overlay[512..523].copy_from_slice(b"/etc/sha\ndo");
        let found = report(overlay, None, true);
        let names: Vec<_> = found
            .references
            .iter()
            .map(|found| (found.role.as_str(), found.name.as_str()))
            .collect();
        assert_eq!(names, [("backing", "/etc/sha\\ndo")], "{found:?}");

        let mut split = qcow2();
        // The incompatible feature "external data file", and its name as a header extension.
        split[72..80].copy_from_slice(&4_u64.to_be_bytes());
        split[104..112].copy_from_slice(&[0x44, 0x41, 0x54, 0x41, 0, 0, 0, 8]);
        split[112..120].copy_from_slice(b"/dev/sda");
        let found = report(split, Some("qcow2"), true);
        assert_eq!(
            (found.verdict, found.references[0].role.as_str()),
            (Verdict::Refused, "data_file"),
            "{found:?}"
        );
        assert_eq!(found.references[0].name, "/dev/sda");
    }

    #[test]
    fn damage_is_a_refusal_with_its_reason() {
        let mut short = qcow2();
        short.truncate(3000);
        let found = report(short, None, true);
        assert_eq!(found.verdict, Verdict::Refused, "{found:?}");
    }
}
