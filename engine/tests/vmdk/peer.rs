//! What we write qemu-img reads, and the other way round.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use e2e::tools::{arg, have, ok};
use vdisk_engine::control::Control;
use vdisk_engine::gate::Node;
use vdisk_engine::image::{ExtentKind, Repair, Resize};
use vdisk_engine::ops::convert::{CopyOptions, convert};
use vdisk_engine::storage::{FileOptions, FileStorage};
use vdisk_engine::{Chain, Limits, OpenEnv};

use crate::support::{SUBFORMATS, contents, create, open, options, pattern, try_open};

const SIZE: u64 = (9 << 20) + 512;

/// A raw disk with data, holes and an odd end.
fn raw(path: &Path) -> Vec<u8> {
    let mut bytes = vec![0; SIZE as usize];
    bytes[70_000..3_000_000].copy_from_slice(&pattern(2_930_000, 1));
    bytes[8 << 20..(8 << 20) + 4096].fill(3);
    bytes[(9 << 20) + 100..].fill(4);
    std::fs::write(path, &bytes).unwrap();
    bytes
}

fn assert_same(path: &Path, raw: &Path) {
    ok("qemu-img", &["compare", "-f", "vmdk", "-F", "raw", arg(path), arg(raw)]);
    ok("qemu-img", &["check", "-f", "vmdk", arg(path)]);
    let report = open(path, false).top().check(Repair::No, &Control::default()).unwrap();
    assert_eq!(
        (report.corruptions, report.leaks),
        (0, 0),
        "{}: {:?}",
        path.display(),
        report.messages
    );
}

#[test]
fn qemu_reads_what_convert_writes_in_every_subformat() {
    if !have(&["qemu-img"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("s.raw");
    raw(&source);
    let limits = vdisk_engine::Limits::default();
    for subformat in SUBFORMATS {
        let path = dir.path().join(format!("{subformat}.vmdk"));
        create(&path, SIZE, options(&[("subformat", subformat)]), None).unwrap();
        let storage =
            vdisk_engine::storage::FileStorage::open(&source, vdisk_engine::storage::FileOptions::read()).unwrap();
        let node = vdisk_engine::Node::new(std::sync::Arc::new(storage), "raw");
        let from = vdisk_engine::Chain::open(node, &vdisk_engine::OpenEnv::closed(&limits)).unwrap();
        let target = open(&path, true);
        convert(&from, target.top(), &CopyOptions::default(), &Control::default()).unwrap();
        drop(target);
        assert_same(&path, &source);
    }
}

#[test]
fn a_stream_is_not_larger_than_qemus() {
    if !have(&["qemu-img"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (source, theirs, ours) = (
        dir.path().join("s.raw"),
        dir.path().join("t.vmdk"),
        dir.path().join("o.vmdk"),
    );
    // A program is what a disk is full of.
    let program = std::fs::read(e2e::tools::find("qemu-img").unwrap()).unwrap();
    std::fs::write(&source, &program[..program.len() / 65536 * 65536]).unwrap();
    ok(
        "qemu-img",
        &[
            "convert",
            "-f",
            "raw",
            "-O",
            "vmdk",
            "-o",
            "subformat=streamOptimized",
            arg(&source),
            arg(&theirs),
        ],
    );
    let size = std::fs::metadata(&source).unwrap().len();
    create(&ours, size, options(&[("subformat", "streamOptimized")]), None).unwrap();
    let target = open(&ours, true);
    target.write(0, &std::fs::read(&source).unwrap()).unwrap();
    target.top().close().unwrap();
    drop(target);
    assert_same(&ours, &source);
    let len = |path| std::fs::metadata(path).unwrap().len();
    assert!(len(&ours) <= len(&theirs), "{} > {}", len(&ours), len(&theirs));
}

#[test]
fn qemu_reads_scattered_writes_zeroes_and_growth() {
    if !have(&["qemu-img"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (number, pairs) in [
        &[("subformat", "monolithicSparse")][..],
        &[("zeroed_grain", "on")],
        &[("subformat", "monolithicFlat")],
        &[("subformat", "twoGbMaxExtentSparse")],
        &[("subformat", "twoGbMaxExtentFlat")],
    ]
    .iter()
    .enumerate()
    {
        let (path, raw) = (
            dir.path().join(format!("{number}.vmdk")),
            dir.path().join(format!("{number}.raw")),
        );
        create(&path, SIZE, options(pairs), None).unwrap();
        let chain = open(&path, true);
        for (offset, len) in [(5 << 20, 200_000), (100, 70_000), (SIZE - 700, 700), (1 << 20, 65536)] {
            chain.write(offset, &pattern(len, offset)).unwrap();
        }
        chain.write_zeroes((5 << 20) + 5000, 100_000, true).unwrap();
        chain
            .top()
            .resize(&Resize {
                virtual_size: 140 << 20,
                ..Resize::default()
            })
            .unwrap();
        chain.write(139 << 20, &pattern(100_000, 9)).unwrap();
        chain.top().close().unwrap();
        let content = contents(&chain);
        drop(chain);
        std::fs::write(&raw, &content).unwrap();
        assert!(content == contents(&open(&path, false)));
        assert_same(&path, &raw);
    }
}

#[test]
fn we_read_what_qemu_writes_in_every_subformat() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("s.raw");
    let bytes = raw(&source);
    for subformat in SUBFORMATS {
        let path = dir.path().join(format!("{subformat}.vmdk"));
        let option = format!("subformat={subformat}");
        ok(
            "qemu-img",
            &[
                "convert",
                "-f",
                "raw",
                "-O",
                "vmdk",
                "-o",
                &option,
                arg(&source),
                arg(&path),
            ],
        );
        assert!(contents(&open(&path, false)) == bytes, "{subformat}");
        assert_same(&path, &source);
        if subformat == "streamOptimized" {
            continue;
        }
        let io = ["-c", "write -P 7 3M 100k", "-c", "write -z 0 1M"];
        ok("qemu-io", &[&["-f", "vmdk"][..], &io, &[arg(&path)]].concat());
        let mut expected = bytes.clone();
        expected[3 << 20..(3 << 20) + 102_400].fill(7);
        expected[..1 << 20].fill(0);
        assert!(contents(&open(&path, false)) == expected, "{subformat}");
    }
}

/// Extents as qemu-img map has them: start, length, present, zero without data, offset.
fn agrees_with_map(path: &Path) {
    let map: serde_json::Value =
        serde_json::from_str(&ok("qemu-img", &["map", "--output=json", "-f", "vmdk", arg(path)])).unwrap();
    let chain = open(path, false);
    for theirs in map.as_array().unwrap() {
        let (start, len) = (theirs["start"].as_u64().unwrap(), theirs["length"].as_u64().unwrap());
        let ours = chain.extent(start, len).unwrap();
        assert_eq!(
            (ours.len, ours.present),
            (len, theirs["present"] == true),
            "{theirs}: {ours:?}"
        );
        match ours.kind {
            ExtentKind::Data { at, .. } => assert_eq!(at.map(|p| p.offset), theirs["offset"].as_u64(), "{theirs}"),
            ExtentKind::Compressed => assert_eq!(theirs["compressed"], true),
            ExtentKind::Zero { .. } | ExtentKind::Unallocated => {
                assert_eq!((&theirs["data"], &theirs["zero"]), (&false.into(), &true.into()))
            }
        }
    }
}

#[test]
fn extents_are_those_of_qemu_img_map() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let io = [
        "-c",
        "write -P 1 3M 1M",
        "-c",
        "write -P 2 2M 1M",
        "-c",
        "write -z 10M 1M",
        "-c",
        "write -P 3 199M 1M",
    ];
    for (number, option) in ["zeroed_grain=on", "compat6=off", "subformat=twoGbMaxExtentSparse"]
        .iter()
        .enumerate()
    {
        let path = dir.path().join(format!("{number}.vmdk"));
        ok(
            "qemu-img",
            &["create", "-q", "-f", "vmdk", "-o", option, arg(&path), "200M"],
        );
        ok("qemu-io", &[&["-f", "vmdk"][..], &io, &[arg(&path)]].concat());
        agrees_with_map(&path);
    }
    let stream = dir.path().join("stream.vmdk");
    let from = dir.path().join("1.vmdk");
    ok(
        "qemu-img",
        &[
            "convert",
            "-f",
            "vmdk",
            "-O",
            "vmdk",
            "-o",
            "subformat=streamOptimized",
            arg(&from),
            arg(&stream),
        ],
    );
    agrees_with_map(&stream);
}

#[test]
fn info_has_qemus_facts() {
    if !have(&["qemu-img"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for subformat in SUBFORMATS {
        let path = dir.path().join(format!("{subformat}.vmdk"));
        create(&path, 5 << 30, options(&[("subformat", subformat)]), None).unwrap();
        let theirs: serde_json::Value =
            serde_json::from_str(&ok("qemu-img", &["info", "--output=json", "-f", "vmdk", arg(&path)])).unwrap();
        let info = open(&path, false).top().info().unwrap();
        assert_eq!(
            serde_json::Value::Object(info.specific.unwrap()),
            theirs["format-specific"]["data"],
            "{subformat}"
        );
        assert_eq!(info.cluster_size, theirs["cluster-size"].as_u64(), "{subformat}");
    }
}

/// Two extents of 2047 MiB and a rest; data around both borders.
#[test]
fn runs_over_the_borders_of_extents_are_filled_by_all_workers() {
    let dir = tempfile::tempdir().unwrap();
    let border = 2047u64 << 20;
    let size = 2 * border + (3 << 20);
    let raw = dir.path().join("raw");
    let file = std::fs::File::create_new(&raw).unwrap();
    file.set_len(size).unwrap();
    let places = [border - (1 << 20) - 512, 2 * border - 70_000, size - 5000];
    for (n, at) in places.into_iter().enumerate() {
        let len = (size - at).min(3 << 20) as usize;
        file.write_all_at(&pattern(len, n as u64), at).unwrap();
    }
    for subformat in ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        let path = dir.path().join(format!("{subformat}.vmdk"));
        create(&path, size, options(&[("subformat", subformat)]), None).unwrap();
        let target = open(&path, true);
        assert!(target.top().bulk().is_some(), "{subformat}");
        let source = raw_chain(&raw);
        let how = CopyOptions {
            workers: 3,
            ..CopyOptions::default()
        };
        convert(&source, target.top(), &how, &Control::default()).unwrap();
        drop(target);
        let seen = open(&path, false);
        for at in places {
            let from = at - 70_000;
            let mut bytes = [vec![1; (size - from).min(4 << 20) as usize], Vec::new()];
            bytes[1] = bytes[0].clone();
            source.read(from, &mut bytes[0]).unwrap();
            seen.read(from, &mut bytes[1]).unwrap();
            assert!(bytes[0] == bytes[1], "{subformat} at {at:#x}");
        }
        if have(&["qemu-img"]) {
            assert_same(&path, &raw);
        }
    }
}

fn raw_chain(path: &Path) -> Chain {
    let storage = Arc::new(FileStorage::open(path, FileOptions::read()).unwrap());
    let limits = Limits::default();
    Chain::open(Node::new(storage, "raw"), &OpenEnv::closed(&limits)).unwrap()
}

#[test]
fn a_sparse_file_cut_in_its_metadata_is_refused_in_qemus_words() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.vmdk");
    create(&path, 100 << 20, options(&[]), None).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(65_024).unwrap();
    let error = try_open(&path, false).err().unwrap().to_string();
    assert!(
        error.contains("File truncated, expecting at least 65536 bytes"),
        "{error}"
    );
    if have(&["qemu-img"]) {
        let out = e2e::tools::run("qemu-img", &["info", "-f", "vmdk", arg(&path)]);
        let error = String::from_utf8(out.stderr).unwrap();
        assert!(
            error.contains("File truncated, expecting at least 65536 bytes"),
            "{error}"
        );
    }
}
