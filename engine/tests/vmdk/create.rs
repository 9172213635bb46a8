//! New images are what qemu-img makes.

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use e2e::tools::{arg, have, ok};
use vdisk_engine::gate::Node;
use vdisk_engine::ops::convert::{CopyOptions, convert};
use vdisk_engine::ops::measure;
use vdisk_engine::storage::{FileOptions, FileStorage};
use vdisk_engine::{Chain, Control, ErrorKind, Limits, OpenEnv};

use crate::support::{SUBFORMATS, create, open, options};

/// A descriptor without the values of its CIDs: ours have eight digits always, qemu-img's as many as needed.
fn without_cids(text: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(text);
    let line = |l: &str| match l.split_once("CID=") {
        Some((key, _)) => format!("{key}CID="),
        None => l.to_owned(),
    };
    text.trim_end_matches('\0').lines().map(line).collect()
}

/// A file as what must be the same: bytes before, the descriptor, bytes behind.
fn comparable(path: &Path) -> (Vec<u8>, Vec<String>, Vec<u8>) {
    let bytes = std::fs::read(path).unwrap();
    if bytes.starts_with(b"KDMV") {
        let (head, rest) = bytes.split_at(512);
        let (text, tail) = rest.split_at(20 * 512);
        return (head.to_vec(), without_cids(text), tail.to_vec());
    }
    if bytes.starts_with(b"#") {
        return (Vec::new(), without_cids(&bytes), Vec::new());
    }
    (bytes, Vec::new(), Vec::new())
}

fn same_as_qemu(size: &str, bytes: u64, pairs: &[(&str, &str)]) {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let list: Vec<_> = pairs.iter().map(|(n, v)| format!("{n}={v}")).collect();
    let list = if list.is_empty() {
        "compat6=off".into()
    } else {
        list.join(",")
    };
    ok(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "vmdk",
            "-o",
            &list,
            arg(&theirs.path().join("d.vmdk")),
            size,
        ],
    );
    create(&ours.path().join("d.vmdk"), bytes, options(pairs), None).unwrap();
    let mut names: Vec<_> = std::fs::read_dir(theirs.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(std::fs::read_dir(ours.path()).unwrap().count(), names.len());
    for name in names {
        let (a, b) = (ours.path().join(&name), theirs.path().join(&name));
        let (ours_len, len) = (
            std::fs::metadata(&a).unwrap().len(),
            std::fs::metadata(&b).unwrap().len(),
        );
        let sparse = len > 64 << 20;
        assert!(!sparse || ours_len == len);
        assert!(
            sparse || comparable(&a) == comparable(&b),
            "{list} {size}: {}",
            name.display()
        );
    }
}

#[test]
fn every_subformat_and_size_has_qemus_bytes() {
    if !have(&["qemu-img"]) {
        return;
    }
    for subformat in SUBFORMATS.iter().filter(|s| **s != "streamOptimized") {
        for (size, bytes) in [("512", 512), ("3000000", 3_000_000), ("5G", 5 << 30), ("2G", 2 << 30)] {
            same_as_qemu(size, bytes, &[("subformat", *subformat)]);
        }
    }
}

#[test]
fn every_option_has_qemus_bytes() {
    if !have(&["qemu-img"]) {
        return;
    }
    for adapter in ["ide", "lsilogic", "buslogic", "legacyESX"] {
        same_as_qemu("70M", 70 << 20, &[("adapter_type", adapter)]);
    }
    same_as_qemu("70M", 70 << 20, &[("compat6", "on")]);
    same_as_qemu("70M", 70 << 20, &[("hwversion", "13"), ("toolsversion", "77")]);
    same_as_qemu("70M", 70 << 20, &[("zeroed_grain", "on")]);
}

#[test]
fn an_overlay_has_qemus_bytes() {
    if !have(&["qemu-img"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (dir.path().join("a.vmdk"), dir.path().join("b.vmdk"));
    ok(
        "qemu-img",
        &["create", "-q", "-f", "vmdk", arg(&dir.path().join("base.vmdk")), "1M"],
    );
    ok(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "vmdk",
            "-b",
            "base.vmdk",
            "-F",
            "vmdk",
            arg(&theirs),
        ],
    );
    create(&ours, 1 << 20, options(&[]), Some("base.vmdk")).unwrap();
    let ((head, mut text, tail), theirs) = (comparable(&ours), comparable(&theirs));
    text.iter_mut().for_each(|l| *l = l.replace("\"a.vmdk\"", "\"b.vmdk\""));
    assert!((head, text, tail) == theirs);
    ok("qemu-img", &["info", "--backing-chain", arg(&ours)]);
}

#[test]
fn a_new_stream_is_an_empty_disk_to_qemu() {
    if !have(&["qemu-img"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for size in [512u64, 3 << 30, 100 << 30] {
        let path = dir.path().join(format!("{size}.vmdk"));
        create(&path, size, options(&[("subformat", "streamOptimized")]), None).unwrap();
        let map = ok("qemu-img", &["map", "--output=json", "-f", "vmdk", arg(&path)]);
        assert!(
            map.contains(&format!("\"length\": {size}")) && map.contains("\"present\": false"),
            "{map}"
        );
        let chain = open(&path, false);
        assert_eq!(chain.extent(0, size).unwrap().len, size);
    }
}

/// Options, the base, a word of the error.
type Case = (
    &'static [(&'static str, &'static str)],
    Option<&'static str>,
    &'static str,
);

#[test]
fn what_cannot_be_is_refused_with_qemus_words() {
    let dir = tempfile::tempdir().unwrap();
    create(&dir.path().join("base.vmdk"), 1 << 20, options(&[]), None).unwrap();
    let cases: &[Case] = &[
        (
            &[("subformat", "monolithicFlat"), ("zeroed_grain", "on")],
            None,
            "Flat image can't enable zeroed grain",
        ),
        (
            &[("subformat", "twoGbMaxExtentFlat")],
            Some("base.vmdk"),
            "Flat image can't have backing file",
        ),
        (
            &[("compat6", "on"), ("hwversion", "4")],
            None,
            "compat6 cannot be enabled with hwversion set",
        ),
        (&[("adapter_type", "foo")], None, "foo"),
        (&[("subformat", "foo")], None, "foo"),
        (&[("toolsversion", "1\"\nRW 1 FLAT \"x\" 0")], None, "toolsversion"),
        (&[], Some("a\"b"), "a\\\"b"),
        (&[], Some("missing.vmdk"), "missing.vmdk"),
    ];
    for (number, (pairs, backing, word)) in cases.iter().enumerate() {
        let error = create(
            &dir.path().join(format!("{number}.vmdk")),
            1 << 20,
            options(pairs),
            *backing,
        )
        .unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
        assert!(
            matches!(error.kind(), ErrorKind::InvalidArgument | ErrorKind::Io),
            "{error:?}"
        );
    }
}

/// Bytes of all files in a folder.
fn bytes_in(folder: &Path) -> u64 {
    let files = std::fs::read_dir(folder).unwrap();
    files.map(|f| f.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn no_subformat_takes_more_than_measure_says() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("raw");
    for size in [1 << 20, (4 << 30) + 512] {
        // What does not become shorter by being compressed, also over the border of two extents.
        let raw = std::fs::File::create(&path).unwrap();
        raw.set_len(size).unwrap();
        let mut random = 1u64;
        let mut noise = vec![0; 700 << 10];
        noise.fill_with(|| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) as u8
        });
        for at in [0, (2 << 30) - (100 << 10), size - (700 << 10)] {
            if at + (700 << 10) <= size {
                raw.write_all_at(&noise, at).unwrap();
            }
        }
        let file = Arc::new(FileStorage::open(&path, FileOptions::read()).unwrap());
        let source = Chain::open(Node::new(file, "raw"), &OpenEnv::closed(&Limits::default())).unwrap();
        let data = measure::data_ranges(&source, &Control::default()).unwrap();
        for subformat in SUBFORMATS {
            let folder = tempfile::tempdir().unwrap();
            let disk = folder.path().join("disk.vmdk");
            let options = options(&[("subformat", subformat)]);
            let told = measure::measure("vmdk", size, &data, &options, false).unwrap();
            create(&disk, size, options, None).unwrap();
            let target = open(&disk, true);
            convert(&source, target.top(), &CopyOptions::default(), &Control::default()).unwrap();
            drop(target);
            let taken = bytes_in(folder.path());
            assert!(told.required >= taken, "{subformat}: {told:?}, {taken}");
            assert!(told.fully_allocated >= told.required, "{subformat}: {told:?}");
            // A descriptor's names are not known, nor how well grains are compressed.
            assert!(told.required < taken + (512 << 10), "{subformat}: {told:?}, {taken}");
        }
    }
}
