//! Sound files, false claims, polyglots, archives and names inside.

use std::sync::Arc;

use vdisk_engine::CancelToken;
use vdisk_engine::control::NoProgress;
use vdisk_engine::storage::{MemoryStorage, ReadOnlyStorage, Storage, StorageExtent};

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

/// A file of which a disk gives the first cluster and no more.
#[derive(Debug)]
struct Broken(MemoryStorage);

impl ReadOnlyStorage for Broken {
    fn name(&self) -> &str {
        "broken"
    }
    fn len(&self) -> vdisk_engine::Result<u64> {
        self.0.len()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> vdisk_engine::Result<()> {
        let tables = (1 << 16)..(3 << 16);
        match tables.contains(&offset) {
            true => Err(vdisk_engine::Error::io("read", std::io::ErrorKind::Other)),
            false => self.0.read_at(offset, buf),
        }
    }
    fn extent(&self, offset: u64, len: u64) -> vdisk_engine::Result<StorageExtent> {
        self.0.extent(offset, len)
    }
    fn allocated(&self) -> vdisk_engine::Result<u64> {
        self.0.allocated()
    }
    fn why_read_only(&self) -> &'static str {
        "broken"
    }
}

#[test]
fn a_disk_that_fails_says_nothing_of_the_file() {
    let storage: StorageRef = Arc::new(Broken(MemoryStorage::new("file", qcow2())));
    let wanted = Look {
        claimed: Some("qcow2".to_owned()),
        check: true,
        strict: true,
    };
    let control = Control::new(Arc::new(NoProgress), CancelToken::new());
    let found = look(&storage, &wanted, &Limits::untrusted(), &control);
    let error = found.map(|found| found.inspection).unwrap_err();
    assert_eq!(error.code, ErrorCode::Io);
}
