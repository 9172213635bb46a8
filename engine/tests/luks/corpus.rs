//! Volumes that others made.

use std::path::Path;
use std::sync::Arc;

use e2e::corpus::{Sample, samples};
use sha2::{Digest, Sha256};
use vdisk_engine::storage::{FileOptions, FileStorage};
use vdisk_engine::{ErrorKind, Limits, StorageRef};

use super::support::{metadata, open_on, read_all};

fn storage(path: &Path) -> StorageRef {
    Arc::new(FileStorage::open(path, FileOptions::read()).unwrap())
}

/// The passphrase of a sample; `@` names a key file of the corpus.
fn key(sample: &Sample) -> Vec<u8> {
    let text = sample.get("key");
    match text.strip_prefix('@') {
        None => text.into(),
        Some(name) => {
            let folders = sample.path.ancestors().map(|folder| folder.join(name));
            std::fs::read(folders.into_iter().find(|file| file.is_file()).unwrap()).unwrap()
        }
    }
}

#[test]
fn samples_with_known_keys_open_and_hold_what_other_readers_found() {
    let Some(samples) = samples(&["luks", "luks2"]) else {
        return;
    };
    let mut compared = 0;
    for sample in samples.iter().filter(|sample| !sample.get("key").is_empty()) {
        let image = open_on(storage(&sample.path), &key(sample)).unwrap_or_else(|e| panic!("{}: {e}", sample.name()));
        if let Some(size) = sample.virtual_size() {
            assert_eq!(image.virtual_size(), size, "{}", sample.name());
        }
        let Some(digest) = sample.content_sha256() else {
            continue;
        };
        let found: String = Sha256::digest(read_all(image.as_ref()))
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(
            Some(found.as_str()),
            digest.split_whitespace().next(),
            "{}",
            sample.name()
        );
        compared += 1;
    }
    assert!(compared >= 11, "only {compared} samples had a digest");
}

#[test]
fn damaged_samples_are_refused_and_others_show_their_header() {
    let Some(samples) = samples(&["luks", "luks2"]) else {
        return;
    };
    let limits = Limits::default();
    for sample in &samples {
        let found = metadata(storage(&sample.path), &limits);
        let damaged = ["evil_hdr", "util-linux/luks"]
            .iter()
            .any(|name| sample.name().contains(name));
        match found {
            Ok(_) => assert!(!damaged, "{} was accepted", sample.name()),
            Err(error) => assert!(damaged && error.kind() == ErrorKind::Corrupt, "{error}"),
        }
    }
}
