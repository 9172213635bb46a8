//! Behaviour: a byte array under any operations, whole after any crash, resized, mended, over another disk.

use std::cell::Cell;
use std::sync::Arc;

use proptest::prelude::*;

use super::Vhdx;
use super::layout::{HEADERS, MIB, PAGE, REGION_TABLES};
use crate::env::{CreateSpec, NoSecrets};
use crate::formats::FormatDriver;
use crate::gate::{Gate, Node, Reference};
use crate::image::{BackingReference, Below, ExtentKind, NothingBelow, Repair, Resize};
use crate::options::Options;
use crate::storage::{Fault, FaultyStorage, MemoryStorage};
use crate::{Control, CreateEnv, Error, Image, Limits, OpenEnv, Result, StorageRef};

const SIZE: u64 = 6 * MIB + 512;

/// Knows one disk, whatever the name.
struct Base(Option<StorageRef>);

impl Gate for Base {
    fn open(&self, reference: &Reference<'_>) -> Result<Node> {
        let storage = self.0.clone().ok_or_else(|| Error::denied(reference.name))?;
        Ok(Node::new(storage, "vhdx"))
    }
    fn create(&self, reference: &Reference<'_>) -> Result<StorageRef> {
        Err(Error::denied(reference.name))
    }
}

fn create(size: u64, options: Options, base: Option<StorageRef>) -> Result<Vec<u8>> {
    let storage = Arc::new(MemoryStorage::empty());
    let next = Cell::new(1u8);
    let env = CreateEnv {
        gate: &Base(base.clone()),
        limits: &Limits::default(),
        secrets: &NoSecrets,
        random: &|bytes| bytes.fill(next.replace(next.get() + 1)),
        now: 0,
    };
    let spec = CreateSpec {
        virtual_size: size,
        options,
        backing: base.map(|_| reference("base.vhdx")),
    };
    Vhdx.create(storage.clone(), &spec, &env)?;
    Ok(storage.contents())
}

fn reference(name: &str) -> BackingReference {
    BackingReference {
        name: name.into(),
        format: Some("vhdx".into()),
    }
}

pub(super) fn created(size: u64, options: Options) -> Vec<u8> {
    create(size, options.with("block_size", "1M"), None).unwrap()
}

pub(super) fn overlay(size: u64) -> Vec<u8> {
    let base = Arc::new(MemoryStorage::new("base", created(size, Options::new())));
    create(size, Options::new().with("block_size", "1M"), Some(base)).unwrap()
}

fn new_image(is_overlay: bool, size: u64) -> Vec<u8> {
    if is_overlay {
        overlay(size)
    } else {
        created(size, Options::new())
    }
}

pub(super) fn open_on(storage: StorageRef) -> Result<Box<dyn Image>> {
    Vhdx.open(
        storage,
        &Options::new(),
        &OpenEnv::closed(&Limits::default()).writable(),
    )
}

pub(super) fn open_to_check(bytes: Vec<u8>) -> (Arc<MemoryStorage>, Box<dyn Image>) {
    let storage = Arc::new(MemoryStorage::new("m", bytes));
    let limits = Limits::default();
    let env = OpenEnv::closed(&limits).writable().for_check();
    (storage.clone(), Vhdx.open(storage, &Options::new(), &env).unwrap())
}

fn open_to_read(bytes: Vec<u8>) -> Result<Box<dyn Image>> {
    let limits = Limits::default();
    let storage = Arc::new(MemoryStorage::new("m", bytes));
    Vhdx.open(storage, &Options::new(), &OpenEnv::closed(&limits))
}

/// A layer below that is all one byte.
struct All(u8);

impl Below for All {
    fn read(&self, _offset: u64, buf: &mut [u8]) -> Result<()> {
        buf.fill(self.0);
        Ok(())
    }
    fn is_zero(&self, _offset: u64, _len: u64) -> Result<bool> {
        Ok(self.0 == 0)
    }
}

/// What the guest sees with `below` under the layer.
fn seen(image: &dyn Image, below: u8) -> Vec<u8> {
    let mut buf = vec![0xee; image.virtual_size() as usize];
    image.read(0, &mut buf).unwrap();
    let mut at = 0;
    while at < buf.len() as u64 {
        let extent = image.extent(at, buf.len() as u64 - at).unwrap();
        let range = at as usize..(at + extent.len) as usize;
        match extent.kind {
            ExtentKind::Unallocated => buf[range].fill(below),
            ExtentKind::Zero { .. } => assert!(buf[range].iter().all(|b| *b == 0)),
            _ => {}
        }
        at += extent.len;
    }
    buf
}

#[derive(Debug, Clone)]
enum Op {
    Write(u64, u64, u8),
    Zero(u64, u64, bool),
    Discard(u64, u64),
    Flush,
    Reopen,
    Resize(u64),
    MakeEmpty,
}

fn op() -> impl Strategy<Value = Op> {
    let range = prop_oneof![
        (0..SIZE, 1..5000u64),
        (0..SIZE, 1..3 * MIB),
        (0..7u64, 1..3u64).prop_map(|(o, l)| (o * MIB, l * MIB))
    ];
    let range = range.prop_map(|(o, l)| (o.min(SIZE - 1), l.min(SIZE - o.min(SIZE - 1))));
    prop_oneof![
        6 => (range.clone(), 1..=255u8).prop_map(|((o, l), b)| Op::Write(o, l, b)),
        3 => (range.clone(), any::<bool>()).prop_map(|((o, l), u)| Op::Zero(o, l, u)),
        1 => range.prop_map(|(o, l)| Op::Discard(o, l)),
        1 => Just(Op::Flush),
        1 => Just(Op::Reopen),
        1 => (SIZE / 512..20_000u64).prop_map(|s| Op::Resize(s * 512)),
        1 => Just(Op::MakeEmpty),
    ]
}

fn run(kind: &str, ops: &[Op]) {
    let is_overlay = kind == "differencing";
    let below = All(if is_overlay { 0x55 } else { 0 });
    let bytes = if is_overlay {
        overlay(SIZE)
    } else {
        created(SIZE, Options::new().with("subformat", kind))
    };
    let storage: StorageRef = Arc::new(MemoryStorage::new("m", bytes));
    let mut image = open_on(storage.clone()).unwrap();
    let mut model = vec![below.0; SIZE as usize];
    for op in ops {
        match *op {
            Op::Write(o, l, b) => {
                image.write(o, &vec![b; l as usize], &below).unwrap();
                model[o as usize..(o + l) as usize].fill(b);
            }
            Op::Zero(o, l, unmap) => {
                image.write_zeroes(o, l, unmap, &below).unwrap();
                model[o as usize..(o + l) as usize].fill(0);
            }
            Op::Discard(o, l) => {
                image.discard(o, l).unwrap();
                let now = seen(image.as_ref(), below.0);
                for (m, n) in model.iter_mut().zip(&now).skip(o as usize).take(l as usize) {
                    assert!(*n == 0 || n == m);
                    *m = *n;
                }
            }
            Op::Flush => image.flush().unwrap(),
            Op::Reopen => {
                image.close().unwrap();
                image = open_on(storage.clone()).unwrap();
            }
            Op::Resize(size) => {
                let to = Resize {
                    virtual_size: size,
                    shrink: true,
                    ..Resize::default()
                };
                if is_overlay {
                    assert!(image.resize(&to).is_err());
                } else {
                    image.resize(&to).unwrap();
                    model.resize(size as usize, 0);
                }
            }
            Op::MakeEmpty => {
                image.make_empty().unwrap();
                model.fill(below.0);
            }
        }
    }
    assert!(seen(image.as_ref(), below.0) == model, "contents differ");
    image.close().unwrap();
    drop(image);
    let image = open_on(storage).unwrap();
    assert!(
        seen(image.as_ref(), below.0) == model,
        "contents differ after reopening"
    );
    let report = image.check(Repair::No, &Control::default()).unwrap();
    assert_eq!(
        (report.corruptions, report.check_errors),
        (0, 0),
        "{:?}",
        report.messages
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn it_is_a_byte_array_under_any_operations(
        kind in prop::sample::select(vec!["fixed", "dynamic", "differencing"]),
        ops in prop::collection::vec(op(), 1..16),
    ) {
        run(kind, &ops);
    }
}

/// Runs `work` with a fault at each change in turn; afterwards the image opens for reading and for writing, and `judge` is given what it
/// shows.
fn after_any_crash(bytes: &[u8], work: impl Fn(&dyn Image), judge: impl Fn(&[u8], u64)) {
    let full = Arc::new(FaultyStorage::new(bytes.to_vec()));
    work(open_on(full.clone()).unwrap().as_ref());
    for n in 0..=full.changes() {
        for fault in [Fault::Freeze, Fault::Tear] {
            let storage = Arc::new(FaultyStorage::new(bytes.to_vec()));
            storage.plan(n, fault);
            work(open_on(storage.clone()).unwrap().as_ref());
            let left = storage.contents();
            let reader = open_to_read(left.clone()).unwrap_or_else(|e| panic!("{fault:?} at change {n}: {e}"));
            let now = seen(reader.as_ref(), 0x55);
            judge(&now, n);
            let writer = open_on(Arc::new(MemoryStorage::new("after", left))).unwrap();
            assert!(
                seen(writer.as_ref(), 0x55) == now,
                "{fault:?} at change {n}: the two replays differ"
            );
        }
    }
}

/// An image with data in some blocks, and what it shows.
fn filled(is_overlay: bool, blocks: u64) -> (Vec<u8>, Vec<u8>) {
    let storage = Arc::new(MemoryStorage::new("m", new_image(is_overlay, blocks * MIB)));
    let image = open_on(storage.clone()).unwrap();
    for block in [1u64, 0] {
        image
            .write(block * MIB + 512, &[block as u8 + 1; 6 * 512], &All(0x55))
            .unwrap();
    }
    image.close().unwrap();
    (storage.contents(), seen(image.as_ref(), 0x55))
}

#[test]
fn a_crash_while_writing_loses_nothing_flushed() {
    for is_overlay in [false, true] {
        let (bytes, content) = filled(is_overlay, 4);
        let old = if is_overlay { 0x55 } else { 0 };
        let work = |image: &dyn Image| {
            for block in [3u64, 2] {
                image.write(block * MIB + 5, &[9; 600], &All(0x55)).unwrap();
                image.flush().unwrap();
            }
            image.close().unwrap();
        };
        after_any_crash(&bytes, work, |now, n| {
            let mib = MIB as usize;
            assert!(
                now[..2 * mib] == content[..2 * mib] && now[4 * mib..] == content[4 * mib..],
                "change {n}"
            );
            for block in now[2 * mib..4 * mib].chunks(mib) {
                assert!(block[..5].iter().chain(&block[605..]).all(|b| *b == old), "change {n}");
                assert!(block[5..605].iter().all(|b| *b == 9 || *b == old), "change {n}");
            }
        });
    }
}

#[test]
fn what_was_flushed_is_there_after_a_crash() {
    for is_overlay in [false, true] {
        let (bytes, _) = filled(is_overlay, 4);
        let storage = Arc::new(FaultyStorage::new(bytes));
        let image = open_on(storage.clone()).unwrap();
        image.write(2 * MIB + 7, &[9; 5000], &All(0x55)).unwrap();
        image.flush().unwrap();
        storage.plan(0, Fault::Freeze);
        image.write(3 * MIB, &[8; 5000], &All(0x55)).unwrap();
        image.close().unwrap();
        let now = seen(open_to_read(storage.contents()).unwrap().as_ref(), 0x55);
        assert_eq!(now[2 * MIB as usize + 7..][..5000], [9; 5000]);
        assert!(now[3 * MIB as usize..][..5000].iter().all(|b| *b != 8));
    }
}

#[test]
fn a_crash_while_resizing_keeps_what_stays() {
    let (bytes, content) = filled(false, 4);
    // The last one needs a table of two MiB.
    for blocks in [1u64, 5, 140_000] {
        let to = Resize {
            virtual_size: blocks * MIB,
            shrink: true,
            ..Resize::default()
        };
        let keep = (blocks.min(4) * MIB) as usize;
        let full = Arc::new(FaultyStorage::new(bytes.clone()));
        open_on(full.clone()).unwrap().resize(&to).unwrap();
        for n in 0..=full.changes() {
            for fault in [Fault::Freeze, Fault::Tear] {
                let storage = Arc::new(FaultyStorage::new(bytes.clone()));
                storage.plan(n, fault);
                open_on(storage.clone()).unwrap().resize(&to).unwrap();
                let image = open_to_read(storage.contents()).unwrap_or_else(|e| panic!("{blocks}, {fault:?} {n}: {e}"));
                let mut now = vec![0; keep];
                image.read(0, &mut now).unwrap();
                assert!(now == content[..keep], "{blocks} blocks, {fault:?} at change {n}");
                assert!([4 * MIB, blocks * MIB].contains(&image.virtual_size()));
            }
        }
    }
}

#[test]
fn another_disk_below_is_named_with_its_id() {
    let (bytes, content) = filled(true, 4);
    let storage = Arc::new(MemoryStorage::new("m", bytes));
    let image = open_on(storage.clone()).unwrap();
    assert_eq!(image.backing(), Some(reference("base.vhdx")));
    let mut base = created(4 * MIB, Options::new());
    let changed = Arc::new(MemoryStorage::new("b", base.clone()));
    let writer = open_on(changed.clone()).unwrap();
    writer.write(0, &[1], &NothingBelow).unwrap();
    writer.close().unwrap();
    base = changed.contents();
    let base = open_to_read(base).unwrap();
    assert!(image.check_below(base.as_ref()).is_err());
    for name in ["dir/new base.vhdx", "short", &"long/".repeat(200)] {
        let name = format!("{name}/x");
        image
            .set_backing_over(Some(&reference(&name)), Some(base.as_ref()))
            .unwrap();
        image.check_below(base.as_ref()).unwrap();
        assert_eq!(image.backing(), Some(reference(&name)));
    }
    image.write(0, &[1; 512], &All(0x55)).unwrap();
    image.close().unwrap();
    let again = open_on(storage).unwrap();
    again.check_below(base.as_ref()).unwrap();
    let now = seen(again.as_ref(), 0x55);
    assert!(now[512..] == content[512..] && now[..512] == [1; 512]);
    let smaller = open_to_read(created(MIB, Options::new())).unwrap();
    assert!(
        image
            .set_backing_over(Some(&reference("x")), Some(smaller.as_ref()))
            .is_err()
    );
}

#[test]
fn without_a_disk_below_the_missing_sectors_are_zero() {
    let (bytes, content) = filled(true, 4);
    let storage = Arc::new(MemoryStorage::new("m", bytes));
    let image = open_on(storage.clone()).unwrap();
    image.set_backing(None).unwrap();
    assert_eq!(image.backing(), None);
    image.close().unwrap();
    let again = open_on(storage).unwrap();
    assert_eq!(again.backing(), None);
    let expected: Vec<u8> = content.iter().map(|b| if *b == 0x55 { 0 } else { *b }).collect();
    assert!(seen(again.as_ref(), 0xdd) == expected);
    let report = again.check(Repair::No, &Control::default()).unwrap();
    assert_eq!(report.corruptions, 0, "{:?}", report.messages);
}

#[test]
fn a_crash_while_the_disk_below_changes_leaves_one_of_the_two() {
    let (bytes, content) = filled(true, 3);
    for name in [Some("other.vhdx"), None] {
        let full = Arc::new(FaultyStorage::new(bytes.clone()));
        let backing = name.map(reference);
        open_on(full.clone()).unwrap().set_backing(backing.as_ref()).unwrap();
        for n in 0..=full.changes() {
            let storage = Arc::new(FaultyStorage::new(bytes.clone()));
            storage.plan(n, Fault::Freeze);
            open_on(storage.clone()).unwrap().set_backing(backing.as_ref()).unwrap();
            let after = open_to_read(storage.contents()).unwrap();
            let found = after.backing();
            assert!(
                found == Some(reference("base.vhdx")) || found == backing,
                "change {n}: {found:?}"
            );
            if name.is_some() {
                assert!(seen(after.as_ref(), 0x55) == content, "change {n}");
            }
        }
    }
}

#[test]
fn the_log_is_empty_after_a_flush() {
    let storage = Arc::new(MemoryStorage::new("m", created(4 * MIB, Options::new())));
    let image = open_on(storage.clone()).unwrap();
    image.write(0, &[1; 512], &NothingBelow).unwrap();
    image.flush().unwrap();
    let limits = Limits::default();
    let opened = super::open::read(
        &(Arc::new(MemoryStorage::new("m", storage.contents())) as StorageRef),
        &OpenEnv::closed(&limits),
    );
    let opened = opened.unwrap();
    assert!(!opened.header.log_in_use && !opened.replayed);
}

#[test]
fn ids_change_when_the_image_does_and_not_before() {
    let storage = Arc::new(MemoryStorage::new("m", created(4 * MIB, Options::new())));
    let before = storage.contents();
    let image = open_on(storage.clone()).unwrap();
    let id = image.layer_id().unwrap();
    image.flush().unwrap();
    image.close().unwrap();
    assert!(storage.contents() == before, "opening for writing changed the file");
    image.write(0, &[1], &NothingBelow).unwrap();
    assert_ne!(image.layer_id().unwrap(), id);
    // Two copies that go different ways are two disks.
    let other = open_on(Arc::new(MemoryStorage::new("m", before))).unwrap();
    other.write(0, &[2], &NothingBelow).unwrap();
    assert_ne!(image.layer_id(), other.layer_id());
}

#[test]
fn a_damaged_copy_is_written_again() {
    let (good, content) = filled(false, 3);
    for place in [HEADERS[0], HEADERS[1], REGION_TABLES[0], REGION_TABLES[1]] {
        let mut bytes = good.clone();
        bytes[place as usize + 40] ^= 1;
        let (storage, image) = open_to_check(bytes);
        let report = image.check(Repair::No, &Control::default()).unwrap();
        assert_eq!((report.corruptions, report.leaks), (1, 0), "{:?}", report.messages);
        let report = image.check(Repair::All, &Control::default()).unwrap();
        assert_eq!(
            (report.corruptions, report.corruptions_fixed),
            (0, 1),
            "{:?}",
            report.messages
        );
        let again = open_to_read(storage.contents()).unwrap();
        // The older header is the one that may be gone without loss; with the newer one goes an id.
        assert!(seen(again.as_ref(), 0) == content, "{place:#x}");
        assert_eq!(again.check(Repair::No, &Control::default()).unwrap().corruptions, 0);
    }
}

#[test]
fn space_behind_the_last_block_is_given_back() {
    let (mut bytes, content) = filled(false, 3);
    let before = bytes.len();
    bytes.resize(before + 5 * MIB as usize, 0xaa);
    let (storage, image) = open_to_check(bytes);
    let report = image.check(Repair::Leaks, &Control::default()).unwrap();
    assert_eq!((report.leaks, report.leaks_fixed, report.corruptions), (0, 5, 0));
    assert_eq!(storage.contents().len(), before);
    assert!(seen(image.as_ref(), 0) == content);
}

#[test]
fn new_blocks_never_show_what_a_crash_left_behind() {
    let mut bytes = created(4 * MIB, Options::new());
    bytes.extend_from_slice(&[0xaa; 3 * PAGE as usize + 100]);
    let image = open_on(Arc::new(MemoryStorage::new("m", bytes))).unwrap();
    for block in 0..4 {
        image.write(block * MIB + 100, &[1; 10], &NothingBelow).unwrap();
    }
    assert!(seen(image.as_ref(), 0).iter().all(|b| *b != 0xaa));
}

#[test]
fn many_changed_pages_go_through_a_small_log() {
    let storage = Arc::new(MemoryStorage::new(
        "m",
        create(700 << 30, Options::new().with("block_size", "1M"), None).unwrap(),
    ));
    let image = open_on(storage.clone()).unwrap();
    let bulk = image.bulk().unwrap();
    // A block in each of 140 pages of the table, which is more than an entry holds.
    for page in 0..140u64 {
        bulk.place(page * 512 * MIB, 4096, None).unwrap();
    }
    image.flush().unwrap();
    drop(image);
    let limits = Limits::default();
    let again = super::open::read(&(storage as StorageRef), &OpenEnv::closed(&limits)).unwrap();
    assert_eq!(again.bat.iter().filter(|e| **e & 7 == 6).count(), 140);
    assert_eq!(again.findings.count, 0);
}
