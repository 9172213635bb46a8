//! Behaviour: a byte array under any operations, whole after any crash, growing, mending.

use std::sync::Arc;

use proptest::prelude::*;

use super::Vdi;
use crate::env::{CreateSpec, NoSecrets};
use crate::formats::FormatDriver;
use crate::gate::DenyAll;
use crate::image::{Below, ExtentKind, NothingBelow, Repair, Resize};
use crate::options::Options;
use crate::storage::{Fault, FaultyStorage, MemoryStorage};
use crate::{Control, CreateEnv, Image, Limits, OpenEnv, Result, StorageRef};

pub(super) fn created(size: u64, options: Options) -> Vec<u8> {
    let storage = Arc::new(MemoryStorage::empty());
    let env = CreateEnv {
        gate: &DenyAll,
        limits: &Limits::default(),
        secrets: &NoSecrets,
        random: &|bytes| bytes.fill(7),
        now: 0,
    };
    let spec = CreateSpec {
        virtual_size: size,
        options,
        backing: None,
    };
    Vdi.create(storage.clone(), &spec, &env).unwrap();
    storage.contents()
}

fn small_blocks() -> Options {
    Options::new().with("block_size", "4k")
}

pub(super) fn open_on(storage: StorageRef) -> Result<Box<dyn Image>> {
    Vdi.open(
        storage,
        &Options::new(),
        &OpenEnv::closed(&Limits::default()).writable(),
    )
}

pub(super) fn open_to_check(bytes: Vec<u8>) -> (Arc<MemoryStorage>, Box<dyn Image>) {
    let storage = Arc::new(MemoryStorage::new("m", bytes));
    let env_limits = Limits::default();
    let env = OpenEnv::closed(&env_limits).writable().for_check();
    (storage.clone(), Vdi.open(storage, &Options::new(), &env).unwrap())
}

/// Turns an image into a differencing one over the image with the UUID of sevens.
fn made_overlay(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[0x4c] = 4;
    bytes[0x1a8..0x1b8].fill(7);
    bytes
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

fn whole(image: &dyn Image) -> Vec<u8> {
    let mut buf = vec![0xee; image.virtual_size() as usize];
    image.read(0, &mut buf).unwrap();
    buf
}

fn seen_over(image: &dyn Image, below: u8) -> Vec<u8> {
    let mut buf = whole(image);
    let mut at = 0;
    while at < buf.len() as u64 {
        let extent = image.extent(at, buf.len() as u64 - at).unwrap();
        if extent.kind == ExtentKind::Unallocated {
            buf[at as usize..(at + extent.len) as usize].fill(below);
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
    Grow(u64),
}

const SIZE: u64 = 10 * 4096 + 512;

fn op() -> impl Strategy<Value = Op> {
    let range = (0..SIZE, 1..3 * 4096u64).prop_map(|(o, l)| (o, l.min(SIZE - o)));
    prop_oneof![
        4 => (range.clone(), 1..=255u8).prop_map(|((o, l), b)| Op::Write(o, l, b)),
        2 => (range.clone(), any::<bool>()).prop_map(|((o, l), u)| Op::Zero(o, l, u)),
        1 => range.prop_map(|(o, l)| Op::Discard(o, l)),
        1 => Just(Op::Flush),
        1 => Just(Op::Reopen),
        1 => (0..300u64).prop_map(|b| Op::Grow(b * 4096)),
    ]
}

fn run(overlay: bool, fixed: bool, ops: &[Op]) {
    let below = All(if overlay { 0x55 } else { 0 });
    let options = small_blocks().with("static", if fixed { "on" } else { "off" });
    let mut bytes = created(SIZE, options);
    if overlay {
        bytes = made_overlay(bytes);
    }
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
                let now = seen_over(image.as_ref(), below.0);
                let range = o as usize..(o + l) as usize;
                for (m, n) in model[range.clone()].iter_mut().zip(&now[range]) {
                    assert!(*n == 0 || n == m);
                    *m = *n;
                }
            }
            Op::Flush => image.flush().unwrap(),
            Op::Reopen => {
                image.close().unwrap();
                image = open_on(storage.clone()).unwrap();
            }
            Op::Grow(by) => {
                let size = image.virtual_size() + by;
                image
                    .resize(&Resize {
                        virtual_size: size,
                        ..Resize::default()
                    })
                    .unwrap();
                model.resize(size as usize, below.0);
                // An overlay shows what is below; a block that it had whole shows zeroes past the old end.
                let now = seen_over(image.as_ref(), below.0);
                let tail = (size - by) as usize..(size - by).next_multiple_of(4096).min(size) as usize;
                model[tail.clone()].copy_from_slice(&now[tail]);
            }
        }
    }
    assert!(seen_over(image.as_ref(), below.0) == model, "contents differ");
    image.close().unwrap();
    assert!(
        seen_over(open_on(storage).unwrap().as_ref(), below.0) == model,
        "contents differ after reopening"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn it_is_a_byte_array_under_any_operations(
        kind in 0..3,
        ops in proptest::collection::vec(op(), 1..24),
    ) {
        run(kind == 1, kind == 2, &ops);
    }
}

/// Runs `work` with a freeze at each change in turn; what was flushed before must be there, and the image must open.
fn survives_any_crash(bytes: &[u8], flushed: &[u8], work: impl Fn(&dyn Image)) {
    let full = FaultyStorage::new(bytes.to_vec());
    let full = Arc::new(full);
    work(open_on(full.clone()).unwrap().as_ref());
    for n in 0..=full.changes() {
        let storage = Arc::new(FaultyStorage::new(bytes.to_vec()));
        storage.plan(n, Fault::Freeze);
        work(open_on(storage.clone()).unwrap().as_ref());
        let after = open_on(Arc::new(MemoryStorage::new("after", storage.contents()))).unwrap();
        let content = whole(after.as_ref());
        assert!(
            content[..flushed.len()] == *flushed,
            "freeze at change {n} lost flushed data"
        );
    }
}

/// An image with every block written, in an order that is not the guest's, and its contents.
fn scattered() -> (Vec<u8>, Vec<u8>) {
    let storage = Arc::new(MemoryStorage::new("m", created(8 * 4096, small_blocks())));
    let image = open_on(storage.clone()).unwrap();
    for block in [3u64, 0, 7, 1, 2, 6, 5, 4] {
        image
            .write(block * 4096, &[block as u8 + 1; 4096], &NothingBelow)
            .unwrap();
    }
    image.close().unwrap();
    (storage.contents(), whole(image.as_ref()))
}

#[test]
fn a_crash_while_writing_new_blocks_loses_nothing_flushed() {
    let storage = Arc::new(MemoryStorage::new("m", created(64 * 4096, small_blocks())));
    let image = open_on(storage.clone()).unwrap();
    image.write(0, &[1; 3 * 4096], &NothingBelow).unwrap();
    image.flush().unwrap();
    survives_any_crash(&storage.contents(), &[1; 3 * 4096], |image| {
        for block in 10..20 {
            image.write(block * 4096 + 5, &[9; 100], &NothingBelow).unwrap();
            image.flush().unwrap();
        }
    });
}

#[test]
fn a_crash_while_growing_leaves_the_old_contents() {
    let (bytes, content) = scattered();
    for blocks in [9, 200, 3000] {
        survives_any_crash(&bytes, &content, |image| {
            let to = Resize {
                virtual_size: blocks * 4096,
                ..Resize::default()
            };
            image.resize(&to).unwrap();
            assert_eq!(image.virtual_size(), blocks * 4096);
        });
    }
}

#[test]
fn new_blocks_never_show_what_a_crash_left_behind() {
    let mut bytes = created(8 * 4096, small_blocks());
    bytes.extend_from_slice(&[0xaa; 3 * 4096 - 100]);
    let image = open_on(Arc::new(MemoryStorage::new("m", bytes))).unwrap();
    for block in 0..4u64 {
        image.write(block * 4096 + 100, &[1; 10], &NothingBelow).unwrap();
    }
    let content = whole(image.as_ref());
    assert!(content.iter().all(|b| *b != 0xaa));
}

#[test]
fn growing_a_static_image_keeps_every_block_in_place() {
    let storage: StorageRef = Arc::new(MemoryStorage::new(
        "m",
        created(4 * 4096, small_blocks().with("static", "on")),
    ));
    let image = open_on(storage.clone()).unwrap();
    image.write(0, &[5; 4 * 4096], &NothingBelow).unwrap();
    image
        .resize(&Resize {
            virtual_size: 400 * 4096,
            ..Resize::default()
        })
        .unwrap();
    let mut at = 0;
    while at < image.virtual_size() {
        let extent = image.extent(at, image.virtual_size() - at).unwrap();
        assert!(matches!(extent.kind, ExtentKind::Data { .. }), "{extent:?}");
        at += extent.len;
    }
    let report = image.check(Repair::No, &Control::default()).unwrap();
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{:?}", report.messages);
}

fn set_entry(bytes: &mut [u8], block: usize, entry: u32) {
    bytes[512 + block * 4..516 + block * 4].copy_from_slice(&entry.to_le_bytes());
}

#[test]
fn shared_blocks_are_copied_apart() {
    let (mut bytes, mut content) = scattered();
    set_entry(&mut bytes, 7, 0); // Block 3 has place 0.
    let (_, image) = open_to_check(bytes);
    let report = image.check(Repair::All, &Control::default()).unwrap();
    assert_eq!((report.corruptions, report.corruptions_fixed, report.leaks), (0, 1, 0));
    content[7 * 4096..].fill(4);
    assert!(whole(image.as_ref()) == content);
    image.write(7 * 4096, &[0x11; 4096], &NothingBelow).unwrap();
    assert!(whole(image.as_ref())[3 * 4096..4 * 4096] == [4; 4096]);
}

#[test]
fn leaks_are_closed_by_moving_the_last_blocks() {
    let (mut bytes, mut content) = scattered();
    set_entry(&mut bytes, 0, u32::MAX);
    set_entry(&mut bytes, 1, u32::MAX);
    let before = bytes.len();
    let (storage, image) = open_to_check(bytes);
    let report = image.check(Repair::Leaks, &Control::default()).unwrap();
    assert_eq!((report.leaks, report.leaks_fixed, report.corruptions), (0, 2, 0));
    content[..2 * 4096].fill(0);
    assert!(whole(image.as_ref()) == content);
    assert_eq!(storage.contents().len(), before - 2 * 4096);
}

#[test]
fn entries_outside_the_image_are_unallocated_after_repair() {
    let (mut bytes, mut content) = scattered();
    set_entry(&mut bytes, 3, 0x7fff_ffff);
    let (_, image) = open_to_check(bytes);
    let report = image.check(Repair::All, &Control::default()).unwrap();
    assert_eq!((report.corruptions, report.corruptions_fixed), (0, 1));
    content[3 * 4096..4 * 4096].fill(0);
    assert!(whole(image.as_ref()) == content);
}

#[test]
fn a_mend_survives_any_crash() {
    let (mut bytes, content) = scattered();
    set_entry(&mut bytes, 0, u32::MAX);
    let mut content = content;
    content[..4096].fill(0);
    survives_any_crash(&bytes, &content, |image| {
        image.check(Repair::All, &Control::default()).unwrap();
    });
}

#[test]
fn bulk_and_plain_writes_read_the_same() {
    let storage = Arc::new(MemoryStorage::new("m", created(10 * 4096 + 512, small_blocks())));
    let image = open_on(storage.clone()).unwrap();
    let bulk = image.bulk().unwrap();
    for (offset, len) in [(4096, 3 * 4096), (6 * 4096, 4096), (10 * 4096, 512)] {
        let placement = bulk.place(offset, len, None).unwrap();
        bulk.store(&placement, &vec![offset as u8 / 16 + 1; len as usize])
            .unwrap();
    }
    assert!(bulk.place(4096, 4096, None).is_ok(), "a block keeps its place");
    image.close().unwrap();
    let reopened = open_on(storage).unwrap();
    let content = whole(reopened.as_ref());
    assert!(content[..4096].iter().all(|b| *b == 0));
    assert!(content[4096..4 * 4096].iter().all(|b| *b == 1));
    assert!(content[10 * 4096..].iter().all(|b| *b == 1));
}

#[test]
fn a_differencing_image_asks_for_its_parent_by_uuid() {
    let bytes = made_overlay(created(4096 * 4, small_blocks()));
    let image = open_on(Arc::new(MemoryStorage::new("m", bytes))).unwrap();
    let backing = image.backing().unwrap();
    assert_eq!(backing.name, "uuid:07070707-0707-0707-0707-070707070707");
    assert_eq!(image.extent(0, 100).unwrap().kind, ExtentKind::Unallocated);
    let other = open_on(Arc::new(MemoryStorage::new("p", created(4096 * 4, small_blocks())))).unwrap();
    let error = image.check_below(other.as_ref()).unwrap_err();
    assert!(
        error.to_string().contains("07070707-0707-0707-0707-070707070707"),
        "{error}"
    );
}

#[test]
fn blocks_with_extra_bytes_read_behind_them() {
    let mut bytes = created(2 * 4096, small_blocks());
    bytes[0x17c..0x180].copy_from_slice(&512u32.to_le_bytes());
    let storage: StorageRef = Arc::new(MemoryStorage::new("m", bytes));
    let image = open_on(storage.clone()).unwrap();
    image.write(0, &[3; 2 * 4096], &NothingBelow).unwrap();
    image.close().unwrap();
    assert!(whole(open_on(storage.clone()).unwrap().as_ref()) == [3; 2 * 4096]);
    assert_eq!(storage.len().unwrap(), 1024 + 2 * (4096 + 512));
}
