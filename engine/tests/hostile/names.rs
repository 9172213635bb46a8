//! Cases 10 and 11: chains that end in themselves, and names of things that are no files.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use vdisk_engine::gate::{Gate, Node, Reference};
use vdisk_engine::storage::{FileOptions, FileStorage};
use vdisk_engine::{Chain, Error, ErrorKind, Limits, OpenEnv, Result, StorageRef};

use crate::samples::sample;

/// Opens every name in one folder as qcow2: it is the engine that has to notice.
struct Open(PathBuf);

impl Gate for Open {
    fn open(&self, reference: &Reference<'_>) -> Result<Node> {
        Ok(Node::new(file(&self.0.join(reference.name))?, "qcow2"))
    }
    fn create(&self, reference: &Reference<'_>) -> Result<StorageRef> {
        Err(Error::denied(reference.name))
    }
}

fn file(path: &Path) -> Result<StorageRef> {
    Ok(Arc::new(FileStorage::open(path, FileOptions::default())?))
}

/// An image whose backing file is `base`.
fn over(folder: &Path, name: &str, base: &str) {
    let mut bytes = sample("qcow2");
    bytes[112..1024].fill(0);
    bytes[8..16].copy_from_slice(&1024u64.to_be_bytes());
    bytes[16..20].copy_from_slice(&(base.len() as u32).to_be_bytes());
    bytes[1024..1024 + base.len()].copy_from_slice(base.as_bytes());
    std::fs::write(folder.join(name), bytes).unwrap();
}

fn open(folder: &Path, name: &str) -> Result<Chain> {
    let (gate, limits) = (Open(folder.to_owned()), Limits::untrusted());
    let env = OpenEnv::closed(&limits).with_gate(&gate);
    Chain::open(Node::new(file(&folder.join(name))?, "qcow2"), &env)
}

#[test]
fn chains_that_never_end_are_refused() {
    let _alone = crate::alone();
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    over(at, "self", "self");
    over(at, "linked", "hard");
    std::fs::hard_link(at.join("linked"), at.join("hard")).unwrap();
    over(at, "pointed", "soft");
    symlink("pointed", at.join("soft")).unwrap();
    for (name, base) in [
        ("a", "b"),
        ("b", "a"),
        ("one", "two"),
        ("two", "three"),
        ("three", "one"),
    ] {
        over(at, name, base);
    }
    for n in 0..300 {
        over(at, &format!("layer{n}"), &format!("layer{}", n + 1));
    }
    std::fs::write(at.join("layer300"), sample("qcow2")).unwrap();
    for name in [
        "self", "linked", "pointed", "a", "one", "layer0", "layer100", "layer235",
    ] {
        let error = open(at, name).err().unwrap_or_else(|| panic!("{name} was opened"));
        assert_ne!(error.kind(), ErrorKind::Io, "{name}: {error}");
    }
    assert!(open(at, "layer240").is_ok(), "61 layers are within the limit of 64");
}

#[test]
fn names_of_what_is_no_file_are_refused_at_once() {
    let _alone = crate::alone();
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    assert!(Command::new("mkfifo").arg(at.join("fifo")).status().unwrap().success());
    let _socket = UnixListener::bind(at.join("socket")).unwrap();
    std::fs::create_dir(at.join("folder")).unwrap();
    symlink("/dev/zero", at.join("device")).unwrap();
    symlink("nowhere", at.join("dangling")).unwrap();
    for base in ["fifo", "socket", "folder", "device", "dangling", "missing", "/dev/null"] {
        over(at, "top", base);
        assert!(open(at, "top").is_err(), "{base} was opened");
        assert!(open(at, base).is_err(), "{base} was opened");
    }
}
