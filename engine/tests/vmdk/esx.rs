//! ESX extents, made by hand from their descriptions and read by qemu-img as well.

use std::path::Path;

use e2e::tools::{arg, have, ok};
use vdisk_engine::ErrorKind;
use vdisk_engine::image::NothingBelow;

use crate::support::{contents, open, pattern, try_open};

fn put(bytes: &mut Vec<u8>, at: usize, data: &[u8]) {
    if bytes.len() < at + data.len() {
        bytes.resize(at + data.len(), 0);
    }
    bytes[at..at + data.len()].copy_from_slice(data);
}

fn descriptor(path: &Path, create_type: &str, line: &str) {
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"{create_type}\"\n\n# Extent description\n{line}\n\n#DDB\nddb.adapterType = \"lsilogic\"\n"
    );
    std::fs::write(path, text).unwrap();
}

/// COWD: grains of one sector, the second of two tables with data in its first and last entries.
fn cowd() -> Vec<u8> {
    let mut b = Vec::new();
    let words = [0x4457_4f43u32, 1, 3, 4096 + 100, 1, 4, 2, 100];
    put(
        &mut b,
        0,
        &words.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>(),
    );
    put(&mut b, 4 * 512, &40u32.to_le_bytes());
    put(&mut b, 4 * 512 + 4, &80u32.to_le_bytes());
    for (table, slot, sector) in [
        (40, 0, 200u32),
        (40, 1, 201),
        (40, 4095, 210),
        (80, 0, 205),
        (80, 99, 202),
    ] {
        put(&mut b, table * 512 + slot * 4, &sector.to_le_bytes());
        put(&mut b, sector as usize * 512, &pattern(512, u64::from(sector)));
    }
    put(&mut b, 211 * 512, &[]);
    b
}

/// SESparse: one directory sector, tables at 4224, grains at 8192 (sectors).
fn sesparse() -> Vec<u8> {
    let mut b = Vec::new();
    let head = [
        0xcafe_babeu64,
        0x2_0000_0001,
        40960,
        8,
        64,
        0,
        0,
        0,
        0,
        0,
        1,
        1,
        2,
        2,
        2048,
        2048,
        4096,
        1,
        4224,
        128,
        5000,
        8,
        5100,
        8,
        8192,
        4096,
    ];
    put(
        &mut b,
        0,
        &head.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<_>>(),
    );
    put(
        &mut b,
        512,
        &[0xcafe_cafeu64, 0, 0, 0]
            .iter()
            .flat_map(|w| w.to_le_bytes())
            .collect::<Vec<_>>(),
    );
    put(&mut b, 4096 * 512, &(0x1000_0000_0000_0000u64 | 1).to_le_bytes());
    put(&mut b, 4096 * 512 + 8, &0x1000_0000_0000_0000u64.to_le_bytes());
    let data = |n: u64| 0x3000_0000_0000_0000 | (n & 0xfff) << 48 | n >> 12;
    for (table, slot, entry) in [
        (1, 0, data(3)),
        (1, 1, data(4)),
        (1, 2, 0x1000_0000_0000_0000),
        (1, 3, 0x2000_0000_0000_0000),
        (1, 4095, data(1)),
        (0, 1023, data(9)),
    ] {
        put(&mut b, (4224 + table * 64) * 512 + slot * 8, &entry.to_le_bytes());
    }
    for n in [1u64, 3, 4, 9] {
        put(&mut b, 8192 * 512 + n as usize * 4096, &pattern(4096, n));
    }
    b
}

fn agrees(create_type: &str, word: &str, bytes: &[u8], sectors: u64) {
    if !have(&["qemu-img"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (path, raw) = (dir.path().join("d.vmdk"), dir.path().join("d.raw"));
    std::fs::write(dir.path().join("d-data.vmdk"), bytes).unwrap();
    descriptor(&path, create_type, &format!("RW {sectors} {word} \"d-data.vmdk\""));
    ok(
        "qemu-img",
        &["convert", "-f", "vmdk", "-O", "raw", arg(&path), arg(&raw)],
    );
    let (ours, theirs) = (contents(&open(&path, false)), std::fs::read(&raw).unwrap());
    assert!(ours == theirs && ours.iter().any(|b| *b != 0));
    // The extent alone shows the same disk.
    assert!(contents(&open(&dir.path().join("d-data.vmdk"), false)) == ours);
    let error = open(&path, true).write(0, &[1; 512]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn a_vmfs_sparse_extent_reads_as_in_qemu() {
    agrees("vmfsSparse", "VMFSSPARSE", &cowd(), 4096 + 100);
}

#[test]
fn a_sesparse_extent_reads_as_in_qemu() {
    agrees("seSparse", "SESPARSE", &sesparse(), 40960);
}

#[test]
fn a_vmfs_extent_is_flat() {
    if !have(&["qemu-img"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let bytes = pattern(100 * 512, 5);
    std::fs::write(dir.path().join("d-flat.vmdk"), &bytes).unwrap();
    descriptor(&dir.path().join("d.vmdk"), "vmfs", "RW 100 VMFS \"d-flat.vmdk\"");
    assert!(contents(&open(&dir.path().join("d.vmdk"), false)) == bytes);
    ok(
        "qemu-img",
        &[
            "compare",
            "-f",
            "vmdk",
            "-F",
            "raw",
            arg(&dir.path().join("d.vmdk")),
            arg(&dir.path().join("d-flat.vmdk")),
        ],
    );
}

#[test]
fn parts_of_all_types_follow_one_another() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = pattern(100 * 512, 6);
    std::fs::write(dir.path().join("f"), &bytes).unwrap();
    let lines = "RW 10 FLAT \"f\" 5\nRW 7 ZERO\nRDONLY 20 FLAT \"f\" 80";
    descriptor(&dir.path().join("d.vmdk"), "custom", lines);
    let chain = open(&dir.path().join("d.vmdk"), false);
    let expected = [&bytes[5 * 512..15 * 512], &[0; 7 * 512], &bytes[80 * 512..]].concat();
    assert!(contents(&chain) == expected);
}

#[test]
fn a_file_on_a_windows_drive_is_looked_for_beside_the_descriptor() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = pattern(10 * 512, 6);
    std::fs::write(dir.path().join("f"), &bytes).unwrap();
    descriptor(&dir.path().join("d.vmdk"), "custom", "RW 10 FLAT \"D:\\vm\\f\" 0");
    assert!(contents(&open(&dir.path().join("d.vmdk"), false)) == bytes);
}

#[test]
fn a_disk_of_nothing_but_zeroes_needs_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("d.vmdk");
    descriptor(&path, "custom", "RW 10 ZERO\nRW 7 ZERO");
    assert!(contents(&open(&path, false)) == vec![0; 17 * 512]);
    let chain = open(&path, true);
    assert!(chain.top().write(0, &[1; 512], &NothingBelow).is_err());
}

/// As VMware's own tools have it; qemu-img refuses an offset of a VMFS extent.
#[test]
fn an_offset_of_a_vmfs_extent_counts() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = pattern(100 * 512, 6);
    std::fs::write(dir.path().join("f"), &bytes).unwrap();
    descriptor(&dir.path().join("d.vmdk"), "vmfs", "RW 10 VMFS \"f\" 3");
    assert!(contents(&open(&dir.path().join("d.vmdk"), false)) == bytes[3 * 512..13 * 512]);
}

#[test]
fn an_sesparse_journal_is_not_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = sesparse();
    bytes[512 + 24] = 1;
    std::fs::write(dir.path().join("d"), bytes).unwrap();
    let error = try_open(&dir.path().join("d"), false).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}
