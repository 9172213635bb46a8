//! Real images that others made, with what independent readers found in them.
//!
//! Looked for in `$VDISK_CORPUS`, else unpacked once from `../shared/corpus` beside the checkout into `target/`.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// One file of the corpus: a line of its manifest.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The file.
    pub path: PathBuf,
    columns: HashMap<String, String>,
}

impl Sample {
    /// A column of the manifest; empty where it says nothing.
    pub fn get(&self, column: &str) -> &str {
        self.columns.get(column).map_or("", String::as_str)
    }
    /// Path inside the corpus.
    pub fn name(&self) -> &str {
        self.get("path")
    }
    /// Format as the manifest calls it.
    pub fn format(&self) -> &str {
        self.get("format")
    }
    /// Virtual size in bytes, where known.
    pub fn virtual_size(&self) -> Option<u64> {
        self.get("virtual_size").parse().ok()
    }
    /// SHA-256 of the whole guest content, where known.
    pub fn content_sha256(&self) -> Option<&str> {
        Some(self.get("content_sha256")).filter(|s| !s.is_empty())
    }
    /// SHA-256 over offset (8 bytes, little-endian) and data of every 64 KiB block that is not all zero, where known.
    pub fn nonzero_digest(&self) -> Option<&str> {
        Some(self.get("nonzero_digest")).filter(|s| !s.is_empty())
    }
}

/// The folder of the corpus; `None` (with the reason said) where there is none.
pub fn folder() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let found = FOLDER.get_or_init(|| match std::env::var_os("VDISK_CORPUS") {
        Some(dir) => Some(PathBuf::from(dir)),
        None => unpacked(),
    });
    if found.is_none() {
        crate::skip("the sample corpus is not there (set VDISK_CORPUS)");
    }
    found.as_deref()
}

/// Every file of the corpus whose format is one of `formats` (all files for an empty list).
///
/// # Panics
/// When the manifest cannot be read.
pub fn samples(formats: &[&str]) -> Option<Vec<Sample>> {
    let folder = folder()?;
    let text = fs::read_to_string(folder.join("MANIFEST.tsv")).expect("the corpus has a manifest");
    let mut lines = text.lines();
    let names: Vec<_> = lines
        .next()
        .unwrap_or_default()
        .split('\t')
        .map(str::to_owned)
        .collect();
    let sample = |line: &str| {
        let columns: HashMap<_, _> = names.iter().cloned().zip(line.split('\t').map(str::to_owned)).collect();
        Sample {
            path: folder.join(&columns["path"]),
            columns,
        }
    };
    Some(
        lines
            .map(sample)
            .filter(|s| formats.is_empty() || formats.contains(&s.format()))
            .collect(),
    )
}

/// Unpacks under a lock, so that test processes that start together do it once.
fn unpacked() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    let archive = root.parent()?.join("shared/corpus");
    if !archive.join("unpack.sh").is_file() {
        return None;
    }
    let cache = root.join("target/corpus");
    fs::create_dir_all(&cache).expect("target/ is writable");
    let lock = fs::File::create(cache.join("lock")).expect("target/corpus is writable");
    lock.lock().expect("the corpus lock works");
    let dir = cache.join("files");
    if !dir.join("MANIFEST.tsv").is_file() {
        let part = cache.join("part");
        let _ = fs::remove_dir_all(&part);
        let status = Command::new("bash")
            .arg(archive.join("unpack.sh"))
            .arg(&part)
            .status()
            .expect("bash runs");
        assert!(status.success(), "unpacking the corpus failed: {status}");
        if !part.join("MANIFEST.tsv").is_file() {
            fs::copy(archive.join("MANIFEST.tsv"), part.join("MANIFEST.tsv")).expect("the manifest can be copied");
        }
        fs::rename(&part, &dir).expect("the corpus can be put in place");
    }
    Some(dir)
}
