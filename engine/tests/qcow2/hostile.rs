//! Malformed and malicious images: a typed error or a report, never a panic, never bytes from elsewhere, and quickly.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vdisk_engine::image::{NothingBelow, Repair};
use vdisk_engine::options::Options;
use vdisk_engine::storage::MemoryStorage;
use vdisk_engine::{Control, ErrorKind, Image, Limits, OpenEnv, Result, formats};

use crate::support::Files;

/// 64 KiB clusters: header 0, refcount table 1, block 2, L1 3, L2 4, data 5 and 6.
fn sample() -> Vec<u8> {
    let files = Files::default();
    let storage = Arc::new(MemoryStorage::empty());
    files.create_on(storage.clone(), 1 << 20, Options::new(), None);
    let image = files.open_on(storage.clone(), true).unwrap();
    image.write(0, &[3; 2 << 16], &NothingBelow).unwrap();
    image.close().unwrap();
    storage.contents()
}

fn with(changes: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = sample();
    for (at, new) in changes {
        bytes[*at..*at + new.len()].copy_from_slice(new);
    }
    bytes
}
fn u32_at(at: usize, value: u32) -> Vec<u8> {
    with(&[(at, &value.to_be_bytes())])
}
fn u64_at(at: usize, value: u64) -> Vec<u8> {
    with(&[(at, &value.to_be_bytes())])
}

/// An extension right behind the header, in place of the feature names.
fn extension(kind: u32, len: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = sample();
    bytes[112..1024].fill(0);
    bytes[112..116].copy_from_slice(&kind.to_be_bytes());
    bytes[116..120].copy_from_slice(&len.to_be_bytes());
    bytes[120..120 + data.len()].copy_from_slice(data);
    bytes
}

fn open(bytes: Vec<u8>, writable: bool, for_check: bool) -> Result<Box<dyn Image>> {
    let limits = Limits::default();
    let mut env = OpenEnv::closed(&limits);
    env.writable = writable;
    env.for_check = for_check;
    let storage = Arc::new(MemoryStorage::new("hostile", bytes));
    formats::by_name("qcow2").unwrap().open(storage, &Options::new(), &env)
}

/// Refused: by opening, for reading as for writing as for checking.
fn refused(what: &str, bytes: Vec<u8>) {
    let start = Instant::now();
    for (writable, for_check) in [(false, false), (true, false), (false, true)] {
        let error = open(bytes.clone(), writable, for_check)
            .err()
            .unwrap_or_else(|| panic!("{what}: was opened"));
        assert_ne!(error.kind(), ErrorKind::Io, "{what}: {error}");
    }
    let took = start.elapsed();
    assert!(took < Duration::from_secs(1), "{what}: took {took:?}");
}

/// Corrupt: opens, `check` reports, reads give the right bytes or an error, writes are refused or change nothing else.
fn reported(what: &str, bytes: Vec<u8>) {
    let image = open(bytes.clone(), false, false).unwrap_or_else(|e| panic!("{what}: {e}"));
    let report = image.check(Repair::No, &Control::default()).unwrap();
    assert!(report.corruptions > 0, "{what}: nothing reported");
    let mut cluster = vec![0; 1 << 16];
    for n in 0..16u64 {
        if image.read(n << 16, &mut cluster).is_ok() {
            let expected = if n < 2 { [3, 0] } else { [0, 0] };
            assert!(
                cluster.iter().all(|b| expected.contains(b)),
                "{what}: cluster {n} shows foreign bytes"
            );
        }
        let _ = image.extent(n << 16, (1 << 20) - (n << 16));
    }
    if let Ok(image) = open(bytes, true, false) {
        let _ = image.write(0, &[9; 1000], &NothingBelow);
        let _ = image.flush();
    }
}

#[test]
fn header_fields_out_of_bounds_are_refused() {
    for bits in [0, 8, 22, 31, 32, 63, u32::MAX] {
        refused(&format!("cluster bits {bits}"), u32_at(20, bits));
    }
    for version in [0, 1, 4, u32::MAX] {
        refused(&format!("version {version}"), u32_at(4, version));
    }
    for len in [0, 72, 103, 105, 65_537, u32::MAX] {
        refused(&format!("header length {len}"), u32_at(100, len));
    }
    for order in [7, 32, u32::MAX] {
        refused(&format!("refcount order {order}"), u32_at(96, order));
    }
    // Legacy AES (1) needs nothing but its number; LUKS (2) needs a header.
    for method in [2, 3, u32::MAX] {
        refused(&format!("encryption {method}"), u32_at(32, method));
    }
}

#[test]
fn extensions_that_make_no_sense_are_refused() {
    for len in [0x7fff_ffff, 0xffff_fff8, 65_536 - 120 + 1] {
        refused(&format!("extension of {len} bytes"), extension(0x1234_5678, len, &[]));
    }
    let name = [
        &0x4441_5441_u32.to_be_bytes()[..],
        &3u32.to_be_bytes(),
        b"raw\0\0\0\0\0",
    ]
    .concat();
    let mut twice = extension(0x4441_5441, 3, b"raw\0\0\0\0\0");
    twice[128..144].copy_from_slice(&name);
    refused("two data files", twice);
    let mut endless = sample();
    for chunk in endless[112..65_536].chunks_mut(8) {
        chunk.copy_from_slice(&[0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0]);
    }
    refused("extensions without an end", endless);
    refused("a format with a NUL inside", extension(0xe279_2aca, 9, b"qcow2\0raw"));
    refused("bitmaps of 23 bytes", extension(0x2385_2875, 23, &[0; 23]));
}

#[test]
fn feature_names_are_harmless() {
    let names: Vec<u8> = std::iter::repeat_n(*b"%s%n\x1b[31m\xff\xfe\n", 300).flatten().collect();
    let image = open(extension(0x6803_f857, names.len() as u32, &names), false, false).unwrap();
    assert!(image.info().is_ok());
    assert!(open(extension(0x6803_f857, 47, &[b'x'; 47]), false, false).is_ok());
    let mut table = vec![0u8; 48];
    table[1] = 40;
    table[2..8].copy_from_slice(b"a\x1b[31m");
    let mut bytes = extension(0x6803_f857, 48, &table);
    bytes[72..80].copy_from_slice(&(1u64 << 40).to_be_bytes());
    let error = open(bytes, false, false).err().unwrap();
    assert!(error.to_string().contains("a\\u{1b}[31m"), "{error}");
}

#[test]
fn backing_names_out_of_bounds_are_refused() {
    for offset in [4, 103, 65_536, 1 << 63, u64::MAX] {
        let size = 8u32.to_be_bytes();
        refused(
            &format!("backing name at {offset:#x}"),
            with(&[(8, &offset.to_be_bytes()), (16, &size)]),
        );
    }
    for size in [0, 1024, u32::MAX] {
        let offset = 1024u64.to_be_bytes();
        refused(
            &format!("backing name of {size} bytes"),
            with(&[(8, &offset), (16, &size.to_be_bytes())]),
        );
    }
    let nul = with(&[
        (8, &1024u64.to_be_bytes()),
        (16, &5u32.to_be_bytes()),
        (1024, b"a\0b/c"),
    ]);
    refused("backing name with a NUL inside", nul);
    let long = with(&[
        (8, &1024u64.to_be_bytes()),
        (16, &1023u32.to_be_bytes()),
        (1024, &[b'x'; 1023]),
    ]);
    assert_eq!(open(long, false, false).unwrap().backing().unwrap().name.len(), 1023);
}

#[test]
fn unknown_features_are_refused_by_name_or_number() {
    for bit in 5..64 {
        refused(&format!("feature bit {bit}"), u64_at(72, 1 << bit));
    }
    for kind in [2u8, 255] {
        let bytes = with(&[(72, &8u64.to_be_bytes()), (104, &[kind])]);
        refused(&format!("compression type {kind}"), bytes);
    }
    refused("compression bit without type", u64_at(72, 8));
    refused("type without compression bit", with(&[(104, &[1])]));
    refused("data file without name", u64_at(72, 4));
    refused("raw data file bit without data file", u64_at(88, 2));
    let mut small = u64_at(72, 16);
    small[20..24].copy_from_slice(&13u32.to_be_bytes());
    refused("extended L2 entries in small clusters", small);
}

#[test]
fn a_data_file_is_opened_through_the_gate_alone() {
    for name in ["/etc/shadow", "json:{}", "../../x", "/dev/zero"] {
        let mut bytes = extension(0x4441_5441, name.len() as u32, name.as_bytes());
        bytes[72..80].copy_from_slice(&4u64.to_be_bytes());
        assert_eq!(
            open(bytes, false, false).err().unwrap().kind(),
            ErrorKind::Denied,
            "{name}"
        );
    }
}

#[test]
fn the_corrupt_bit_allows_reading_alone() {
    let bytes = u64_at(72, 2);
    assert!(open(bytes.clone(), false, false).is_ok());
    assert_eq!(
        open(bytes.clone(), true, false).err().unwrap().kind(),
        ErrorKind::Corrupt
    );
    assert!(open(bytes, true, true).is_ok());
}

#[test]
fn table_places_out_of_bounds_are_refused() {
    for size in [1u64 << 56, i64::MAX as u64, u64::MAX, 1 << 50] {
        refused(&format!("virtual size {size:#x}"), u64_at(24, size));
    }
    assert_eq!(open(u64_at(24, 0), false, false).unwrap().virtual_size(), 0);
    assert_eq!(open(u64_at(24, 511), false, false).unwrap().virtual_size(), 511);
    for size in [u32::MAX, 0x7fff_ffff, (4 << 20) + 1, 4 << 20, 0] {
        refused(&format!("L1 size {size:#x}"), u32_at(36, size));
    }
    for at in [0, 0x3_0200, 1 << 63, 1 << 40] {
        refused(&format!("L1 table at {at:#x}"), u64_at(40, at));
    }
    for at in [0, 0x1_0200, 1 << 63] {
        refused(&format!("refcount table at {at:#x}"), u64_at(48, at));
    }
    for clusters in [0, u32::MAX, 129] {
        refused(&format!("refcount table of {clusters} clusters"), u32_at(56, clusters));
    }
    reported(
        "refcount table past the end",
        with(&[(48, &(1u64 << 40).to_be_bytes()), (56, &128u32.to_be_bytes())]),
    );
}

#[test]
fn snapshot_tables_out_of_bounds_are_refused() {
    for count in [65_537, u32::MAX] {
        refused(&format!("{count} snapshots at 0"), u32_at(60, count));
    }
    let snapshot = |changes: &[(usize, &[u8])]| {
        let mut bytes = with(&[(60, &1u32.to_be_bytes()), (64, &0x7_0000u64.to_be_bytes())]);
        bytes.resize(0x8_0000, 0);
        for (at, new) in changes {
            bytes[0x7_0000 + at..0x7_0000 + at + new.len()].copy_from_slice(new);
        }
        bytes
    };
    assert!(open(snapshot(&[]), false, false).is_ok());
    for (what, size, at) in [
        ("snapshot L1 too large", (4u32 << 20) + 1, 0x3_0000u64),
        ("snapshot L1 unaligned", 1, 0x3_0200),
    ] {
        let bytes = snapshot(&[(8, &size.to_be_bytes()), (0, &at.to_be_bytes())]);
        let image = open(bytes.clone(), true, false).unwrap();
        let snapshots = image.snapshots().unwrap();
        assert!(snapshots.open("").is_err(), "{what}: opened");
        assert!(snapshots.apply("").is_err(), "{what}: applied");
        assert!(snapshots.delete("").is_err(), "{what}: deleted");
        reported(what, bytes);
    }
    let shared_l1 = snapshot(&[(8, &1u32.to_be_bytes()), (0, &0x3_0000u64.to_be_bytes())]);
    let image = open(shared_l1.clone(), true, false).unwrap();
    assert!(
        image.snapshots().unwrap().delete("").is_err(),
        "its L1 table is the active one"
    );
    reported("snapshot L1 is the active one", shared_l1);
}

/// The same as qemu-img for reading. For writing qemu-img trusts the refcounts, which nobody can verify here, and its repair frees the
/// clusters of the snapshots that it could not read.
#[test]
fn a_damaged_snapshot_table_allows_reading_alone() {
    let table = |count: u32, place: u64, changes: &[(usize, &[u8])]| {
        let mut bytes = with(&[(60, &count.to_be_bytes()), (64, &place.to_be_bytes())]);
        bytes.resize(0x7_0000 + 80, 0);
        // A first snapshot without a name, of the active L1 table's size and without a table of its own.
        for (at, new) in changes {
            bytes[0x7_0000 + at..0x7_0000 + at + new.len()].copy_from_slice(new);
        }
        // A cluster that only an unknown snapshot can have.
        bytes[0x2_0000 + 12..0x2_0000 + 14].copy_from_slice(&[0, 1]);
        bytes
    };
    let huge = 1025u32.to_be_bytes();
    for (what, bytes, known) in [
        ("the table is past the end", table(2, 1 << 40, &[]), 0),
        ("it ends with the file", table(3, 0x7_0000, &[]), 2),
        ("a name past the end", table(2, 0x7_0000, &[(40 + 12, &[0xff; 4])]), 1),
        ("too much extra data", table(2, 0x7_0000, &[(36, &huge)]), 0),
        ("more of it", table(1, 0x7_0000, &[(36, &[0xff; 4])]), 0),
        (
            "a name of no text",
            table(1, 0x7_0000, &[(14, &[0, 2]), (40, &[0xff, 0xfe])]),
            0,
        ),
    ] {
        let error = open(bytes.clone(), true, false).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
        let image = open(bytes.clone(), false, false).unwrap();
        assert_eq!(image.info().unwrap().snapshots.len(), known, "{what}");
        assert!(image.notices()[0].contains("is damaged"), "{what}");
        let mut cluster = vec![0; 1 << 16];
        image.read(0, &mut cluster).unwrap();
        assert!(cluster.iter().all(|b| *b == 3), "{what}");
        assert!(image.snapshots().unwrap().open("gone").is_err(), "{what}");
        reported(what, bytes.clone());
        for repair in [Repair::Leaks, Repair::All] {
            let storage = Arc::new(MemoryStorage::new("hostile", bytes.clone()));
            let limits = Limits::default();
            let env = OpenEnv::closed(&limits).writable().for_check();
            let driver = formats::by_name("qcow2").unwrap();
            let image = driver.open(storage.clone(), &Options::new(), &env).unwrap();
            let report = image.check(repair, &Control::default()).unwrap();
            assert!(report.corruptions > 0, "{what}: {repair:?} mended it");
            assert!(image.write(0, &[1], &NothingBelow).is_err(), "{what}: was written");
            image.close().unwrap();
            drop(image);
            assert!(storage.contents() == bytes, "{what}: {repair:?} changed the file");
        }
    }
}

#[test]
fn a_snapshot_of_damaged_tables_is_refused_without_a_trace() {
    for entry in [0xbfff_ffff_ffff_0000u64, 0x8000_00ff_ffff_0000] {
        let storage = Arc::new(MemoryStorage::new("hostile", u64_at(0x4_0000, entry)));
        for _ in 0..2 {
            let image = Files::default().open_on(storage.clone(), true).unwrap();
            assert!(image.snapshots().unwrap().create("one", (0, 0)).is_err(), "{entry:#x}");
            let _ = image.close();
            let features: [u8; 8] = storage.contents()[72..80].try_into().unwrap();
            assert_eq!(u64::from_be_bytes(features) & 1, 0, "{entry:#x}: left as dirty");
        }
    }
}

#[test]
fn many_snapshots_in_a_hole_are_listed_quickly() {
    let mut bytes = with(&[(60, &65_536u32.to_be_bytes()), (64, &0x7_0000u64.to_be_bytes())]);
    bytes.resize(0x7_0000 + 40 * 65_536, 0);
    let start = Instant::now();
    assert_eq!(
        open(bytes, false, false).unwrap().info().unwrap().snapshots.len(),
        65_536
    );
    assert!(start.elapsed() < Duration::from_secs(1));
}

const COPIED: u64 = 1 << 63;

#[test]
fn l1_entries_that_make_no_sense_are_reported() {
    for (what, raw) in [
        ("the L1 table", COPIED | 0x3_0000),
        ("a refcount block", COPIED | 0x2_0000),
        ("the refcount table", COPIED | 0x1_0000),
        ("unaligned", COPIED | 0x4_2a00),
        ("past the end", COPIED | 1 << 40),
        ("reserved bit 1", COPIED | 0x4_0000 | 2),
        ("reserved bit 62", COPIED | 0x4_0000 | 1 << 62),
    ] {
        reported(&format!("L1 entry: {what}"), u64_at(0x3_0000, raw));
    }
}

#[test]
fn l2_entries_that_make_no_sense_are_reported() {
    for (what, raw) in [
        ("unaligned", COPIED | 0x5_2a00),
        ("far away", 0xbfff_ffff_ffff_0000),
        ("the refcount block", COPIED | 0x2_0000),
        ("the L1 table", COPIED | 0x3_0000),
        ("the L2 table", COPIED | 0x4_0000),
        ("past the end", COPIED | 1 << 40),
        ("the other cluster", COPIED | 0x6_0000),
        ("compressed past the end", 1 << 62 | 1 << 40),
        ("compressed with copied flag", 3 << 62 | 0x5_0000),
    ] {
        reported(&format!("L2 entry: {what}"), u64_at(0x4_0000, raw));
    }
    let mut old = u64_at(0x4_0000, COPIED | 0x5_0001);
    old[4..8].copy_from_slice(&2u32.to_be_bytes());
    old[72..1024].fill(0);
    reported("zero flag in version 2", old);
}

#[test]
fn a_cluster_with_two_owners_is_not_written() {
    let bytes = u64_at(0x4_0008, COPIED | 0x5_0000);
    let image = open(bytes, true, false).unwrap();
    let error = image.write(0, &[9; 512], &NothingBelow).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let mut second = [0; 512];
    image.read(1 << 16, &mut second).unwrap();
    assert_eq!(second, [3; 512]);
}

#[test]
fn copied_flag_with_refcount_two_means_copy_on_write() {
    let bytes = with(&[(0x2_0000 + 2 * 5, &[0, 2])]);
    reported("copied flag with refcount 2", u64_at(0x4_0000, 0x5_0000));
    let image = open(bytes, true, false).unwrap();
    image.write(0, &[9; 512], &NothingBelow).unwrap();
    let place = image.extent(0, 512).unwrap();
    assert!(!matches!(place.kind, vdisk_engine::image::ExtentKind::Data { at: Some(at), .. } if at.offset == 0x5_0000));
}

#[test]
fn damaged_compressed_clusters_are_errors() {
    let files = Files::default();
    for kind in ["zlib", "zstd"] {
        let storage = Arc::new(MemoryStorage::empty());
        files.create_on(
            storage.clone(),
            1 << 20,
            Options::new().with("compression_type", kind),
            None,
        );
        let image = files.open_on(storage.clone(), true).unwrap();
        let data: Vec<u8> = (0..65_536u32).map(|i| (i / 9 % 251) as u8).collect();
        image.write_compressed(0, &data).unwrap();
        image.close().unwrap();
        let good = storage.contents();
        let mut buf = vec![0; 65_536];
        for at in (0x5_0000..good.len()).step_by(7) {
            let mut bad = good.clone();
            bad[at] ^= 0x5a;
            let image = open(bad, false, false).unwrap();
            let _ = image.read(0, &mut buf);
        }
        let mut cut = good.clone();
        cut.truncate(0x5_0000 + 40);
        assert!(
            open(cut, false, false).unwrap().read(0, &mut buf).is_err(),
            "{kind}: cut stream"
        );
        for stream in [
            &b"\x03\x00"[..],
            b"\x28\xb5\x2f\xfd\xe0\xff\xff\xff\xff\xff\xff\xff\x7f",
            b"\x50\x2a\x4d\x18\x00\x00\x00\x00",
        ] {
            let mut bad = good.clone();
            bad[0x5_0000..].fill(0);
            bad[0x5_0000..0x5_0000 + stream.len()].copy_from_slice(stream);
            assert!(
                open(bad, false, false).unwrap().read(0, &mut buf).is_err(),
                "{kind}: {stream:x?}"
            );
        }
    }
}

#[test]
fn subclusters_that_contradict_themselves_are_errors() {
    let files = Files::default();
    let storage = Arc::new(MemoryStorage::empty());
    files.create_on(storage.clone(), 1 << 20, Options::new().with("extended_l2", "on"), None);
    let image = files.open_on(storage.clone(), true).unwrap();
    image.write(0, &[3; 65_536], &NothingBelow).unwrap();
    image.close().unwrap();
    for (what, entry, map) in [
        ("data and zero", None, 1u64 << 32 | 1),
        ("a map on a compressed cluster", Some(1u64 << 62 | 0x5_0000), 1),
    ] {
        let mut bytes = storage.contents();
        if let Some(entry) = entry {
            bytes[0x4_0000..0x4_0008].copy_from_slice(&entry.to_be_bytes());
        }
        bytes[0x4_0008..0x4_0010].copy_from_slice(&map.to_be_bytes());
        let image = open(bytes, false, false).unwrap();
        assert!(image.read(0, &mut [0; 512]).is_err(), "{what}");
        assert!(
            image.check(Repair::No, &Control::default()).unwrap().corruptions > 0,
            "{what}"
        );
    }
}

#[test]
fn bitmap_directories_out_of_bounds_are_errors() {
    let directory = |count: u32, size: u64, at: u64| {
        let data = [
            &count.to_be_bytes()[..],
            &[0; 4],
            &size.to_be_bytes(),
            &at.to_be_bytes(),
        ]
        .concat();
        let mut bytes = extension(0x2385_2875, 24, &data);
        bytes[88..96].copy_from_slice(&1u64.to_be_bytes());
        bytes
    };
    for (count, size, at) in [
        (0, 32, 0x6_0000),
        (65_536, 1 << 22, 0x6_0000),
        (1, (64 << 20) + 1, 0x6_0000),
        (1, 32, 0x6_0200),
        (1, 32, 1 << 40),
        (1, 32, 0x6_0000),
    ] {
        let image = open(directory(count, size, at), false, false).unwrap();
        assert!(image.bitmaps().unwrap().list().is_err(), "{count} {size} {at:#x}");
        assert!(image.check(Repair::No, &Control::default()).unwrap().corruptions > 0);
    }
}

#[test]
fn a_valid_image_cut_anywhere_never_panics() {
    let good = sample();
    for len in (0..1024).chain((1024..good.len()).step_by(4096)) {
        let mut bytes = good.clone();
        bytes.truncate(len);
        for writable in [false, true] {
            if let Ok(image) = open(bytes.clone(), writable, false) {
                let mut buf = vec![0; 1 << 20];
                if image.read(0, &mut buf).is_ok() {
                    assert!(len >= good.len() - 65_536, "{len}: lost data was not noticed");
                }
                let _ = image.check(Repair::No, &Control::default());
                let _ = image.write(500, &[1; 100_000], &NothingBelow);
                let _ = image.flush();
            }
        }
    }
}

#[test]
fn the_cache_of_tables_is_bounded() {
    let files = Files::default();
    let storage = Arc::new(MemoryStorage::empty());
    files.create_on(
        storage.clone(),
        64 << 20,
        Options::new().with("cluster_size", "512"),
        None,
    );
    let limits = Limits {
        cache_bytes: 64 << 10,
        ..Limits::default()
    };
    let env = OpenEnv::closed(&limits).writable();
    let image = formats::by_name("qcow2")
        .unwrap()
        .open(storage, &Options::new(), &env)
        .unwrap();
    for n in 0..2048u64 {
        image.write(n * 32_768, &[n as u8; 100], &NothingBelow).unwrap();
    }
    image.close().unwrap();
    let mut buf = [0; 100];
    for n in (0..2048u64).rev() {
        image.read(n * 32_768, &mut buf).unwrap();
        assert_eq!(buf, [n as u8; 100]);
    }
}

#[test]
fn refcounts_that_call_used_clusters_free_mark_the_image_corrupt() {
    // The L1 table's cluster has refcount 0: allocating would write over it.
    let storage = Arc::new(MemoryStorage::new("hostile", with(&[(0x2_0000 + 2 * 3, &[0, 0])])));
    let limits = Limits::default();
    let env = OpenEnv::closed(&limits).writable();
    let driver = formats::by_name("qcow2").unwrap();
    let image = driver.open(storage.clone(), &Options::new(), &env).unwrap();
    let l1 = storage.contents()[0x3_0000..0x4_0000].to_vec();
    let error = image.write(900_000, &[9; 512], &NothingBelow).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(
        image.write(0, &[9; 512], &NothingBelow).is_err(),
        "nothing more is written"
    );
    drop(image);
    assert!(storage.contents()[0x3_0000..0x4_0000] == l1);
    assert_eq!(storage.contents()[79] & 2, 2, "the corrupt bit");
    assert!(driver.open(storage, &Options::new(), &env).is_err());
}
