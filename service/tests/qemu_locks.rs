//! Our image locks against QEMU's, both ways, with real QEMU programs on the same file.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use e2e::tools::{arg, have, ok, run};
use vdisk_engine::ErrorKind;
use vdisk_engine::storage::{FileOptions, FileStorage, LockMode};

/// A qemu-io that has an image open until it is dropped.
struct Holder(Child);

impl Holder {
    fn open(flags: &[&str], format: &str, file: &Path) -> Self {
        let mut child = Command::new(e2e::tools::find("qemu-io").unwrap())
            .args(flags)
            .args(["-f", format, arg(file)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // An answer means that the image is open and locked.
        child.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(line.contains("MiB"), "qemu-io said '{line}'");
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn image(folder: &Path, format: &str) -> PathBuf {
    let file = folder.join(format);
    ok("qemu-img", &["create", "-q", "-f", format, arg(&file), "1M"]);
    file
}

/// Whether we may open the file so.
fn we_may(file: &Path, lock: LockMode) -> bool {
    let options = if lock == LockMode::Write {
        FileOptions::write()
    } else {
        FileOptions {
            lock,
            ..FileOptions::read()
        }
    };
    let file = std::fs::File::options()
        .read(true)
        .write(lock == LockMode::Write)
        .open(file)
        .unwrap();
    match FileStorage::from_file(file, "image", options) {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
            false
        }
    }
}

const MODES: [LockMode; 4] = [LockMode::None, LockMode::Inspect, LockMode::Read, LockMode::Write];

/// What QEMU's holders lock, and with it what we may do: `force_share`, look, read, write.
#[test]
fn what_qemu_holds_keeps_us_out_as_it_keeps_qemu_out() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (qcow2, raw) = (image(dir.path(), "qcow2"), image(dir.path(), "raw"));
    // The raw writer shares writing, which lets QEMU's own resize through: there we refuse more than QEMU.
    let cases: [(&str, &[&str], &Path, [bool; 4]); 5] = [
        ("qcow2", &[], &qcow2, [true, false, false, false]),
        ("qcow2", &["-r"], &qcow2, [true, true, true, false]),
        ("qcow2", &["-r", "-U"], &qcow2, [true, true, true, true]),
        ("raw", &[], &raw, [true, false, false, false]),
        ("raw", &["-r", "-U"], &raw, [true, true, true, true]),
    ];
    for (format, flags, file, expected) in cases {
        let _holder = Holder::open(flags, format, file);
        let found = MODES.map(|mode| we_may(file, mode));
        assert_eq!(found, expected, "{format} held by qemu-io {flags:?}");
        if format == "qcow2" {
            let tries: [&[&str]; 4] = [
                &["info", "-U", arg(file)],
                &["info", arg(file)],
                &["check", arg(file)],
                &["resize", "-q", "-f", format, arg(file), "1M"],
            ];
            let peer = tries.map(|arguments| run("qemu-img", arguments).status.success());
            assert_eq!(
                found, peer,
                "{format} held by qemu-io {flags:?}: qemu-img answers otherwise"
            );
        }
    }
    assert_eq!(
        MODES.map(|mode| we_may(&qcow2, mode)),
        [true; 4],
        "nobody holds it any more"
    );
}

#[test]
fn what_we_hold_keeps_qemu_out() {
    if !have(&["qemu-img"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for format in ["qcow2", "raw"] {
        let file = image(dir.path(), format);
        let copy = dir.path().join("copy");
        let tries: [&[&str]; 5] = [
            &["info", "-U", arg(&file)],
            &["convert", "-U", "-f", format, "-O", "raw", arg(&file), arg(&copy)],
            &["info", arg(&file)],
            &["convert", "-f", format, "-O", "raw", arg(&file), arg(&copy)],
            &["resize", "-q", "-f", format, arg(&file), "1M"],
        ];
        let expected = [
            (LockMode::None, [true; 5]),
            (LockMode::Inspect, [true, true, true, true, false]),
            (LockMode::Read, [true, true, true, true, false]),
            // qemu-img reads nothing of a raw file for 'info' but its length, and forbids nobody to write meanwhile.
            (LockMode::Write, [true, true, format == "raw", false, false]),
        ];
        for (mode, expected) in expected {
            let options = if mode == LockMode::Write {
                FileOptions::write()
            } else {
                FileOptions {
                    lock: mode,
                    ..FileOptions::read()
                }
            };
            let handle = std::fs::File::options()
                .read(true)
                .write(mode == LockMode::Write)
                .open(&file)
                .unwrap();
            let held = FileStorage::from_file(handle, "image", options).unwrap();
            let found = tries.map(|arguments| run("qemu-img", arguments).status.success());
            assert_eq!(found, expected, "{format} held by us for {mode:?}");
            drop(held);
        }
    }
}

/// Ours against ours: every pair.
#[test]
fn our_own_modes_exclude_each_other_as_the_table_says() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("image");
    std::fs::write(&file, [0; 4096]).unwrap();
    let expected = [
        (LockMode::None, [true, true, true, true]),
        (LockMode::Inspect, [true, true, true, false]),
        (LockMode::Read, [true, true, true, false]),
        (LockMode::Write, [true, false, false, false]),
    ];
    for (held, expected) in expected {
        let options = if held == LockMode::Write {
            FileOptions::write()
        } else {
            FileOptions {
                lock: held,
                ..FileOptions::read()
            }
        };
        let handle = std::fs::File::options().read(true).write(true).open(&file).unwrap();
        let _held = FileStorage::from_file(handle, "image", options).unwrap();
        assert_eq!(MODES.map(|mode| we_may(&file, mode)), expected, "held for {held:?}");
    }
}
