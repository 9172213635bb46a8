//! What may be done with the images of a running guest: our answers beside qemu-img's, with QEMU's own programs as holders.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::ok;
use e2e::tools::{arg, find, have};

/// A program that went into the background with an image open, until it is dropped.
struct Holder {
    pid: PathBuf,
}

impl Holder {
    /// The program's own process ends when the image is open.
    fn start(folder: &Path, program: &str, arguments: &[&str]) -> Self {
        let pid = folder.join(format!("{program}.pid"));
        let status = Command::new(find(program).unwrap())
            .args(arguments)
            .current_dir(folder)
            .status()
            .unwrap();
        assert!(status.success(), "{program} {arguments:?}: {status}");
        Self { pid }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let Ok(text) = std::fs::read_to_string(&self.pid) else {
            return;
        };
        let pid = text.trim();
        let _ = Command::new("kill").args(["-KILL", pid]).status();
        // It is a child of nobody here: wait until it is gone.
        for _ in 0..1000 {
            if !Path::new("/proc").join(pid).exists() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

const MACHINE: [&str; 10] = [
    "-machine",
    "pc,accel=tcg",
    "-nodefaults",
    "-display",
    "none",
    "-S",
    "-m",
    "16",
    "-daemonize",
    "-pidfile",
];

fn vm(folder: &Path, drive: &str, device: &str) -> Holder {
    let more = ["qemu-system-x86_64.pid", "-drive", drive, "-device", device];
    Holder::start(folder, "qemu-system-x86_64", &[&MACHINE[..], &more].concat())
}

fn storage_daemon(folder: &Path) -> Holder {
    let file = "driver=file,node-name=f,filename=top.qcow2";
    let arguments = [
        "--daemonize",
        "--pidfile",
        "qemu-storage-daemon.pid",
        "--blockdev",
        file,
        "--blockdev",
        "driver=qcow2,node-name=top,file=f",
        "--nbd-server",
        "addr.type=unix,addr.path=qsd.sock",
        "--export",
        "type=nbd,id=e,node-name=top,writable=on",
    ];
    Holder::start(folder, "qemu-storage-daemon", &arguments)
}

fn nbd_server(folder: &Path) -> Holder {
    let socket = folder.join("nbd.sock");
    let arguments = [
        "--fork",
        "--persistent",
        "--pid-file",
        "qemu-nbd.pid",
        "-k",
        arg(&socket),
        "-f",
        "qcow2",
    ];
    Holder::start(folder, "qemu-nbd", &[&arguments[..], &["top.qcow2"]].concat())
}

fn images(folder: &Path) {
    ok(folder, &["create", "-q", "-f", "qcow2", "base.qcow2", "1M"]);
    ok(
        folder,
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            "base.qcow2",
            "-F",
            "qcow2",
            "top.qcow2",
        ],
    );
    ok(folder, &["create", "-q", "-f", "raw", "disk.raw", "1M"]);
}

/// The fourteen questions, and whether the answer is yes while a guest runs on `top.qcow2`.
const QUESTIONS: [(&str, bool); 14] = [
    ("info top.qcow2", false),
    ("check top.qcow2", false),
    ("convert -O raw top.qcow2 copy", false),
    ("info -U top.qcow2", true),
    ("check -U top.qcow2", true),
    ("convert -U -O raw top.qcow2 copy", true),
    ("resize top.qcow2 2M", false),
    ("commit top.qcow2", false),
    ("snapshot -c s top.qcow2", false),
    ("info base.qcow2", true),
    ("convert -O raw base.qcow2 copy", true),
    ("map base.qcow2", true),
    ("resize base.qcow2 2M", false),
    ("bitmap --add base.qcow2 b", false),
];

fn qemu_img(folder: &Path, question: &str) -> (bool, String) {
    let out = Command::new(find("qemu-img").unwrap())
        .args(question.split(' '))
        .current_dir(folder)
        .output()
        .unwrap();
    (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
}

fn ours(folder: &Path, question: &str) -> (bool, String) {
    let words: Vec<_> = question.split(' ').collect();
    let out = common::vdisk(folder, &words);
    (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
}

/// Starts a program that holds the images of a folder.
type Hold<'a> = &'a dyn Fn(&Path) -> Holder;

#[test]
fn the_images_of_a_running_guest_are_left_alone() {
    if !have(&["qemu-img", "qemu-system-x86_64", "qemu-storage-daemon", "qemu-nbd"]) {
        return;
    }
    let holders: [(&str, Hold<'_>); 3] = [
        ("qemu-system-x86_64 -S", &|folder| {
            vm(
                folder,
                "if=none,id=d,format=qcow2,file=top.qcow2",
                "virtio-blk-pci,drive=d",
            )
        }),
        ("qemu-storage-daemon", &storage_daemon),
        ("qemu-nbd", &nbd_server),
    ];
    for (name, hold) in holders {
        let dir = tempfile::tempdir().unwrap();
        images(dir.path());
        let _holder = hold(dir.path());
        for (question, expected) in QUESTIONS {
            let before = std::fs::read(dir.path().join("top.qcow2")).unwrap();
            let (theirs, their_words) = qemu_img(dir.path(), question);
            let (found, words) = ours(dir.path(), question);
            assert_eq!(
                (theirs, found),
                (expected, expected),
                "{name}: {question}\n{their_words}{words}"
            );
            if !expected {
                assert!(words.contains("lock"), "{name}: {question}: {words}");
            }
            assert!(
                std::fs::read(dir.path().join("top.qcow2")).unwrap() == before,
                "{name}: {question} wrote"
            );
        }
    }
}

/// A raw disk that guests share is locked against nobody by QEMU, whose own `resize` goes through; ours does not.
#[test]
fn a_raw_disk_that_guests_share_is_not_written_or_read_unasked() {
    if !have(&["qemu-img", "qemu-system-x86_64"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    images(dir.path());
    let _vm = vm(
        dir.path(),
        "if=none,id=d,format=raw,file=disk.raw",
        "virtio-blk-pci,drive=d,share-rw=on",
    );
    let questions = [
        ("resize -f raw disk.raw 2M", true, false),
        ("info -f raw disk.raw", true, false),
        ("info -U -f raw disk.raw", true, true),
        ("convert -f raw -O qcow2 disk.raw copy", false, false),
        ("convert -U -f raw -O qcow2 disk.raw copy", true, true),
    ];
    for (question, qemu, expected) in questions {
        let (theirs, their_words) = qemu_img(dir.path(), question);
        let (found, words) = ours(dir.path(), question);
        assert_eq!((theirs, found), (qemu, expected), "{question}\n{their_words}{words}");
    }
}
