//! Standard output and standard error that nobody reads, and data on standard output.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{ok, vdisk};

fn full() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

fn with(folder: &Path, args: &[&str], stdout: impl Into<Stdio>, stderr: impl Into<Stdio>) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vdisk"))
        .args(args)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        .output()
        .unwrap()
}

/// A qcow2 image with data and a bitmap.
fn image(folder: &Path) {
    fs::write(folder.join("disk"), vec![7; 3 << 20]).unwrap();
    ok(folder, &["convert", "-f", "raw", "-O", "qcow2", "disk", "a"]);
    ok(folder, &["bitmap", "--add", "a", "b"]);
}

#[test]
fn work_is_done_to_its_end_when_nobody_reads_its_progress() {
    let dir = tempfile::tempdir().unwrap();
    image(dir.path());
    let line = ["convert", "-p", "--bitmaps", "-O", "qcow2", "a", "x"];
    let (reader, closed) = std::io::pipe().unwrap();
    drop(reader);
    for stdout in [Stdio::from(full()), Stdio::from(closed)] {
        let out = with(dir.path(), &line, stdout, Stdio::piped());
        assert_eq!(out.status.code(), Some(0), "{out:?}");
        ok(dir.path(), &["bitmap", "--remove", "x", "b"]);
        ok(dir.path(), &["compare", "a", "x"]);
    }
    for line in [
        &["rebase", "-p", "-b", "", "x"][..],
        &["amend", "-p", "-o", "lazy_refcounts=on", "x"],
        &["compare", "-p", "a", "x"],
    ] {
        let out = with(dir.path(), line, full(), Stdio::piped());
        assert_eq!(out.status.code(), Some(0), "{line:?} {out:?}");
    }
}

#[test]
fn work_is_done_to_its_end_when_nobody_reads_its_messages() {
    let dir = tempfile::tempdir().unwrap();
    image(dir.path());
    fs::write(
        dir.path().join("rules"),
        "[inject-error]\nevent = \"read_aio\"\nsector = \"0\"\n",
    )
    .unwrap();
    let salvage = [
        "convert",
        "--salvage",
        "-f",
        "raw",
        "-O",
        "raw",
        "blkdebug:rules:disk",
        "x",
    ];
    assert_eq!(with(dir.path(), &salvage, Stdio::null(), full()).status.code(), Some(0));
    assert_eq!(fs::read(dir.path().join("x")).unwrap()[1 << 20..], [7; 2 << 20]);
    let resize = ["resize", "disk", "4M"];
    assert_eq!(with(dir.path(), &resize, Stdio::null(), full()).status.code(), Some(0));
    assert_eq!(fs::metadata(dir.path().join("disk")).unwrap().len(), 4 << 20);
    let file = File::options().write(true).open(dir.path().join("a")).unwrap();
    // The first cluster's entry in the first refcount block.
    file.write_all_at(&[0, 3], 0x20000).unwrap();
    let out = with(dir.path(), &["check", "a"], Stdio::piped(), full());
    assert_eq!(out.status.code(), Some(3), "{out:?}");
    assert!(
        String::from_utf8_lossy(&out.stdout).contains("leaked clusters"),
        "{out:?}"
    );
    for line in [&["info", "nope"][..], &["resize", "a"], &["nope"], &["info", "--nope"]] {
        let out = with(dir.path(), line, Stdio::null(), full());
        assert_eq!(out.status.code(), Some(1), "{line:?}");
    }
}

#[test]
fn progress_stays_out_of_an_image_on_standard_output() {
    let dir = tempfile::tempdir().unwrap();
    image(dir.path());
    let out = vdisk(dir.path(), &["convert", "-p", "-O", "raw", "a", "-"]);
    assert!(out.status.success());
    assert!(out.stdout == fs::read(dir.path().join("disk")).unwrap());
    assert!(String::from_utf8_lossy(&out.stderr).contains("(100.00/100%)"));
}

#[test]
fn the_signal_that_asks_for_progress_is_answered_on_standard_error() {
    let dir = tempfile::tempdir().unwrap();
    image(dir.path());
    let mut child = Command::new(env!("CARGO_BIN_EXE_vdisk"))
        .args(["convert", "-r", "1M", "-O", "raw", "a", "-"])
        .current_dir(dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1500));
    e2e::tools::ok("kill", &["-USR1", &child.id().to_string()]);
    let mut content = Vec::new();
    std::io::copy(child.stdout.as_mut().unwrap(), &mut content).unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(content == fs::read(dir.path().join("disk")).unwrap());
    assert!(String::from_utf8_lossy(&out.stderr).contains("/100%)"), "{out:?}");
}
