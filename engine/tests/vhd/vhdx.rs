//! VHDX.

use e2e::tools::{arg, have, ok, run};
use sha2::{Digest, Sha256};
use vdisk_engine::gate::Node;
use vdisk_engine::image::{ExtentKind, Repair, Resize};
use vdisk_engine::options::Options;
use vdisk_engine::storage::{FileOptions, FileStorage};
use vdisk_engine::{Chain, Control, ErrorKind, Limits, OpenEnv};

use crate::support::{Folder, assert_same, contents, hex, libvhdi_contents, libvhdi_overlay, nonzero_digest, qemu_map};

fn folder() -> (tempfile::TempDir, Folder) {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder(dir.path().to_owned());
    (dir, folder)
}

fn info(folder: &Folder, name: &str) -> serde_json::Value {
    serde_json::from_str(&ok(
        "qemu-img",
        &["info", "--output=json", "-f", "vhdx", arg(&folder.path(name))],
    ))
    .unwrap()
}

/// Bytes of regions that qemu-img and we must agree on: region layout, table, metadata items (ids and identities apart).
fn comparable(path: &std::path::Path) -> (u64, Vec<u8>, Vec<u8>) {
    let bytes = std::fs::read(path).unwrap();
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let (bat, metadata) = (number(0x30000 + 32), number(0x30000 + 64));
    let mut regions = bytes[0x30000 + 8..0x30000 + 80].to_vec();
    // The flag "must be known", which the specification wants and QEMU leaves out.
    regions[36..40].fill(0);
    regions[68..72].fill(0);
    let mut items = bytes[metadata..metadata + (64 << 10) + 40].to_vec();
    items[(64 << 10) + 16..(64 << 10) + 32].fill(0);
    (
        bytes.len() as u64,
        [regions, items].concat(),
        bytes[bat..metadata].to_vec(),
    )
}

#[test]
fn new_images_are_laid_out_as_qemu_img_does() {
    if !have(&["qemu-img"]) {
        return;
    }
    let (_dir, folder) = folder();
    let cases = [
        (512u64, ""),
        (513, ""),
        (3 << 20, ""),
        (1 << 30, ""),
        ((1 << 30) + 512, ""),
        (101 << 30, ""),
        (33 << 40, ""),
        (64 << 40, ""),
        (20 << 20, "block_state_zero=off"),
        (20 << 20, "log_size=3M,block_size=1M"),
        (20 << 20, "log_size=1500k"),
        (20 << 20, "subformat=fixed,block_state_zero=off"),
        (20 << 20, "subformat=fixed,block_state_zero=on"),
    ];
    for (number, (size, options)) in cases.into_iter().enumerate() {
        let (ours, theirs) = (format!("o{number}"), format!("t{number}"));
        let pairs = options.split(',').filter_map(|pair| pair.split_once('='));
        let ours_options = pairs.fold(Options::new(), |o, (k, v)| o.with(k, v));
        folder.create(&ours, "vhdx", size, None, ours_options).unwrap();
        let path = folder.path(&theirs);
        let size_text = size.to_string();
        let mut args = vec!["create", "-f", "vhdx", arg(&path), &size_text];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        ok("qemu-img", &args);
        let (a, b) = (comparable(&folder.path(&ours)), comparable(&path));
        assert_eq!(a.0, b.0, "length: {size} {options}");
        assert!(a.1 == b.1, "regions and metadata: {size} {options}");
        assert!(a.2 == b.2, "table: {size} {options}");
        ok("qemu-img", &["check", "-f", "vhdx", arg(&folder.path(&ours))]);
    }
}

#[test]
fn a_fixed_disk_has_all_its_space_from_the_start() {
    if !have(&["qemu-img"]) {
        return;
    }
    let (_dir, folder) = folder();
    folder
        .create("a", "vhdx", 20 << 20, None, Options::new().with("subformat", "fixed"))
        .unwrap();
    let before = std::fs::metadata(folder.path("a")).unwrap().len();
    let chain = folder.open("a", "vhdx", true);
    chain.write(19 << 20, &[1; 4096]).unwrap();
    chain.top().close().unwrap();
    assert_eq!(std::fs::metadata(folder.path("a")).unwrap().len(), before);
    assert_eq!(chain.extent(0, 20 << 20).unwrap().len, 20 << 20);
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let (_dir, folder) = folder();
    for (number, (name, value)) in [
        ("block_size", "3M"),
        ("block_size", "512M"),
        ("log_size", "4G"),
        ("subformat", "differencing"),
    ]
    .into_iter()
    .enumerate()
    {
        let error = folder
            .create(
                &number.to_string(),
                "vhdx",
                1 << 20,
                None,
                Options::new().with(name, value),
            )
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{name}={value}: {error}");
    }
    assert!(
        folder
            .create("x", "vhdx", (64 << 40) + 512, None, Options::new())
            .is_err()
    );
}

#[test]
fn qemu_and_libvhdi_read_what_we_write() {
    if !have(&["qemu-img"]) {
        return;
    }
    for options in [
        Options::new().with("block_size", "1M"),
        Options::new().with("subformat", "fixed"),
        Options::new().with("block_state_zero", "off").with("log_size", "2M"),
    ] {
        let (_dir, folder) = folder();
        folder
            .create("a.vhdx", "vhdx", (9 << 20) + 512, None, options.clone())
            .unwrap();
        let chain = folder.open("a.vhdx", "vhdx", true);
        for (offset, len, byte) in [(7 << 20, 3000, 1), (100, 2 << 20, 2), (9 << 20, 512, 3)] {
            chain.write(offset, &vec![byte; len]).unwrap();
        }
        chain.write_zeroes(1 << 20, 4096, true).unwrap();
        // Past what one MiB of table can say for blocks of 1 MiB: the table moves.
        chain
            .top()
            .resize(&Resize {
                virtual_size: 200 << 30,
                ..Resize::default()
            })
            .unwrap();
        chain.write(150 << 30, &[5; 100]).unwrap();
        chain.top().flush().unwrap();
        chain
            .top()
            .resize(&Resize {
                virtual_size: 40 << 20,
                shrink: true,
                ..Resize::default()
            })
            .unwrap();
        chain.write(39 << 20, &[4; 513]).unwrap();
        chain.top().close().unwrap();
        let bytes = contents(&chain);
        drop(chain);
        assert_eq!((bytes[100], bytes[1 << 20], bytes[39 << 20]), (2, 0, 4));
        std::fs::write(folder.path("raw"), &bytes).unwrap();
        let path = folder.path("a.vhdx");
        ok("qemu-img", &["check", "-f", "vhdx", arg(&path)]);
        ok(
            "qemu-img",
            &[
                "compare",
                "-f",
                "vhdx",
                "-F",
                "raw",
                arg(&path),
                arg(&folder.path("raw")),
            ],
        );
        if let Some(theirs) = libvhdi_contents(&path) {
            assert_same(&theirs, &bytes, &format!("{options:?}"));
        }
    }
}

#[test]
fn we_read_what_qemu_writes() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    for option in ["block_size=1M", "subformat=fixed", "block_state_zero=off"] {
        let (_dir, folder) = folder();
        let (path, raw) = (folder.path("a.vhdx"), folder.path("a.raw"));
        ok("qemu-img", &["create", "-f", "vhdx", "-o", option, arg(&path), "20M"]);
        let io = [
            "-c",
            "write -P 1 13M 70k",
            "-c",
            "write -P 2 19M 1M",
            "-c",
            "write -P 3 0 512",
            "-c",
            "write -P 4 2M 3M",
        ];
        ok("qemu-io", &[&["-f", "vhdx"][..], &io, &[arg(&path)]].concat());
        ok(
            "qemu-img",
            &["convert", "-f", "vhdx", "-O", "raw", arg(&path), arg(&raw)],
        );
        let chain = folder.open("a.vhdx", "vhdx", false);
        assert!(contents(&chain) == std::fs::read(&raw).unwrap());
        let report = chain.top().check(Repair::No, &Control::default()).unwrap();
        assert_eq!(
            (report.corruptions, report.leaks),
            (0, 0),
            "{option}: {:?}",
            report.messages
        );
        let cluster = info(&folder, "a.vhdx")["cluster-size"].as_u64();
        assert_eq!(chain.top().info().unwrap().cluster_size, cluster);
    }
}

/// QEMU calls all of a VHDX data; we know better, but only about blocks that are not there.
#[test]
fn the_map_is_true() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let (_dir, folder) = folder();
    let path = folder.path("a.vhdx");
    ok(
        "qemu-img",
        &["create", "-f", "vhdx", "-o", "block_size=1M", arg(&path), "20M"],
    );
    ok(
        "qemu-io",
        &[
            "-f",
            "vhdx",
            "-c",
            "write -P 1 3M 2M",
            "-c",
            "write -P 2 1M 1M",
            arg(&path),
        ],
    );
    assert!(qemu_map(&path, "vhdx").iter().all(|(_, _, zero, _)| !zero));
    let chain = folder.open("a.vhdx", "vhdx", false);
    let bytes = std::fs::read(&path).unwrap();
    let (mut at, mut map) = (0, Vec::new());
    while at < 20 << 20 {
        let extent = chain.extent(at, (20 << 20) - at).unwrap();
        if let ExtentKind::Data {
            at: Some(place),
            direct: true,
        } = extent.kind
        {
            let expected = if at == 1 << 20 { 2 } else { 1 };
            let stored = &bytes[place.offset as usize..(place.offset + extent.len) as usize];
            assert!(stored.iter().all(|b| *b == expected));
        }
        map.push((at >> 20, extent.len >> 20, extent.is_zero()));
        at += extent.len;
    }
    assert_eq!(
        map,
        [(0, 1, true), (1, 1, false), (2, 1, true), (3, 2, false), (5, 15, true)]
    );
}

#[test]
fn qemu_io_goes_on_where_we_stopped() {
    if !have(&["qemu-io"]) {
        return;
    }
    let (_dir, folder) = folder();
    folder.create("a.vhdx", "vhdx", 40 << 20, None, Options::new()).unwrap();
    let chain = folder.open("a.vhdx", "vhdx", true);
    chain.write(3 << 20, &[1; 4096]).unwrap();
    chain.top().close().unwrap();
    drop(chain);
    let path = folder.path("a.vhdx");
    ok(
        "qemu-io",
        &[
            "-f",
            "vhdx",
            "-c",
            "write -P 2 17M 1M",
            "-c",
            "read -P 1 3M 4k",
            arg(&path),
        ],
    );
    let chain = folder.open("a.vhdx", "vhdx", true);
    chain.write(35 << 20, &[3; 4096]).unwrap();
    chain.top().close().unwrap();
    let bytes = contents(&chain);
    drop(chain);
    let found = [3 << 20, 17 << 20, (18 << 20) - 1, 35 << 20].map(|at: usize| bytes[at]);
    assert_eq!(found, [1, 2, 2, 3]);
    ok(
        "qemu-io",
        &[
            "-r",
            "-f",
            "vhdx",
            "-c",
            "read -P 1 3M 4k",
            "-c",
            "read -P 2 17M 1M",
            "-c",
            "read -P 3 35M 4k",
            arg(&path),
        ],
    );
}

#[test]
fn libvhdi_reads_our_overlays() {
    let (_dir, folder) = folder();
    folder
        .create("base.vhdx", "vhdx", 9 << 20, None, Options::new())
        .unwrap();
    let base = folder.open("base.vhdx", "vhdx", true);
    base.write(1 << 20, &vec![7; 5 << 20]).unwrap();
    base.top().close().unwrap();
    drop(base);
    folder
        .create("top.vhdx", "vhdx", 9 << 20, Some("base.vhdx"), Options::new())
        .unwrap();
    let top = folder.open("top.vhdx", "vhdx", true);
    let mut model = contents(&top);
    assert_eq!(model[1 << 20], 7);
    for (offset, len, byte) in [
        (1000usize, 100usize, 1u8),
        (3 << 20, 70_000, 2),
        ((9 << 20) - 700, 700, 3),
        (4 << 20, 2 << 20, 5),
    ] {
        top.write(offset as u64, &vec![byte; len]).unwrap();
        model[offset..offset + len].fill(byte);
    }
    for (offset, len) in [(2 << 20, 300_001usize), (6 << 20, 2 << 20)] {
        top.write_zeroes(offset as u64, len as u64, true).unwrap();
        model[offset..offset + len].fill(0);
    }
    top.top().close().unwrap();
    assert_same(&contents(&top), &model, "before reopening");
    drop(top);
    assert_same(
        &contents(&folder.open("top.vhdx", "vhdx", false)),
        &model,
        "after reopening",
    );
    // vhdimount looks for an absolute path only; its library is told where the base is.
    let Some(theirs) = libvhdi_overlay(&folder.path("top.vhdx"), &folder.path("base.vhdx")) else {
        return;
    };
    assert_same(&theirs, &model, "libvhdi");
}

#[test]
fn a_base_that_was_written_since_is_refused() {
    let (_dir, folder) = folder();
    folder
        .create("base.vhdx", "vhdx", 4 << 20, None, Options::new())
        .unwrap();
    folder
        .create("top.vhdx", "vhdx", 4 << 20, Some("base.vhdx"), Options::new())
        .unwrap();
    folder.open("top.vhdx", "vhdx", false);
    let base = folder.open("base.vhdx", "vhdx", true);
    base.write(0, &[1; 512]).unwrap();
    base.top().close().unwrap();
    drop(base);
    let error = folder
        .open_with("top.vhdx", "vhdx", false, Options::new())
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("data-write id"), "{error}");
}

#[test]
fn an_overlay_opens_after_the_disk_below_it_came_onto_another_one() {
    use vdisk_engine::image::BackingReference;
    use vdisk_engine::ops::convert::CopyOptions;
    use vdisk_engine::ops::rebase::{rebase, rebase_unsafe};
    let disks = [
        ("base", None, 1u8),
        ("other", None, 2),
        ("mid", Some("base"), 3),
        ("top", Some("mid"), 4),
    ];
    let ways = ["unsafe", "onto", "flatten"];
    for (way, guest_writes) in ways.iter().flat_map(|way| [(*way, false), (*way, true)]) {
        let (_dir, folder) = folder();
        for (name, below, byte) in disks {
            folder.create(name, "vhdx", 4 << 20, below, Options::new()).unwrap();
            let disk = folder.open(name, "vhdx", true);
            let len = if name == "base" || name == "other" {
                3 << 20
            } else {
                70_000
            };
            disk.write(u64::from(byte) << 16, &vec![byte; len]).unwrap();
            disk.top().close().unwrap();
        }
        if way == "unsafe" {
            std::fs::copy(folder.path("base"), folder.path("other")).unwrap();
        }
        let expected = contents(&folder.open("top", "vhdx", false));
        let (mid, other) = (folder.open("mid", "vhdx", true), folder.open("other", "vhdx", false));
        let before = mid.top().layer_id();
        let backing = BackingReference {
            name: "other".into(),
            format: Some("vhdx".into()),
        };
        let (options, control) = (CopyOptions::default(), Control::default());
        match way {
            "unsafe" => rebase_unsafe(mid.top(), Some(&backing)),
            "onto" => rebase(&mid, Some(&other), Some(&backing), &options, &control),
            _ => rebase(&mid, None, None, &options, &control),
        }
        .unwrap();
        assert_eq!(mid.top().layer_id(), before);
        if guest_writes {
            mid.write(0, &[9; 512]).unwrap();
            mid.top().close().unwrap();
        }
        drop((mid, other));
        match folder.open_with("top", "vhdx", false, Options::new()) {
            Ok(top) if !guest_writes => assert_same(&contents(&top), &expected, way),
            Err(error) if guest_writes => assert!(error.to_string().contains("data-write id"), "{way}: {error}"),
            found => panic!("{way}, written: {guest_writes}: {:?}", found.err()),
        }
    }
}

#[test]
fn an_overlay_opens_after_it_was_committed() {
    use vdisk_engine::ops::commit::commit;
    use vdisk_engine::ops::convert::CopyOptions;
    for (format, size) in [("vhdx", 4u64 << 20), ("vpc", 1_079_296)] {
        for empty in [true, false] {
            let (_dir, folder) = folder();
            folder.create("base", format, size, None, Options::new()).unwrap();
            folder
                .create("top", format, size, Some("base"), Options::new())
                .unwrap();
            let top = folder.open("top", format, true);
            top.write(1000, &[7; 5000]).unwrap();
            top.top().close().unwrap();
            let expected = contents(&top);
            drop(top);
            let chain = folder.open_for_commit("top", "base", format);
            commit(&chain, 1, empty, &CopyOptions::default(), &Control::default()).unwrap();
            drop(chain);
            assert_same(&contents(&folder.open("top", format, false)), &expected, format);
            assert_same(&contents(&folder.open("base", format, false)), &expected, format);
        }
    }
}

fn sample(name: &str) -> Option<e2e::corpus::Sample> {
    let samples = e2e::corpus::samples(&["vhdx"])?;
    Some(samples.into_iter().find(|s| s.name() == name).unwrap())
}

/// The manifest has the digest that qemu-img gives after it replayed the log in a copy.
const REPLAYED: &str = "179cefe8b0587f123393eedf2aa7aa8d25798591178e6bc3950a09762f38f96f";

fn digest(chain: &Chain) -> String {
    let (size, mut sha) = (chain.virtual_size(), Sha256::new());
    let mut buf = vec![0; 4 << 20];
    for offset in (0..size).step_by(buf.len()) {
        let len = (size - offset).min(buf.len() as u64) as usize;
        chain.read(offset, &mut buf[..len]).unwrap();
        sha.update(&buf[..len]);
    }
    hex(&sha.finalize())
}

#[test]
fn a_dirty_log_is_replayed_in_memory_for_readers() {
    let Some(sample) = sample("qemu/iotest-dirtylog-10G-4M.vhdx") else {
        return;
    };
    let before = std::fs::read(&sample.path).unwrap();
    let folder = Folder(sample.path.parent().unwrap().to_owned());
    let chain = folder.open("iotest-dirtylog-10G-4M.vhdx", "vhdx", false);
    assert_eq!(digest(&chain), REPLAYED);
    let report = chain.top().check(Repair::No, &Control::default()).unwrap();
    assert_eq!(report.corruptions, 1, "{:?}", report.messages);
    assert!(
        std::fs::read(&sample.path).unwrap() == before,
        "a reader changed the file"
    );
}

#[test]
fn a_dirty_log_is_replayed_in_the_file_for_writers() {
    if !have(&["qemu-img"]) {
        return;
    }
    let Some(sample) = sample("qemu/iotest-dirtylog-10G-4M.vhdx") else {
        return;
    };
    let (_dir, folder) = folder();
    std::fs::copy(&sample.path, folder.path("a")).unwrap();
    assert!(
        !run("qemu-img", &["info", "-f", "vhdx", arg(&folder.path("a"))])
            .status
            .success()
    );
    let storage = std::sync::Arc::new(FileStorage::open(&folder.path("a"), FileOptions::write()).unwrap());
    let limits = Limits::default();
    let env = OpenEnv::closed(&limits).writable().for_check();
    let chain = Chain::open(Node::new(storage, "vhdx"), &env).unwrap();
    let report = chain.top().check(Repair::All, &Control::default()).unwrap();
    assert_eq!(
        (report.corruptions, report.corruptions_fixed),
        (0, 1),
        "{:?}",
        report.messages
    );
    // QEMU's own test of this sample: 18 MiB of 0xa5.
    let mut bytes = vec![0; 18 << 20];
    chain.read(0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|b| *b == 0xa5));
    drop(chain);
    ok("qemu-img", &["check", "-f", "vhdx", arg(&folder.path("a"))]);
    let again = folder.open("a", "vhdx", false);
    assert_eq!(
        again.top().check(Repair::No, &Control::default()).unwrap().corruptions,
        0
    );
}

#[test]
fn the_corpus_has_the_content_of_its_manifest() {
    let Some(samples) = e2e::corpus::samples(&["vhdx"]) else {
        return;
    };
    let mut read = 0;
    for sample in samples {
        let folder = Folder(sample.path.parent().unwrap().to_owned());
        let file = sample.path.file_name().unwrap().to_str().unwrap();
        let chain = folder.open(file, "vhdx", false);
        if let Some(size) = sample.virtual_size() {
            assert_eq!(chain.virtual_size(), size, "{}", sample.name());
        }
        if let Some(digest) = sample.nonzero_digest() {
            assert_eq!(nonzero_digest(&chain), digest, "{}", sample.name());
        } else if let Some(expected) = sample.content_sha256() {
            assert!(expected.contains(&digest(&chain)), "{}", sample.name());
        }
        let found = vdisk_engine::formats::detect(chain.top().storages()[0].as_ref()).unwrap();
        assert_eq!((found[0].0.name(), found[0].1), ("vhdx", 100), "{}", sample.name());
        read += 1;
    }
    assert!(read >= 9, "only {read} images");
}

#[test]
fn converting_makes_a_file_no_larger_than_qemu_img_does() {
    use std::os::unix::fs::MetadataExt;
    if !have(&["qemu-img"]) {
        return;
    }
    let (_dir, folder) = folder();
    let mut bytes = vec![0u8; 40 << 20];
    for at in (0..bytes.len()).step_by(1 << 19) {
        bytes[at..at + 4096].fill(at as u8 | 1);
    }
    std::fs::write(folder.path("raw"), &bytes).unwrap();
    let source = folder.open("raw", "raw", false);
    folder.convert(&source, "ours", "vhdx", Options::new());
    let (raw, theirs) = (folder.path("raw"), folder.path("theirs"));
    ok(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "vhdx", arg(&raw), arg(&theirs)],
    );
    let size = |name: &str| {
        let metadata = std::fs::metadata(folder.path(name)).unwrap();
        (metadata.blocks(), metadata.len())
    };
    let (ours, qemu) = (size("ours"), size("theirs"));
    assert!(ours.0 <= qemu.0 * 102 / 100 && ours.1 <= qemu.1, "{ours:?} {qemu:?}");
    ok(
        "qemu-img",
        &[
            "compare",
            "-f",
            "raw",
            "-F",
            "vhdx",
            arg(&raw),
            arg(&folder.path("ours")),
        ],
    );
    ok("qemu-img", &["check", "-f", "vhdx", arg(&folder.path("ours"))]);
}
