//! What `vdisk` has beyond qemu-img, and what the tables of command lines cannot show.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

mod common;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{ok, vdisk};
use serde_json::Value;

/// Runs `vdisk`, which must fail, and gives its exit code and messages.
fn fails(folder: &Path, args: &[&str]) -> (i32, String) {
    let out = vdisk(folder, args);
    assert!(!out.status.success(), "vdisk {args:?} succeeded");
    (
        out.status.code().unwrap(),
        String::from_utf8_lossy(&out.stderr).into_owned(),
    )
}

/// A raw disk of 4 MiB with some data.
fn disk(folder: &Path) {
    let file = File::create(folder.join("disk")).unwrap();
    file.set_len(4 << 20).unwrap();
    for (offset, byte) in [(0, 1), (100_000, 2), (1 << 20, 3), ((4 << 20) - 512, 4)] {
        file.write_all_at(&[byte; 512], offset).unwrap();
    }
}

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
fn secrets_are_read_in_every_form() {
    let dir = tempfile::tempdir().unwrap();
    disk(dir.path());
    fs::write(dir.path().join("key"), "0123456789abcdef0123456789abcdef").unwrap();
    let good: &[&str] = &[
        "secret,id=a,data=x",
        "secret,id=a,file=key",
        "secret,id=a,data=eHl6,format=base64",
        r#"{"qom-type":"secret","id":"a","data":"x"}"#,
    ];
    for object in good {
        ok(dir.path(), &["info", "--object", object, "disk"]);
    }
    for (object, message) in [
        ("secret,id=a,data=x,file=key", "mutually exclusive"),
        ("secret,id=a,data=*,format=base64", "base64"),
        (
            "secret,id=a,data=eHl6,format=base64,keyid=m,iv=AAAA",
            "No secret with id 'm'",
        ),
        ("secret,id=a,file=nofile", "nofile"),
        ("iothread,id=a", "iothread"),
    ] {
        let (code, said) = fails(dir.path(), &["info", "--object", object, "disk"]);
        assert!(code == 1 && said.contains(message), "{object}: {said}");
    }
}

#[test]
fn an_encrypted_secret_opens_what_the_plain_one_locked() {
    if !e2e::tools::have(&["openssl", "qemu-img"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let (key, iv) = ("00112233445566778899aabbccddeeff".repeat(2), "0f".repeat(16));
    fs::write(dir.path().join("plain"), "open sesame").unwrap();
    let line = format!(
        "openssl enc -aes-256-cbc -a -K {key} -iv {iv} -in {} -out {}",
        at("plain"),
        at("sealed")
    );
    assert!(Command::new("sh").args(["-c", &line]).status().unwrap().success());
    let bytes: Vec<u8> = (0..32)
        .map(|i| u8::from_str_radix(&key[i * 2..i * 2 + 2], 16).unwrap())
        .collect();
    fs::write(dir.path().join("master"), bytes).unwrap();
    let plain = format!("secret,id=s,file={}", at("plain"));
    let image = at("luks");
    let create = [
        "create",
        "-q",
        "--object",
        &plain,
        "-f",
        "luks",
        "-o",
        "key-secret=s,iter-time=10",
        &image,
        "1M",
    ];
    e2e::tools::ok("qemu-img", &create);
    let master = format!("secret,id=m,file={}", at("master"));
    // The 16 bytes 0f in base64.
    let sealed = format!(
        "secret,id=s,file={},format=base64,keyid=m,iv=Dw8PDw8PDw8PDw8PDw8PDw==",
        at("sealed")
    );
    let name = format!("driver=luks,key-secret=s,file.filename={image}");
    ok(
        dir.path(),
        &[
            "convert",
            "--object",
            &master,
            "--object",
            &sealed,
            "--image-opts",
            &name,
            "out",
        ],
    );
    let wrong = [
        "convert",
        "--object",
        "secret,id=s,data=wrong",
        "--image-opts",
        &name,
        "out2",
    ];
    assert_eq!(fails(dir.path(), &wrong).0, 1);
    assert!(!dir.path().join("out2").exists());
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
