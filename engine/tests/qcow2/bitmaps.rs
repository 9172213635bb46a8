//! Persistent dirty bitmaps of ours and of qemu-img's.

use std::io::ErrorKind as Io;
use std::sync::Arc;

use e2e::tools::{arg, have, ok, run};
use vdisk_engine::image::{NothingBelow, Repair, Resize, Snapshots};
use vdisk_engine::options::Options;
use vdisk_engine::storage::{Fault, FaultyStorage, MemoryStorage};
use vdisk_engine::{Control, ErrorKind, Image, Limits, Result};

use crate::support::{Files, Scratch, assert_clean, read_all};

fn to_size(virtual_size: u64) -> Resize {
    Resize {
        virtual_size,
        shrink: true,
        ..Resize::default()
    }
}

/// A new image in memory with bitmaps that record writes.
fn with_bitmaps(size: u64, cluster: &str, names: &[&str]) -> Arc<MemoryStorage> {
    let (files, storage) = (Files::default(), Arc::new(MemoryStorage::empty()));
    files.create_on(
        storage.clone(),
        size,
        Options::new().with("cluster_size", cluster),
        None,
    );
    let image = files.open_on(storage.clone(), true).unwrap();
    for name in names {
        image.bitmaps().unwrap().add(name, 512, true).unwrap();
    }
    storage
}

type Change = fn(&dyn Image) -> Result<()>;

#[test]
fn what_a_failed_change_left_changed_is_dirty() {
    const PART: usize = 4096;
    let storage = with_bitmaps(1 << 20, "4096", &["b0"]);
    let files = Files::default();
    let image = files.open_on(storage.clone(), true).unwrap();
    for n in (0..200u64).step_by(2) {
        image.write(n * 4096, &[1; PART], &NothingBelow).unwrap();
    }
    image.write(900 << 10, &[1; 64 << 10], &NothingBelow).unwrap();
    image.snapshots().unwrap().create("s", (0, 0)).unwrap();
    image.write(0, &[2; 500 << 10], &NothingBelow).unwrap();
    image.bitmaps().unwrap().clear("b0").unwrap();
    image.close().unwrap();
    let bytes = storage.contents();
    let before = read_all(&*image);
    let changes: [(&str, Change); 5] = [
        ("write", |image| image.write(1000, &[7; 700 << 10], &NothingBelow)),
        ("zeroes", |image| {
            image.write_zeroes(1000, (960 << 10) - 500, false, &NothingBelow)
        }),
        ("discard", |image| image.discard(1000, 700 << 10)),
        ("compressed", |image| image.write_compressed(900 << 10, &[9; PART])),
        ("snapshot", |image| {
            image.snapshots().map_or(Ok(()), |s| Snapshots::apply(s, "s"))
        }),
    ];
    for (name, change) in changes {
        let mut partly = 0;
        for at in 0.. {
            let storage = Arc::new(FaultyStorage::new(bytes.clone()));
            let image = files.open_on(storage.clone(), true).unwrap();
            // The bitmap records from here on.
            image.discard(0, 0).unwrap();
            let planned = storage.changes() + at;
            storage.plan(at, Fault::FailOnce(Io::StorageFull));
            let done = change(&*image);
            let reached = storage.changes() > planned;
            let _ = image.close();
            drop(image);
            let image = files.open_on(Arc::new(MemoryStorage::new("left", storage.contents())), false);
            let image = image.unwrap();
            let bitmaps = image.bitmaps().unwrap();
            if bitmaps.list().unwrap()[0].in_use {
                continue;
            }
            let dirty = bitmaps.dirty("b0").unwrap();
            let now = read_all(&*image);
            partly += usize::from(done.is_err() && now != before);
            for (n, (was, is)) in before.chunks(512).zip(now.chunks(512)).enumerate() {
                let offset = n as u64 * 512;
                let known = dirty.iter().any(|(at, len)| (*at..at + len).contains(&offset));
                assert!(
                    was == is || known,
                    "{name}: {offset:#x} differs, failure at change {at}"
                );
            }
            if !reached {
                done.unwrap();
                break;
            }
        }
        assert!(partly > 0 || !["write", "zeroes"].contains(&name), "{name}");
    }
}

#[test]
fn bitmaps_that_are_more_than_memory_may_hold_can_still_be_taken_away() {
    // 16 KiB of bits each, in a cluster of 64 KiB.
    let storage = with_bitmaps(64 << 20, "65536", &["a", "b", "c", "d"]);
    let limits = Limits {
        bitmap_bytes: 3 << 16,
        ..Limits::default()
    };
    let image = Files::default().open_within(storage, &limits).unwrap();
    let bitmaps = image.bitmaps().unwrap();
    let kind = |done: Result<()>| done.map_err(|e| e.kind());
    let too_much = Err(ErrorKind::LimitExceeded);
    assert_eq!(kind(image.write(0, &[1; 512], &NothingBelow)), too_much);
    assert_eq!(kind(image.resize(&to_size(32 << 20))), too_much);
    bitmaps.set_enabled("a", false).unwrap();
    image.write(0, &[1; 512], &NothingBelow).unwrap();
    assert_eq!(kind(image.resize(&to_size(32 << 20))), too_much);
    bitmaps.remove("b").unwrap();
    image.resize(&to_size(32 << 20)).unwrap();
    assert_eq!(bitmaps.dirty("c").unwrap(), [(0, 512)]);
    image.close().unwrap();
    assert_clean(&*image);
}

#[test]
fn a_bitmap_too_large_for_the_format_is_refused_before_it_is_made() {
    let storage = with_bitmaps(1 << 40, "65536", &["fine"]);
    let image = Files::default().open_on(storage, true).unwrap();
    let error = image.resize(&to_size(4 << 40)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{error}");
    let bitmaps = image.bitmaps().unwrap();
    bitmaps.remove("fine").unwrap();
    image.resize(&to_size(4 << 40)).unwrap();
    let error = bitmaps.add("fine", 512, true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{error}");
    bitmaps.add("coarse", 4096, true).unwrap();
    assert_clean(&*image);
}

/// Makes the table of the second bitmap that of the first.
fn share_table(bytes: &mut [u8]) {
    let number = |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let magic = 0x2385_2875u32.to_be_bytes();
    let extension = bytes[..4096].windows(4).position(|w| w == magic).unwrap() + 8;
    let directory = number(bytes, extension + 16);
    let name = usize::from(u16::from_be_bytes([bytes[directory + 18], bytes[directory + 19]]));
    let second = directory + (24 + name).next_multiple_of(8);
    bytes.copy_within(directory..directory + 8, second);
}

#[test]
fn bits_that_two_bitmaps_share_are_damage_and_not_let_go_of_twice() {
    let files = Files::default();
    let storage = with_bitmaps(1 << 20, "65536", &["a", "b"]);
    let image = files.open_on(storage.clone(), true).unwrap();
    image.write(0, &[1; 512], &NothingBelow).unwrap();
    image.close().unwrap();
    drop(image);
    let mut bytes = storage.contents();
    share_table(&mut bytes);
    let storage = Arc::new(MemoryStorage::new("shared", bytes));
    let found = |image: &dyn Image, repair| image.check(repair, &Control::default()).unwrap().corruptions;
    let image = files.open_on(storage.clone(), true).unwrap();
    assert!(found(&*image, Repair::No) > 0);
    let error = image.write(4096, &[1; 512], &NothingBelow).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("run a repair"), "{error}");
    // What the refcounts know of is damage as well, but nothing is lost by writing.
    found(&*image, Repair::All);
    drop(image);
    let image = files.open_on(storage, true).unwrap();
    assert!(found(&*image, Repair::No) > 0);
    image.bitmaps().unwrap().remove("a").unwrap();
    image.write(4096, &[1; 512], &NothingBelow).unwrap();
    image.close().unwrap();
    assert_eq!(image.bitmaps().unwrap().dirty("b").unwrap(), [(0, 512), (4096, 512)]);
    assert_clean(&*image);
}

#[test]
fn bitmaps_with_more_ranges_than_a_list_may_have_are_merged() {
    let files = Files::default();
    let limits = Limits {
        table_bytes: 64 << 10,
        ..Limits::default()
    };
    let from = with_bitmaps(16 << 20, "4096", &["fine", "same"]);
    let image = files.open_on(from.clone(), true).unwrap();
    let ranges: Vec<(u64, u64)> = (0..8192).map(|n| (n * 2048 + 512, 512)).collect();
    image.bitmaps().unwrap().mark("fine", &ranges).unwrap();
    drop(image);
    let from = files.open_within(from, &limits).unwrap();
    let from = from.bitmaps().unwrap();
    assert_eq!(from.dirty("fine").unwrap_err().kind(), ErrorKind::LimitExceeded);
    from.merge("same", from, "fine").unwrap();
    let to = with_bitmaps(16 << 20, "65536", &["b"]);
    let to = files.open_on(to, true).unwrap();
    let to = to.bitmaps().unwrap();
    to.mark("b", &[(0, 1)]).unwrap();
    to.merge("b", from, "same").unwrap();
    let mut expected = ranges;
    expected[0] = (0, 1024);
    assert_eq!(to.dirty("b").unwrap(), expected);
    assert!(to.merge("b", from, "none").is_err() && to.merge("none", from, "same").is_err());
}

#[test]
fn qemu_takes_our_bitmaps() {
    if !have(&["qemu-img"]) {
        return;
    }
    let scratch = Scratch::new();
    let path = scratch.file("a.qcow2");
    scratch.create(&path, 100 << 20, Options::new());
    let image = scratch.open_writable(&path);
    let bitmaps = image.bitmaps().unwrap();
    bitmaps.add("auto", 0, true).unwrap();
    bitmaps.add("still", 512, false).unwrap();
    image.write(1 << 20, &[1; 70_000], &NothingBelow).unwrap();
    image.close().unwrap();
    assert_eq!(bitmaps.dirty("auto").unwrap(), [(1 << 20, 131_072)]);
    image.resize(&to_size(300 << 20)).unwrap();
    image.close().unwrap();
    assert_clean(&*image);
    drop(image);
    ok("qemu-img", &["check", "-f", "qcow2", arg(&path)]);
    let text = ok("qemu-img", &["info", "--output=json", arg(&path)]);
    let theirs: serde_json::Value = serde_json::from_str(&text).unwrap();
    let ours = scratch.open(&path).info().unwrap().specific.unwrap();
    assert_eq!(serde_json::Value::Object(ours), theirs["format-specific"]["data"]);
    ok(
        "qemu-img",
        &["bitmap", "--merge", "auto", "-f", "qcow2", arg(&path), "still"],
    );
    let image = scratch.open(&path);
    assert_eq!(image.bitmaps().unwrap().dirty("still").unwrap(), [(1 << 20, 131_072)]);
}

#[test]
fn we_follow_writes_in_qemus_bitmaps() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let scratch = Scratch::new();
    let path = scratch.file("a.qcow2");
    let p = arg(&path);
    ok("qemu-img", &["create", "-q", "-f", "qcow2", p, "64M"]);
    ok("qemu-img", &["bitmap", "--add", "-g", "4096", p, "b0"]);
    ok("qemu-io", &["-f", "qcow2", "-c", "write 8k 4k", p]);
    let image = scratch.open_writable(&path);
    image.write(40_960, &[1; 10], &NothingBelow).unwrap();
    image.discard(1 << 20, 65_536).unwrap();
    image.close().unwrap();
    drop(image);
    ok("qemu-img", &["check", "-f", "qcow2", p]);
    let image = scratch.open(&path);
    let dirty = image.bitmaps().unwrap().dirty("b0").unwrap();
    assert_eq!(dirty, [(8192, 4096), (40_960, 4096), (1 << 20, 65_536)]);
}

#[test]
fn a_bitmap_that_was_not_saved_is_only_good_for_removing() {
    let scratch = Scratch::new();
    let path = scratch.file("a.qcow2");
    scratch.create(&path, 64 << 20, Options::new());
    let image = scratch.open_writable(&path);
    image.bitmaps().unwrap().add("b0", 0, true).unwrap();
    image.write(0, &[1; 10], &NothingBelow).unwrap();
    image.flush().unwrap();
    drop(image);
    let image = scratch.open_writable(&path);
    let bitmaps = image.bitmaps().unwrap();
    assert!(bitmaps.list().unwrap()[0].in_use);
    assert!(bitmaps.dirty("b0").is_err());
    assert!(bitmaps.mark("b0", &[(0, 1)]).is_err());
    assert!(image.resize(&to_size(128 << 20)).is_err());
    bitmaps.remove("b0").unwrap();
    assert!(bitmaps.list().unwrap().is_empty());
    assert_clean(&*image);
    image.close().unwrap();
    drop(image);
    if have(&["qemu-img"]) {
        assert!(run("qemu-img", &["check", arg(&path)]).status.success());
    }
}
