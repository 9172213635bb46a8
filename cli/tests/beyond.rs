//! What `vdisk` has beyond qemu-img, and what the tables of command lines cannot show.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

mod common;
#[path = "common/scratch.rs"]
mod scratch;

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::process::{Command, Stdio};

use common::{ok, vdisk};
use scratch::{disk, fails};
use serde_json::Value;

#[test]
fn a_digest_is_the_same_in_any_format() {
    let dir = tempfile::tempdir().unwrap();
    disk(dir.path());
    ok(dir.path(), &["convert", "-O", "qcow2", "-c", "disk", "q"]);
    ok(
        dir.path(),
        &["create", "-q", "-f", "qcow2", "-b", "q", "-F", "qcow2", "top"],
    );
    let digest = |args: &[&str]| ok(dir.path(), args).split(' ').next().unwrap().to_owned();
    let raw = digest(&["digest", "-f", "raw", "disk"]);
    assert_eq!(raw.len(), 64);
    assert_eq!(digest(&["digest", "q"]), raw);
    assert_eq!(digest(&["digest", "top"]), raw);
    fs::OpenOptions::new()
        .write(true)
        .open(dir.path().join("disk"))
        .unwrap()
        .write_all_at(&[9], 77)
        .unwrap();
    assert_ne!(digest(&["digest", "-f", "raw", "disk"]), raw);
}

#[test]
fn a_full_digest_is_the_sha256_of_the_disk() {
    if !e2e::tools::have(&["sha256sum"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    disk(dir.path());
    let path = dir.path().join("disk");
    let expected = e2e::tools::ok("sha256sum", &[e2e::tools::arg(&path)]);
    ok(dir.path(), &["convert", "-O", "qcow2", "disk", "q"]);
    let found = ok(dir.path(), &["digest", "--full", "q"]);
    assert_eq!(found.split(' ').next(), expected.split(' ').next());
}

#[test]
fn convert_reads_standard_input_and_writes_standard_output() {
    let dir = tempfile::tempdir().unwrap();
    disk(dir.path());
    let content = fs::read(dir.path().join("disk")).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_vdisk"))
        .args(["convert", "-f", "raw", "-O", "qcow2", "-", "-"])
        .stdin(Stdio::piped())
        .stdout(File::create(dir.path().join("q")).unwrap())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&content).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(
        ok(dir.path(), &["compare", "-f", "raw", "disk", "q"]),
        "Images are identical.\n"
    );
}

#[test]
fn every_verb_can_answer_in_json() {
    let dir = tempfile::tempdir().unwrap();
    disk(dir.path());
    let lines: &[&[&str]] = &[
        &["create", "-f", "qcow2", "q", "4M"],
        &["convert", "-O", "qcow2", "disk", "q"],
        &["info", "q"],
        &["map", "q"],
        &["check", "q"],
        &["measure", "-O", "raw", "q"],
        &["compare", "disk", "q"],
        &["digest", "q"],
        &["formats"],
        &["dd", "if=q", "of=d", "count=1"],
        &["bench", "-c", "2", "q"],
        &["resize", "-f", "raw", "d", "1M"],
        &["snapshot", "-l", "q"],
    ];
    for line in lines {
        let args = [*line, &["--output=json"]].concat();
        // The size of `resize` stands last, as in qemu-img.
        let args = if line[0] == "resize" {
            vec!["resize", "--output=json", "-f", "raw", "d", "1M"]
        } else {
            args
        };
        let text = ok(dir.path(), &args);
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{line:?}: {e}\n{text}"));
        assert!(value.is_object() || value.is_array(), "{line:?}");
    }
}

#[test]
fn a_rate_limit_slows_a_conversion_down() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("disk"), vec![7; 4 << 20]).unwrap();
    let start = std::time::Instant::now();
    ok(dir.path(), &["convert", "-f", "raw", "-r", "4M", "disk", "out"]);
    assert!(start.elapsed().as_millis() >= 400, "{:?}", start.elapsed());
}

#[test]
fn direct_cache_modes_copy_the_same() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    disk(dir.path());
    for cache in ["none", "directsync", "writethrough", "writeback", "unsafe"] {
        let out = vdisk(
            dir.path(),
            &["convert", "-O", "qcow2", "-t", cache, "-T", cache, "disk", "q"],
        );
        let messages = String::from_utf8_lossy(&out.stderr);
        if messages.contains("Invalid argument") {
            println!("skipped {cache}: the file system has no O_DIRECT");
            continue;
        }
        assert!(out.status.success(), "{cache}: {messages}");
        assert_eq!(
            ok(dir.path(), &["compare", "disk", "q"]),
            "Images are identical.\n",
            "{cache}"
        );
    }
}

#[test]
fn completions_name_the_verbs() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = ok(dir.path(), &["completions", shell]);
        assert!(script.contains("rebase") && script.contains("vdisk"), "{shell}");
    }
}

#[test]
fn messages_start_with_the_name_of_the_program() {
    let dir = tempfile::tempdir().unwrap();
    assert!(
        fails(dir.path(), &["info", "nofile"])
            .1
            .starts_with("vdisk: Could not open 'nofile'")
    );
}

#[test]
fn the_last_line_of_a_comparison_is_its_result() {
    let dir = tempfile::tempdir().unwrap();
    disk(dir.path());
    fs::copy(dir.path().join("disk"), dir.path().join("other")).unwrap();
    let shown = |files: [&str; 2]| {
        let out = vdisk(
            dir.path(),
            &["compare", "-p", "-f", "raw", "-F", "raw", files[0], files[1]],
        );
        String::from_utf8(out.stdout).unwrap()
    };
    let same = shown(["disk", "other"]);
    assert!(
        same.ends_with("    (100.00/100%)\rImages are identical.\n\n"),
        "{same:?}"
    );
    let file = fs::OpenOptions::new()
        .write(true)
        .open(dir.path().join("other"))
        .unwrap();
    file.write_all_at(&[9; 512], 2 << 20).unwrap();
    let differ = shown(["disk", "other"]);
    assert!(
        differ.ends_with("%)\rContent mismatch at offset 2097152!\n\n"),
        "{differ:?}"
    );
    assert!(!differ.contains("(100.00"), "{differ:?}");
}

#[test]
fn an_unsafe_rebase_of_a_vmdk_takes_the_base_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    disk(dir.path());
    ok(dir.path(), &["create", "-q", "-f", "vmdk", "base", "4M"]);
    ok(
        dir.path(),
        &["create", "-q", "-f", "vmdk", "-b", "base", "-F", "vmdk", "top"],
    );
    ok(
        dir.path(),
        &["convert", "-n", "-f", "raw", "-O", "vmdk", "disk", "base"],
    );
    fails(dir.path(), &["digest", "top"]);
    let (_, message) = fails(dir.path(), &["rebase", "-u", "-b", "gone", "-F", "vmdk", "top"]);
    assert!(message.contains("Could not open new backing file 'gone'"), "{message}");
    ok(dir.path(), &["rebase", "-u", "-b", "base", "-F", "vmdk", "top"]);
    let digest = |name: &str| ok(dir.path(), &["digest", name]).split(' ').next().unwrap().to_owned();
    assert_eq!(digest("top"), digest("base"));
}

#[test]
fn a_commit_into_a_deeper_base_leaves_a_chain_that_opens() {
    for format in ["vmdk", "vhdx"] {
        let dir = tempfile::tempdir().unwrap();
        ok(dir.path(), &["create", "-q", "-f", format, "l0", "4M"]);
        for (below, name) in [("l0", "l1"), ("l1", "l2")] {
            ok(
                dir.path(),
                &["create", "-q", "-f", format, "-b", below, "-F", format, name],
            );
        }
        ok(
            dir.path(),
            &[
                "bench",
                "-w",
                "-f",
                format,
                "-c",
                "8",
                "-s",
                "64k",
                "--pattern",
                "7",
                "l2",
            ],
        );
        let digest = |name: &str| ok(dir.path(), &["digest", name]).split(' ').next().unwrap().to_owned();
        let before = digest("l2");
        ok(dir.path(), &["commit", "-q", "-b", "l0", "l2"]);
        for name in ["l0", "l1", "l2"] {
            assert_eq!(digest(name), before, "{format}: {name}");
        }
    }
}

#[test]
fn a_differencing_vdi_is_read_over_the_disk_that_is_given() {
    let dir = tempfile::tempdir().unwrap();
    disk(dir.path());
    ok(dir.path(), &["convert", "-f", "raw", "-O", "vdi", "disk", "base.vdi"]);
    for name in ["top.vdi", "other.vdi"] {
        ok(dir.path(), &["create", "-q", "-f", "vdi", name, "4M"]);
    }
    // What VirtualBox writes: the type, and the UUID of the disk below.
    let top = fs::OpenOptions::new()
        .write(true)
        .open(dir.path().join("top.vdi"))
        .unwrap();
    let base = fs::read(dir.path().join("base.vdi")).unwrap();
    top.write_all_at(&4u32.to_le_bytes(), 0x4c).unwrap();
    top.write_all_at(&base[0x188..0x198], 0x1a8).unwrap();
    let over = |base: &str| format!("driver=vdi,file.filename=top.vdi,backing.driver=vdi,backing.file.filename={base}");
    ok(
        dir.path(),
        &["convert", "--image-opts", "-O", "raw", &over("base.vdi"), "out"],
    );
    assert!(fs::read(dir.path().join("out")).unwrap() == fs::read(dir.path().join("disk")).unwrap());
    let (_, message) = fails(
        dir.path(),
        &["convert", "--image-opts", "-O", "raw", &over("other.vdi"), "no"],
    );
    assert!(message.contains("xpected the layer below to be"), "{message}");
}
