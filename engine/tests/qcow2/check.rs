//! Check and repair of damaged images.

use std::sync::Arc;

use vdisk_engine::image::{NothingBelow, Repair, Resize};
use vdisk_engine::options::Options;
use vdisk_engine::storage::MemoryStorage;
use vdisk_engine::{Control, Image, Limits, OpenEnv, formats};

use crate::support::{Files, Scratch, assert_clean, assert_qemu_clean, read_all};

/// 64 KiB clusters: header 0, refcount table 1, block 2, L1 3, L2 4, data 5 to 14.
fn sample() -> Vec<u8> {
    let files = Files::default();
    let storage = Arc::new(MemoryStorage::empty());
    files.create_on(storage.clone(), 1 << 20, Options::new(), None);
    let image = files.open_on(storage.clone(), true).unwrap();
    image.write(0, &[3; 10 << 16], &NothingBelow).unwrap();
    image.close().unwrap();
    storage.contents()
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

/// A cluster of the file that only its refcount says is used.
fn leak(bytes: &mut Vec<u8>) {
    bytes.resize(21 << 16, 0);
    bytes[0x2_0000 + 2 * 20 + 1] = 1;
}

type Damage = (&'static str, fn(&mut Vec<u8>), bool);

const L2: usize = 0x40000;
const COPIED: u64 = 1 << 63;

/// What is broken, how, and whether that can be mended without guessing where data is.
const DAMAGES: &[Damage] = &[
    ("a leak", leak, true),
    ("a refcount too low", |b| b[0x2_0000 + 2 * 6 + 1] = 0, true),
    ("a refcount too high", |b| b[0x2_0000 + 2 * 6 + 1] = 9, true),
    ("all refcounts lost", |b| b[0x2_0000..0x3_0000].fill(0), true),
    ("no refcount block", |b| put(b, 0x1_0000, 0), true),
    ("a refcount block unaligned", |b| put(b, 0x1_0000, 0x2_0200), true),
    ("a refcount block past 2^55", |b| put(b, 0x1_0000, 1 << 55), true),
    ("a refcount block twice", |b| put(b, 0x1_0008, 0x2_0000), true),
    ("a copied flag missing", |b| put(b, L2 + 8, 0x6_0000), true),
    (
        "two entries for one cluster",
        |b| put(b, L2 + 8, COPIED | 0x5_0000),
        true,
    ),
    ("a cluster unaligned", |b| put(b, L2 + 8, COPIED | 0x5_2a00), false),
    (
        "reserved bits in L2",
        |b| put(b, L2 + 8, COPIED | 0x6_0000 | 1 << 57),
        false,
    ),
    ("data past the end", |b| put(b, L2 + 8, COPIED | 1 << 40), false),
    ("data over the L2 table", |b| put(b, L2 + 8, COPIED | 0x4_0000), false),
    ("data over the header", |b| put(b, L2 + 8, COPIED), true),
    (
        "data over a refcount block",
        |b| put(b, L2 + 8, COPIED | 0x2_0000),
        false,
    ),
    ("an L2 table unaligned", |b| put(b, 0x3_0000, COPIED | 0x4_2a00), false),
    (
        "an L2 table over the header's refcount block",
        |b| put(b, 0x3_0000, COPIED | 0x2_0000),
        false,
    ),
    (
        "the L2 table is the L1 table",
        |b| put(b, 0x3_0000, COPIED | 0x3_0000),
        false,
    ),
    (
        "reserved zeroes past the end",
        |b| put(b, L2 + 8 * 12, 1 | 1 << 40),
        true,
    ),
    ("the corrupt bit", |b| b[79] |= 2, true),
    ("the dirty bit", |b| b[79] |= 1, true),
];

#[test]
fn repair_mends_what_needs_no_guess_at_once_and_qemu_agrees() {
    let scratch = Scratch::new();
    let qemu = e2e::tools::have(&["qemu-img"]);
    for (what, damage, saved) in DAMAGES {
        let mut bytes = sample();
        damage(&mut bytes);
        let storage = Arc::new(MemoryStorage::new("damaged", bytes.clone()));
        let limits = Limits::default();
        let env = OpenEnv::closed(&limits).for_check();
        let open = |env: &OpenEnv<'_>| {
            formats::by_name("qcow2")
                .unwrap()
                .open(storage.clone(), &Options::new(), env)
        };
        let found = open(&env).unwrap().check(Repair::No, &Control::default()).unwrap();
        let marked = what.ends_with("bit");
        assert!(
            marked || found.corruptions + found.leaks > 0 || *what == "data over the header",
            "{what}: nothing found"
        );
        assert!(storage.contents() == bytes, "{what}: a check without repair wrote");
        let image = open(&env.writable()).unwrap();
        image.check(Repair::All, &Control::default()).unwrap();
        image.close().unwrap();
        let again = image.check(Repair::No, &Control::default()).unwrap();
        if !saved {
            assert!(again.corruptions > 0, "{what}: data was thrown away");
            assert!(storage.contents() == bytes, "{what}: something was changed");
            assert!(
                image.read(1 << 16, &mut [0; 512]).is_err(),
                "{what}: other bytes in the place of lost ones"
            );
            continue;
        }
        assert_eq!(
            (again.corruptions, again.leaks),
            (0, 0),
            "{what}: {:#?}",
            again.messages
        );
        drop(image);
        let image = open(&OpenEnv::closed(&limits).writable()).unwrap();
        image.write(900_000, &[1; 1000], &NothingBelow).unwrap();
        image.close().unwrap();
        if *what != "two entries for one cluster" && *what != "data over the header" {
            assert!(
                read_all(&*image)[..10 << 16].iter().all(|b| *b == 3),
                "{what}: data lost"
            );
        }
        if qemu {
            assert_qemu_clean(&storage.contents(), &scratch, false, what);
        }
    }
}

/// The sample with a snapshot, and with other data in the active image since. Gives the place of the snapshot's L1 table, too.
fn sample_with_snapshot(size: u64, cluster: &str) -> (Vec<u8>, usize) {
    let files = Files::default();
    let storage = Arc::new(MemoryStorage::empty());
    files.create_on(
        storage.clone(),
        size,
        Options::new().with("cluster_size", cluster),
        None,
    );
    let image = files.open_on(storage.clone(), true).unwrap();
    image.write(0, &[3; 10 << 16], &NothingBelow).unwrap();
    image.snapshots().unwrap().create("s", (0, 0)).unwrap();
    image.write(0, &[4; 5 << 16], &NothingBelow).unwrap();
    image.close().unwrap();
    let bytes = storage.contents();
    let l1 = word(&bytes, word(&bytes, 64));
    (bytes, l1)
}

fn word(bytes: &[u8], at: usize) -> usize {
    usize::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// What `check` finds and does: corruptions and leaks that are left, and what was mended.
fn checked(image: &dyn Image, repair: Repair) -> (u64, u64, u64) {
    let report = image.check(repair, &Control::default()).unwrap();
    (
        report.corruptions,
        report.leaks,
        report.corruptions_fixed + report.leaks_fixed,
    )
}

/// Such an entry reads as nothing, but its table and data may still be found: they are no leaks.
#[test]
fn an_l1_entry_that_lost_its_place_is_told_and_nothing_is_taken_from_it() {
    let (with_snapshot, snapshot_l1) = sample_with_snapshot(1 << 20, "64k");
    let mut larger = sample();
    // A slot past the end of the disk, which never had a table.
    larger[36..40].copy_from_slice(&2u32.to_be_bytes());
    let cases = [
        ("active", sample(), 0x3_0000, true),
        ("snapshot", with_snapshot, snapshot_l1, true),
        ("empty", larger, 0x3_0008, false),
    ];
    for (what, mut bytes, entry, lost) in cases {
        put(&mut bytes, entry, COPIED);
        let storage = Arc::new(MemoryStorage::new("m", bytes.clone()));
        let image = Files::default().open_on(storage.clone(), true).unwrap();
        for repair in [Repair::No, Repair::Leaks, Repair::All] {
            let (corruptions, leaks, mended) = checked(&*image, repair);
            assert!(corruptions > 0, "{what} {repair:?}");
            assert_eq!((leaks > 0, mended), (lost, 0), "{what} {repair:?}");
            assert!(storage.contents() == bytes, "{what} {repair:?}: something was changed");
        }
        if e2e::tools::have(&["qemu-img"]) {
            assert_eq!(qemu_verdict(&Scratch::new(), &bytes).0, Some(2), "{what}");
        }
    }
}

/// A refcount block where a snapshot has its L1 table: both cannot be right, and whoever writes one destroys the other.
#[test]
fn a_refcount_block_over_a_snapshot_is_made_anew_elsewhere() {
    for cluster in ["512", "4096"] {
        let (mut bytes, l1) = sample_with_snapshot(1 << 20, cluster);
        let reftable = word(&bytes, 48);
        let free = (reftable..).step_by(8).find(|at| word(&bytes, *at) == 0).unwrap();
        let files = Files::default();
        let open = |bytes: &[u8]| {
            let storage = Arc::new(MemoryStorage::new("m", bytes.to_vec()));
            (files.open_on(storage.clone(), true).unwrap(), storage)
        };
        let contents = |image: &dyn Image| {
            let snapshot = image.snapshots().unwrap().open("s").unwrap();
            (read_all(image), read_all(&*snapshot))
        };
        let before = contents(&*open(&bytes).0);
        put(&mut bytes, free, l1 as u64);
        let (image, storage) = open(&bytes);
        assert!(checked(&*image, Repair::No).0 > 0, "{cluster}");
        assert!(checked(&*image, Repair::Leaks).0 > 0, "{cluster}");
        assert!(storage.contents() == bytes, "{cluster}: -r leaks changed something");
        let (corruptions, leaks, mended) = checked(&*image, Repair::All);
        assert_eq!((corruptions, leaks, mended > 0), (0, 0, true), "{cluster}");
        image.close().unwrap();
        drop(image);
        let (image, storage) = open(&storage.contents());
        assert_clean(&*image);
        assert!(contents(&*image) == before, "{cluster}");
        let to = Resize {
            virtual_size: 12 << 20,
            ..Resize::default()
        };
        image.resize(&to).unwrap();
        image.write(11 << 20, &[9; 4096], &NothingBelow).unwrap();
        image.close().unwrap();
        assert_clean(&*image);
        if e2e::tools::have(&["qemu-img"]) {
            let scratch = Scratch::new();
            assert_eq!(qemu_verdict(&scratch, &bytes).0, Some(2), "{cluster}");
            assert_qemu_clean(&storage.contents(), &scratch, false, cluster);
        }
    }
}

/// Refcounts can be right about structures that overlap, but such an image cannot be written.
#[test]
fn what_cannot_be_written_is_never_called_sound() {
    let (bytes, _) = sample_with_snapshot(1 << 20, "64k");
    let storage = Arc::new(MemoryStorage::new("m", bytes));
    let files = Files::default();
    let image = files.open_on(storage.clone(), true).unwrap();
    image.snapshots().unwrap().create("t", (0, 0)).unwrap();
    image.close().unwrap();
    drop(image);
    let mut bytes = storage.contents();
    // The second snapshot's L1 table is that of the first one.
    let table = word(&bytes, 64);
    let l1 = word(&bytes, table);
    put(&mut bytes, table + 72, l1 as u64);
    let storage = Arc::new(MemoryStorage::new("m", bytes.clone()));
    let image = files.open_on(storage.clone(), true).unwrap();
    assert_eq!(image.snapshots().unwrap().list().unwrap().len(), 2);
    assert!(checked(&*image, Repair::Leaks).0 > 0);
    assert!(storage.contents() == bytes, "-r leaks changed something");
    for repair in [Repair::All, Repair::No] {
        assert!(checked(&*image, repair).0 > 0, "{repair:?}");
        assert!(image.write(0, &[1; 512], &NothingBelow).is_err());
    }
}

/// Clusters of a data file have no refcounts; each has one user, so each entry has the copied flag.
#[test]
fn copied_flags_of_a_data_file_are_checked() {
    let scratch = Scratch::new();
    let (path, data) = (scratch.file("top"), scratch.file("data"));
    let options = Options::new().with("data_file", e2e::tools::arg(&data));
    scratch.create(&path, 1 << 20, options);
    let image = scratch.open_writable(&path);
    image.write(0, &[3; 10 << 16], &NothingBelow).unwrap();
    image.close().unwrap();
    drop(image);
    let sound = std::fs::read(&path).unwrap();
    let mut bytes = sound.clone();
    bytes[L2 + 8] &= 0x7f;
    for repair in [Repair::Leaks, Repair::All] {
        std::fs::write(&path, &bytes).unwrap();
        if e2e::tools::have(&["qemu-img"]) {
            let out = e2e::tools::run("qemu-img", &["check", e2e::tools::arg(&path)]);
            assert_eq!(out.status.code(), Some(2));
        }
        let image = scratch.open_writable(&path);
        assert_eq!(checked(&*image, Repair::No), (1, 0, 0));
        assert_eq!(checked(&*image, repair), (0, 0, 1));
        assert_eq!(checked(&*image, Repair::No), (0, 0, 0));
        assert!(std::fs::read(&path).unwrap() == sound);
    }
}

#[test]
fn repairing_leaks_leaves_corruptions_alone() {
    let mut bytes = sample();
    leak(&mut bytes);
    let files = Files::default();
    let storage = Arc::new(MemoryStorage::new("m", bytes));
    let image = files.open_on(storage.clone(), true).unwrap();
    let report = image.check(Repair::Leaks, &Control::default()).unwrap();
    assert_eq!((report.leaks, report.leaks_fixed, report.corruptions_fixed), (0, 1, 0));
    let mut bytes = sample();
    bytes[0x2_0000 + 2 * 6 + 1] = 0;
    let image = files.open_on(Arc::new(MemoryStorage::new("m", bytes)), true).unwrap();
    let report = image.check(Repair::Leaks, &Control::default()).unwrap();
    // As qemu-img counts: the refcount, and the copied flag that contradicts it.
    assert_eq!((report.corruptions, report.corruptions_fixed), (2, 0));
}

#[test]
fn check_counts_what_qemu_counts() {
    if !e2e::tools::have(&["qemu-img"]) {
        return;
    }
    let scratch = Scratch::new();
    let path = scratch.file("a.qcow2");
    scratch.create(&path, 8 << 20, Options::new());
    let image = scratch.open_writable(&path);
    image.write(3 << 20, &[1; 500_000], &NothingBelow).unwrap();
    image.write(0, &[2; 200_000], &NothingBelow).unwrap();
    image.write_compressed(7 << 20, &[9; 65_536]).unwrap();
    image.write_zeroes(1 << 20, 1 << 16, false, &NothingBelow).unwrap();
    image.close().unwrap();
    drop(image);
    let text = e2e::tools::ok("qemu-img", &["check", "--output=json", e2e::tools::arg(&path)]);
    let theirs: serde_json::Value = serde_json::from_str(&text).unwrap();
    let ours = scratch.open(&path).check(Repair::No, &Control::default()).unwrap();
    for (key, value) in [
        ("image-end-offset", ours.image_end_offset),
        ("total-clusters", ours.total_clusters),
        ("allocated-clusters", ours.allocated_clusters),
        ("fragmented-clusters", ours.fragmented_clusters),
        ("compressed-clusters", ours.compressed_clusters),
    ] {
        assert_eq!(value, Some(theirs[key].as_u64().unwrap_or(0)), "{key}");
    }
}

/// Two guest clusters in one host cluster, and a refcount of one bit: no repair can count them. Wider refcounts can.
#[test]
fn wider_refcounts_mend_what_narrow_ones_cannot_count() {
    let scratch = Scratch::new();
    let path = scratch.file("narrow.qcow2");
    scratch.create(&path, 1 << 20, Options::new().with("refcount_bits", "1"));
    let image = scratch.open_writable(&path);
    image.write(0, &[3; 2 << 16], &NothingBelow).unwrap();
    image.close().unwrap();
    drop(image);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.copy_within(L2..L2 + 8, L2 + 16);
    std::fs::write(&path, &bytes).unwrap();

    let image = scratch.try_open(&path, |env| env.writable().for_check()).unwrap();
    let report = image.check(Repair::All, &Control::default()).unwrap();
    assert_eq!(
        (report.corruptions, report.corruptions_fixed),
        (1, 0),
        "{:#?}",
        report.messages
    );
    let told = |words: &str| report.messages.iter().filter(|m| m.contains(words)).count();
    assert_eq!(
        (told("reference=2"), told("refcount_bits")),
        (1, 1),
        "{:#?}",
        report.messages
    );
    drop(image);

    let image = scratch.open_writable(&path);
    let before = read_all(&*image);
    let error = image.write(0, &[9; 512], &NothingBelow).unwrap_err();
    assert!(error.to_string().contains("refcount_bits"), "{error}");
    let wider = Options::new().with("refcount_bits", "2");
    image.amend(&wider, false, &Control::default()).unwrap();
    assert_clean(&*image);
    image.close().unwrap();
    if e2e::tools::have(&["qemu-img"]) {
        assert_qemu_clean(&std::fs::read(&path).unwrap(), &scratch, false, "wider refcounts");
    }
    image.write(0, &[9; 512], &NothingBelow).unwrap();
    image.close().unwrap();
    let mut after = read_all(&*image);
    assert!(after[..512].iter().all(|b| *b == 9));
    after[..512].fill(3);
    assert!(after == before, "the other user of the cluster was changed");
}

/// What qemu-img says of an image: its exit code and its end.
fn qemu_verdict(scratch: &Scratch, bytes: &[u8]) -> (Option<i32>, Option<u64>) {
    let path = scratch.file("judged.qcow2");
    std::fs::write(&path, bytes).unwrap();
    let out = e2e::tools::run("qemu-img", &["check", "--output=json", e2e::tools::arg(&path)]);
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    (out.status.code(), report["image-end-offset"].as_u64())
}

#[test]
fn refcounts_past_the_end_of_the_file_are_no_leaks() {
    let mut bytes = sample();
    let end = bytes.len() as u64;
    bytes[0x2_0000 + 2 * 15 + 1] = 1;
    bytes[0x2_0000 + 2 * 30_000 + 1] = 1;
    let storage = Arc::new(MemoryStorage::new("m", bytes.clone()));
    let image = Files::default().open_on(storage.clone(), true).unwrap();
    let found = image.check(Repair::No, &Control::default()).unwrap();
    assert_eq!(
        (found.leaks, found.corruptions, found.image_end_offset),
        (0, 0, Some(end))
    );
    if e2e::tools::have(&["qemu-img"]) {
        assert_eq!(qemu_verdict(&Scratch::new(), &bytes), (Some(0), Some(end)));
    }
    // Nothing is given out there that the refcounts call used.
    image.write(700_000, &[9; 100_000], &NothingBelow).unwrap();
    image.close().unwrap();
    let now = image.check(Repair::No, &Control::default()).unwrap();
    assert_eq!(
        (now.leaks, now.corruptions),
        (1, 0),
        "cluster 15 is a part of the file now"
    );
    let mut all = read_all(&*image);
    assert!(all.drain(700_000..800_000).all(|b| b == 9));
    assert!(all[..10 << 16].iter().all(|b| *b == 3) && all[10 << 16..].iter().all(|b| *b == 0));
}

#[test]
fn an_incomplete_snapshot_entry_is_told_and_completed() {
    let storage = Arc::new(MemoryStorage::new("m", sample()));
    let files = Files::default();
    let image = files.open_on(storage.clone(), true).unwrap();
    image.snapshots().unwrap().create("x", (0, 0)).unwrap();
    image.close().unwrap();
    drop(image);
    let mut bytes = storage.contents();
    let table = |bytes: &[u8]| u64::from_be_bytes(bytes[64..72].try_into().unwrap()) as usize;
    let extra = |bytes: &[u8], len: u32| bytes[table(bytes) + 36..][..4] == len.to_be_bytes();
    assert!(extra(&bytes, 24));
    // As versions of QEMU before 1.1 wrote it: no extra data, then id and name.
    let at = table(&bytes);
    bytes[at + 36..at + 40].fill(0);
    bytes[at + 40..at + 48].copy_from_slice(b"1x\0\0\0\0\0\0");
    let storage = Arc::new(MemoryStorage::new("m", bytes.clone()));
    let image = files.open_on(storage.clone(), true).unwrap();
    let check = |repair| {
        let report = image.check(repair, &Control::default()).unwrap();
        (report.corruptions, report.corruptions_fixed, report.leaks)
    };
    assert_eq!(check(Repair::No), (1, 0, 0));
    assert_eq!(check(Repair::Leaks), (1, 0, 0));
    assert!(storage.contents() == bytes);
    assert_eq!(check(Repair::All), (0, 1, 0));
    assert!(extra(&storage.contents(), 24));
    assert_eq!(check(Repair::No), (0, 0, 0));
    let list = image.snapshots().unwrap().list().unwrap();
    assert_eq!((list[0].name.as_str(), list[0].virtual_size), ("x", 1 << 20));
    drop(image);
    assert_clean(&*files.open_on(storage.clone(), false).unwrap());
    if e2e::tools::have(&["qemu-img"]) {
        let scratch = Scratch::new();
        assert_eq!(qemu_verdict(&scratch, &bytes).0, Some(2));
        assert_qemu_clean(&storage.contents(), &scratch, false, "completed");
    }
}
