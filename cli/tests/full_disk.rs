//! Verbs that find no room, or are refused: the image is what it was, its dirty bitmaps can be used, and the same can be done again.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{ok, vdisk};
use serde_json::Value;

/// Runs `vdisk` where no file can be longer than so many KiB; gives whether it succeeded, and its messages.
fn within(folder: &Path, kib: u64, args: &[&str]) -> (bool, String) {
    let line = format!("trap '' XFSZ; ulimit -f {kib}; exec \"$0\" \"$@\"");
    let out = Command::new("bash")
        .args(["-c", &line, env!("CARGO_BIN_EXE_vdisk")])
        .args(args)
        .current_dir(folder)
        .output()
        .unwrap();
    (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
}

/// A raw disk of one byte.
fn disk(folder: &Path, name: &str, byte: u8, len: usize) {
    fs::write(folder.join(name), vec![byte; len]).unwrap();
}

fn info(folder: &Path, image: &str) -> Value {
    serde_json::from_str(&ok(folder, &["info", "--output=json", image])).unwrap()
}

/// Fails unless the image is sound, of that size, and has one bitmap, which can be used.
fn assert_usable(folder: &Path, image: &str, size: u64) {
    let found = info(folder, image);
    assert_eq!(found["virtual-size"], size, "{image}");
    let bitmaps = &found["format-specific"]["data"]["bitmaps"];
    assert_eq!(bitmaps[0]["name"], "b0", "{image}: {bitmaps}");
    assert_eq!(bitmaps[0]["flags"], serde_json::json!(["auto"]), "{image}");
    ok(folder, &["check", image]);
}

#[test]
fn a_growth_without_room_can_be_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    for how in ["full", "metadata"] {
        ok(folder, &["create", "-q", "-f", "qcow2", "q", "1M"]);
        ok(folder, &["bitmap", "--add", "q", "b0"]);
        let grow = format!("--preallocation={how}");
        let grow = ["resize", "-q", &grow, "q", "64M"];
        let (done, messages) = within(folder, 2000, &grow);
        assert!(!done && messages.contains("File too large"), "{how}: {messages}");
        assert_usable(folder, "q", 1 << 20);
        ok(folder, &grow);
        assert_usable(folder, "q", 64 << 20);
    }
}

#[test]
fn a_conversion_into_an_image_that_is_there_leaves_its_bitmaps_usable() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    disk(folder, "disk", 7, 4 << 20);
    ok(folder, &["create", "-q", "-f", "qcow2", "q", "4M"]);
    ok(folder, &["bitmap", "--add", "q", "b0"]);
    let convert = ["convert", "-n", "-f", "raw", "-O", "qcow2", "disk", "q"];
    // A batch of data does not fit, and what the bitmap takes does.
    let (done, messages) = within(folder, 2400, &convert);
    assert!(!done && messages.contains("File too large"), "{messages}");
    assert_usable(folder, "q", 4 << 20);
    ok(folder, &convert);
    ok(folder, &["compare", "-f", "raw", "disk", "q"]);
}

#[test]
fn a_commit_without_room_can_be_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    disk(folder, "disk", 7, 4 << 20);
    ok(folder, &["create", "-q", "-f", "qcow2", "base", "1M"]);
    ok(folder, &["bitmap", "--add", "base", "b0"]);
    ok(
        folder,
        &["create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top", "4M"],
    );
    ok(folder, &["convert", "-n", "-f", "raw", "-O", "qcow2", "disk", "top"]);
    let len = fs::metadata(folder.join("base")).unwrap().len() / 1024;
    for kib in [len, len + 64, len + 1000] {
        let (done, messages) = within(folder, kib, &["commit", "-q", "top"]);
        assert!(!done && messages.contains("File too large"), "{kib}: {messages}");
        ok(folder, &["check", "base"]);
        ok(folder, &["compare", "-f", "raw", "disk", "top"]);
    }
    ok(folder, &["commit", "-q", "top"]);
    ok(folder, &["check", "base"]);
    ok(folder, &["compare", "-f", "raw", "disk", "base"]);
}

/// Bits past the new end have to go, which needs new places for the rest: there are some when what lay there is given back.
#[test]
fn a_full_disk_can_shrink_with_its_bitmaps() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    disk(folder, "disk", 7, 4 << 20);
    ok(folder, &["create", "-q", "-f", "qcow2", "q", "4M"]);
    ok(folder, &["bitmap", "--add", "q", "b0"]);
    ok(folder, &["convert", "-n", "-f", "raw", "-O", "qcow2", "disk", "q"]);
    let full = fs::metadata(folder.join("q")).unwrap().len() / 1024;
    // The new tables still need their places: two clusters.
    let (done, messages) = within(folder, full + 128, &["resize", "-q", "--shrink", "q", "1500k"]);
    assert!(done, "{messages}");
    assert_usable(folder, "q", 1500 << 10);
}

#[test]
fn a_refused_amend_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    disk(folder, "disk", 7, 4 << 20);
    ok(folder, &["convert", "-f", "raw", "-O", "qcow2", "disk", "base"]);
    for options in ["extended_l2=on", "refcount_bits=8", "lazy_refcounts=on"] {
        let create = [
            "create", "-q", "-f", "qcow2", "-o", options, "-b", "base", "-F", "qcow2",
        ];
        ok(folder, &[&create[..], &["q", "1M"]].concat());
        ok(folder, &["bitmap", "--add", "q", "b0"]);
        ok(folder, &["snapshot", "-c", "s", "q"]);
        let out = vdisk(folder, &["amend", "-o", "compat=0.10,size=2M", "q"]);
        assert_eq!(out.status.code(), Some(1), "{options}");
        assert_usable(folder, "q", 1 << 20);
    }
}
