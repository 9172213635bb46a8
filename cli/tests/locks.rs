//! Images in use by QEMU: what `vdisk` refuses, and what it may do all the same.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

mod common;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use common::{ok, vdisk};

/// A qemu-io that holds an image; it lets go when its input ends.
struct Holder {
    child: Child,
    input: Option<ChildStdin>,
}

impl Holder {
    fn new(folder: &Path, args: &[&str]) -> Self {
        let mut child = Command::new("qemu-io")
            .args(args)
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        // The answer to a command tells that the image is open.
        input.write_all(b"length\n").unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("MiB") {
            line.clear();
            assert!(output.read_line(&mut line).unwrap() > 0, "qemu-io ended early");
        }
        // Keep the pipe open: qemu-io says good-bye on it.
        std::thread::spawn(move || output.lines().count());
        Self {
            child,
            input: Some(input),
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait();
    }
}

fn chain() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    ok(dir.path(), &["create", "-q", "-f", "qcow2", "base", "8M"]);
    ok(
        dir.path(),
        &["create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "top"],
    );
    dir
}

/// The same command lines must be refused and allowed by both programs.
fn same_answers(dir: &Path, lines: &[(&[&str], bool)]) {
    for (args, allowed) in lines {
        let peer = Command::new("qemu-img").args(*args).current_dir(dir).output().unwrap();
        let ours = vdisk(dir, args);
        let said = String::from_utf8_lossy(&ours.stderr);
        assert_eq!(peer.status.success(), *allowed, "qemu-img {args:?}");
        assert_eq!(ours.status.success(), *allowed, "vdisk {args:?}: {said}");
        assert!(
            *allowed || said.contains(" lock\nIs another process using the image ["),
            "{said}"
        );
    }
}

#[test]
fn an_image_that_qemu_writes_is_left_alone() {
    if !e2e::tools::have(&["qemu-io", "qemu-img"]) {
        return;
    }
    let dir = chain();
    let _holder = Holder::new(dir.path(), &["top"]);
    same_answers(
        dir.path(),
        &[
            (&["info", "top"], false),
            (&["info", "-U", "top"], true),
            (&["check", "top"], false),
            (&["check", "-U", "top"], true),
            (&["map", "top"], false),
            (&["map", "-U", "top"], true),
            (&["convert", "-O", "raw", "top", "x"], false),
            (&["convert", "-U", "-O", "raw", "top", "x"], true),
            (&["compare", "top", "base"], false),
            (&["resize", "top", "16M"], false),
            (&["commit", "top"], false),
            (&["snapshot", "-c", "s", "top"], false),
            (&["rebase", "-u", "-b", "", "top"], false),
            // Of a new image's base headers alone are read.
            (
                &["create", "-q", "-f", "qcow2", "-b", "top", "-F", "qcow2", "over"],
                true,
            ),
            (&["info", "base"], true),
            (&["convert", "-O", "raw", "base", "x"], true),
            (&["map", "base"], true),
            (&["resize", "base", "16M"], false),
        ],
    );
}

#[test]
fn an_image_that_qemu_reads_can_be_read() {
    if !e2e::tools::have(&["qemu-io", "qemu-img"]) {
        return;
    }
    let dir = chain();
    let _holder = Holder::new(dir.path(), &["-r", "top"]);
    same_answers(
        dir.path(),
        &[
            (&["info", "top"], true),
            (&["check", "top"], true),
            (&["convert", "-O", "raw", "top", "x"], true),
            (&["resize", "top", "16M"], false),
            (&["rebase", "-u", "-b", "", "top"], false),
        ],
    );
}

#[test]
fn an_image_in_use_is_not_overwritten() {
    if !e2e::tools::have(&["qemu-io", "qemu-img"]) {
        return;
    }
    let dir = chain();
    let before = std::fs::read(dir.path().join("top")).unwrap();
    let _holder = Holder::new(dir.path(), &["-r", "top"]);
    same_answers(
        dir.path(),
        &[
            (&["create", "-f", "raw", "top", "1M"], false),
            (&["convert", "-O", "raw", "base", "top"], false),
        ],
    );
    assert!(std::fs::read(dir.path().join("top")).unwrap() == before);
}
