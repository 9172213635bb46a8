//! VHDX.

use e2e::tools::{arg, have, ok};
use vdisk_engine::image::{ExtentKind, Repair, Resize};
use vdisk_engine::options::Options;
use vdisk_engine::{Control, ErrorKind};

use crate::support::{Folder, assert_same, contents, libvhdi_contents, qemu_map};

pub fn folder() -> (tempfile::TempDir, Folder) {
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
