use vdisk_service::model::{Detected, Finding, FoundReference, Inspection, InspectionLimits, Severity, Verdict};

use crate::proto;

impl From<Inspection> for proto::Inspection {
    fn from(report: Inspection) -> Self {
        let verdict = match report.verdict {
            Verdict::Accepted => proto::Verdict::Accepted,
            Verdict::Refused => proto::Verdict::Refused,
        };
        Self {
            verdict: verdict.into(),
            claimed_format: report.claimed_format,
            format: report.format,
            detected: report.detected.into_iter().map(Into::into).collect(),
            file_size: report.file_size,
            virtual_size: report.virtual_size,
            encrypted: report.encrypted,
            references: report.references.into_iter().map(Into::into).collect(),
            features: report.features,
            limits: Some(report.limits.into()),
            findings: report.findings.into_iter().map(Into::into).collect(),
            parsed_in: Some(proto::ParsedIn {
                child: report.parsed_in.child,
                landlock: report.parsed_in.landlock,
                seccomp: report.parsed_in.seccomp,
            }),
        }
    }
}

impl From<Detected> for proto::DetectedFormat {
    fn from(found: Detected) -> Self {
        Self {
            format: found.format,
            confidence: found.confidence.into(),
        }
    }
}

impl From<FoundReference> for proto::FoundReference {
    fn from(found: FoundReference) -> Self {
        Self {
            role: found.role,
            name: found.name,
            format: found.format,
        }
    }
}

impl From<InspectionLimits> for proto::InspectionLimits {
    fn from(limits: InspectionLimits) -> Self {
        Self {
            virtual_size: limits.virtual_size,
            table_bytes: limits.table_bytes,
            decompressed_bytes: limits.decompressed_bytes,
        }
    }
}

impl From<Finding> for proto::Finding {
    fn from(finding: Finding) -> Self {
        Self {
            refusal: finding.severity == Severity::Refusal,
            code: finding.code,
            text: finding.text,
        }
    }
}
