//! What a command that fails leaves behind, and what it says.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

mod common;
#[path = "common/scratch.rs"]
mod scratch;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use common::{ok, vdisk};
use scratch::{disk, fails};

#[test]
fn a_failed_conversion_leaves_no_new_file() {
    let dir = tempfile::tempdir().unwrap();
    disk(dir.path());
    let (code, _) = fails(
        dir.path(),
        &["convert", "-O", "qcow2", "-o", "cluster_size=3", "disk", "new"],
    );
    assert_eq!(code, 1);
    assert!(!dir.path().join("new").exists());
}

#[test]
fn nothing_is_compressed_into_an_image_whose_data_lies_in_another_file() {
    let dir = tempfile::tempdir().unwrap();
    disk(dir.path());
    for options in ["data_file=data", "data_file=data,data_file_raw=on"] {
        let (code, message) = fails(
            dir.path(),
            &["convert", "-c", "-O", "qcow2", "-o", options, "disk", "new"],
        );
        assert_eq!(code, 1);
        assert!(message.contains("Compression and an external data file"), "{message}");
        assert!(!dir.path().join("new").exists() && !dir.path().join("data").exists());
        ok(
            dir.path(),
            &["create", "-q", "-f", "qcow2", "-o", options, "there", "4M"],
        );
        let (_, message) = fails(dir.path(), &["convert", "-n", "-c", "-O", "qcow2", "disk", "there"]);
        assert!(message.contains("cannot hold compressed clusters"), "{message}");
        fs::remove_file(dir.path().join("data")).unwrap();
    }
}

#[test]
fn nothing_is_compressed_into_a_subformat_without_units() {
    let dir = tempfile::tempdir().unwrap();
    disk(dir.path());
    let options = ["-c", "-O", "vmdk", "-o", "subformat=monolithicFlat"];
    let (code, error) = fails(dir.path(), &[&["convert"][..], &options, &["disk", "new"]].concat());
    assert_eq!(code, 1);
    assert!(error.contains("Compression not supported"), "{error}");
    assert!(!dir.path().join("new").exists() && !dir.path().join("new-flat").exists());
}

#[test]
fn a_conversion_that_fails_halfway_leaves_none_of_the_files_it_made() {
    let dir = tempfile::tempdir().unwrap();
    disk(dir.path());
    fs::write(
        dir.path().join("rules"),
        "[inject-error]\nevent = \"read_aio\"\nsector = \"2048\"\n",
    )
    .unwrap();
    let before = names(dir.path());
    for (format, options, target) in [
        ("qcow2", "data_file=data", "new"),
        ("vmdk", "subformat=monolithicFlat", "new.vmdk"),
        ("vmdk", "subformat=twoGbMaxExtentSparse", "new.vmdk"),
        ("raw", "preallocation=off", "file:new"),
    ] {
        let (code, message) = fails(
            dir.path(),
            &[
                "convert",
                "-f",
                "raw",
                "-O",
                format,
                "-o",
                options,
                "blkdebug:rules:disk",
                target,
            ],
        );
        assert!(code == 1 && message.contains("error while reading"), "{message}");
        assert_eq!(names(dir.path()), before, "{format} {options}");
    }
    // What was there before stays, emptied or not.
    fs::write(dir.path().join("new"), "mine").unwrap();
    fails(
        dir.path(),
        &["convert", "-f", "raw", "-O", "raw", "blkdebug:rules:disk", "new"],
    );
    assert!(dir.path().join("new").exists());
}

#[test]
fn no_image_is_made_over_a_file_that_it_is_made_from() {
    let dir = tempfile::tempdir().unwrap();
    disk(dir.path());
    ok(dir.path(), &["convert", "-f", "raw", "-O", "qcow2", "disk", "base"]);
    ok(
        dir.path(),
        &["create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top"],
    );
    std::os::unix::fs::symlink("base", dir.path().join("link")).unwrap();
    let before = fs::read(dir.path().join("base")).unwrap();
    for line in [
        &["create", "-f", "qcow2", "-b", "./base", "-F", "qcow2", "base"][..],
        &["create", "-f", "qcow2", "-b", "base", "-F", "qcow2", "link"],
        &["create", "-f", "qcow2", "-b", "top", "-F", "qcow2", "base"],
        &["create", "-u", "-f", "qcow2", "-b", "base", "-F", "qcow2", "link", "4M"],
        &[
            "create",
            "-f",
            "qcow2",
            "-o",
            "data_file=base",
            "-b",
            "top",
            "-F",
            "qcow2",
            "new",
        ],
        &["convert", "-U", "-O", "qcow2", "top", "base"],
        &[
            "convert", "-U", "-O", "qcow2", "-B", "./base", "-F", "qcow2", "disk", "link",
        ],
        &["dd", "-U", "if=top", "of=link"],
    ] {
        let (code, message) = fails(dir.path(), line);
        assert_eq!(code, 1, "{line:?}");
        assert!(
            message.contains("is a file of an image that the new one"),
            "{line:?}: {message}"
        );
        assert!(fs::read(dir.path().join("base")).unwrap() == before, "{line:?}");
        assert!(!dir.path().join("new").exists(), "{line:?}");
    }
}

#[test]
fn bench_writes_where_it_was_told_to_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r");
    fs::write(&path, vec![0; 1 << 20]).unwrap();
    for past in [&["-o", "2M"][..], &["-o", "1M"], &["-o", "1022k"], &["-s", "2M"]] {
        let line = [
            &["bench", "-q", "-f", "raw", "-w", "-c", "1", "--pattern", "1"],
            past,
            &["r"],
        ]
        .concat();
        let (code, message) = fails(dir.path(), &line);
        assert!(
            code == 1 && message.contains("Failed request: Input/output error"),
            "{message}"
        );
        assert!(fs::read(&path).unwrap() == [0; 1 << 20], "{past:?}");
    }
    let round = [
        "bench",
        "-q",
        "-f",
        "raw",
        "-w",
        "-c",
        "32",
        "-S",
        "64k",
        "-s",
        "4096",
        "--pattern",
        "7",
        "r",
    ];
    ok(dir.path(), &round);
    let found = fs::read(&path).unwrap();
    let mut expected = vec![0; 1 << 20];
    expected.chunks_mut(64 << 10).for_each(|step| step[..4096].fill(7));
    assert!(found == expected);
}

fn names(folder: &Path) -> BTreeSet<OsString> {
    fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect()
}

/// Options alone can be wrong, and the system can refuse the file: in either case nothing is left of the two files.
#[test]
fn a_failed_creation_leaves_neither_image_nor_data_file() {
    let dir = tempfile::tempdir().unwrap();
    let options = |extra: &str| format!("data_file=data{extra}");
    let lines = [
        (
            options(""),
            "1048576T",
            "The image size is too large for file format 'qcow2'",
        ),
        (
            options(",cluster_size=512"),
            "8T",
            "The image size is too large for file format 'qcow2'",
        ),
        (
            options(",encrypt.format=luks,encrypt.key-secret=s,encrypt.cipher-alg=none"),
            "1M",
            "Cipher 'none' is not supported",
        ),
        // The data file is there when the system refuses its length.
        (options(""), "64M", "File too large"),
    ];
    for (list, size, expected) in &lines {
        let out = Command::new("sh")
            .args([
                "-c",
                "trap '' XFSZ; ulimit -f 8192; exec \"$0\" \"$@\"",
                env!("CARGO_BIN_EXE_vdisk"),
            ])
            .args([
                "create",
                "-q",
                "--object",
                "secret,id=s,data=x",
                "-f",
                "qcow2",
                "-o",
                list,
                "new",
                size,
            ])
            .current_dir(dir.path())
            .output()
            .unwrap();
        let messages = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{list} {size}: {messages}");
        assert!(messages.contains(expected), "{list} {size}: {messages}");
        let left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert!(left.is_empty(), "{list} {size}: {left:?}");
    }
    // A data file that was there before is looked at last, and stays.
    fs::write(dir.path().join("data"), "mine").unwrap();
    fails(
        dir.path(),
        &["create", "-q", "-f", "qcow2", "-o", "data_file=data", "new", "1048576T"],
    );
    assert_eq!(fs::read(dir.path().join("data")).unwrap(), b"mine");
}

#[test]
fn read_errors_are_told_with_their_place() {
    let dir = tempfile::tempdir().unwrap();
    disk(dir.path());
    let source = r#"json:{"driver":"raw","file":{"driver":"blkdebug","image":{"driver":"file","filename":"disk"},
        "inject-error":[{"event":"read_aio","sector":2048}]}}"#;
    let (_, messages) = fails(dir.path(), &["convert", "-m", "1", source, "out"]);
    let place = messages
        .split_once("error while reading at byte ")
        .map(|(_, rest)| rest);
    let (place, why) = place.and_then(|rest| rest.split_once(": ")).expect(&messages);
    let place: u64 = place.parse().unwrap();
    assert!(place <= 1 << 20 && place + (4 << 20) > 1 << 20, "{messages}");
    assert_eq!(why, "Input/output error\n");
    let input = format!("if={source}");
    let (_, messages) = fails(dir.path(), &["dd", &input, "of=out"]);
    assert!(
        messages.ends_with("error while reading from input image file: Input/output error\n"),
        "{messages}"
    );
}

#[test]
fn salvage_goes_on_after_read_errors() {
    let dir = tempfile::tempdir().unwrap();
    disk(dir.path());
    let source = r#"json:{"driver":"raw","file":{"driver":"blkdebug","image":{"driver":"file","filename":"disk"},
        "inject-error":[{"event":"none","iotype":"read","sector":2048}]}}"#;
    assert_eq!(fails(dir.path(), &["convert", source, "out"]).0, 1);
    let out = vdisk(dir.path(), &["convert", "--salvage", source, "out"]);
    let messages = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{messages}");
    assert!(
        messages.contains("error while reading offset 1048576: Input/output error"),
        "{messages}"
    );
    let (before, after) = (
        fs::read(dir.path().join("disk")).unwrap(),
        fs::read(dir.path().join("out")).unwrap(),
    );
    assert_eq!(after[1 << 20..(1 << 20) + 512], [0; 512]);
    assert!(after[..1 << 20] == before[..1 << 20] && after[(1 << 20) + 512..] == before[(1 << 20) + 512..]);
}
