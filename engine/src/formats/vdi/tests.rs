//! Behaviour: a byte array under any operations, whole after any crash, growing, mending.

use std::sync::Arc;

use proptest::prelude::*;

use super::Vdi;
use crate::formats::FormatDriver;
use crate::formats::testing::bytes::{ByteArray, Op};
use crate::formats::testing::crash::at_every_change;
use crate::formats::testing::{self, file, whole};
use crate::image::{ExtentKind, NothingBelow, Repair, Resize};
use crate::options::Options;
use crate::storage::{Fault, MemoryStorage};
use crate::{Control, Image, Limits, OpenEnv, Result, StorageRef};

pub(super) fn created(size: u64, options: Options) -> Vec<u8> {
    testing::created(&Vdi, size, options)
}

fn small_blocks() -> Options {
    Options::new().with("block_size", "4k")
}

pub(super) fn open_on(storage: StorageRef) -> Result<Box<dyn Image>> {
    testing::open_on(&Vdi, storage)
}

pub(super) fn open_to_check(bytes: Vec<u8>) -> (Arc<MemoryStorage>, Box<dyn Image>) {
    testing::open_to_check(&Vdi, bytes)
}

/// Turns an image into a differencing one over the image with the UUID of sevens.
fn made_overlay(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[0x4c] = 4;
    bytes[0x1a8..0x1b8].fill(7);
    bytes
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
    let options = small_blocks().with("static", if fixed { "on" } else { "off" });
    let mut bytes = created(SIZE, options);
    if overlay {
        bytes = made_overlay(bytes);
    }
    let mut disk = ByteArray::new(&Vdi, bytes, SIZE, if overlay { 0x55 } else { 0 });
    for op in ops {
        let old = disk.model.len();
        disk.apply(op);
        if let Op::Grow(_) = op {
            // An overlay shows what is below; a block that it had whole shows zeroes past the old end.
            let now = disk.seen();
            let tail = old..old.next_multiple_of(4096).min(now.len());
            disk.model[tail.clone()].copy_from_slice(&now[tail]);
        }
    }
    disk.finish();
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

/// Freezes at each change of `work` in turn; what was flushed before must be there, and the image must open.
fn survives_any_crash(bytes: &[u8], flushed: &[u8], work: impl Fn(&dyn Image)) {
    let work = |storage| work(open_on(storage).unwrap().as_ref());
    at_every_change(bytes, &[Fault::Freeze], work, |left, crash| {
        let content = whole(open_on(file(left)).unwrap().as_ref());
        assert!(content[..flushed.len()] == *flushed, "{crash} lost flushed data");
    });
}

/// An image with every block written, in an order that is not the guest's, and its contents.
fn scattered() -> (Vec<u8>, Vec<u8>) {
    testing::changed(&Vdi, created(8 * 4096, small_blocks()), 0, |image| {
        for block in [3u64, 0, 7, 1, 2, 6, 5, 4] {
            image
                .write(block * 4096, &[block as u8 + 1; 4096], &NothingBelow)
                .unwrap();
        }
    })
}

#[test]
fn a_crash_while_writing_new_blocks_loses_nothing_flushed() {
    let storage = file(created(64 * 4096, small_blocks()));
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
    let image = open_on(file(bytes)).unwrap();
    for block in 0..4u64 {
        image.write(block * 4096 + 100, &[1; 10], &NothingBelow).unwrap();
    }
    let content = whole(image.as_ref());
    assert!(content.iter().all(|b| *b != 0xaa));
}

#[test]
fn growing_a_static_image_keeps_every_block_in_place() {
    let storage: StorageRef = file(created(4 * 4096, small_blocks().with("static", "on")));
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
fn an_image_that_leaks_its_last_places_says_how_it_can_be_written_again() {
    let (mut bytes, content) = scattered();
    set_entry(&mut bytes, 3, u32::MAX);
    let image = open_on(file(bytes.clone())).unwrap();
    let error = image.write(3 * 4096, &[9; 10], &NothingBelow).unwrap_err();
    assert_eq!(error.kind(), crate::ErrorKind::Corrupt);
    assert!(error.to_string().contains("1 unused places"), "{error}");
    assert!(error.to_string().contains("repairing leaks"), "{error}");
    let (storage, image) = open_to_check(bytes);
    image.check(Repair::Leaks, &Control::default()).unwrap();
    drop(image);
    let image = open_on(storage).unwrap();
    image
        .write(3 * 4096, &content[3 * 4096..4 * 4096], &NothingBelow)
        .unwrap();
    assert!(whole(image.as_ref()) == content);
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

/// Whether another program, which puts new blocks behind as many as the header counts, spares every block that the map names.
fn counts_every_block(bytes: &[u8]) -> bool {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let (map, blocks, allocated) = (word(0x154) as usize, word(0x180) as usize, word(0x184));
    let mut entries = (0..blocks).map(|block| word(map + block * 4));
    entries.all(|entry| entry >= 0xffff_fffe || entry < allocated)
}

#[test]
fn the_header_counts_every_block_that_the_map_names_while_it_grows() {
    let (few, _) = testing::changed(&Vdi, created(8 * 4096, small_blocks()), 0, |image| {
        for block in [1u64, 0] {
            image.write(block * 4096, &[7; 4096], &NothingBelow).unwrap();
        }
    });
    for bytes in [few, scattered().0] {
        for blocks in [200, 3000] {
            let grow = |storage| {
                open_on(storage)
                    .unwrap()
                    .resize(&testing::to_size(blocks * 4096))
                    .unwrap()
            };
            at_every_change(&bytes, &[Fault::Freeze], grow, |left, crash| {
                assert!(counts_every_block(&left), "{blocks} blocks, {crash}");
            });
        }
    }
}

/// Checks these bytes with a crash at each change of the repair in turn; what is left opens for another repair and loses nothing.
fn is_mended_after_any_crash(bytes: &[u8], content: &[u8], what: &str) {
    let mend = |storage| {
        let limits = Limits::default();
        let env = OpenEnv::closed(&limits).writable().for_check();
        let image = Vdi.open(storage, &Options::new(), &env).unwrap();
        image.check(Repair::All, &Control::default()).unwrap();
    };
    at_every_change(bytes, &[Fault::Freeze], mend, |left, crash| {
        let (storage, image) = open_to_check(left);
        assert!(whole(image.as_ref())[..content.len()] == *content, "{what}, {crash}");
        image.check(Repair::All, &Control::default()).unwrap();
        let image = open_on(storage).unwrap_or_else(|e| panic!("{what}, {crash}: {e}"));
        assert!(
            whole(image.as_ref())[..content.len()] == *content,
            "{what}, {crash}: repaired"
        );
    });
}

#[test]
fn a_repair_of_a_full_image_can_be_done_again_after_any_crash() {
    let (mut bytes, mut content) = scattered();
    set_entry(&mut bytes, 7, 0); // Block 3 has place 0.
    content[7 * 4096..].fill(4);
    is_mended_after_any_crash(&bytes, &content, "a shared place");
}

#[test]
fn a_repair_after_a_crash_of_growing_can_be_done_again_after_any_crash() {
    let (bytes, content) = scattered();
    let grow = |storage| {
        open_on(storage)
            .unwrap()
            .resize(&testing::to_size(3000 * 4096))
            .unwrap()
    };
    at_every_change(&bytes, &[Fault::Freeze], grow, |left, crash| {
        is_mended_after_any_crash(&left, &content, &format!("growing, {crash}"));
    });
}

#[test]
fn bulk_and_plain_writes_read_the_same() {
    let storage = file(created(10 * 4096 + 512, small_blocks()));
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

/// Large writes over an image whose blocks lie in another order, with one that has no place yet.
#[test]
fn blocks_that_lie_apart_are_overwritten_one_by_one() {
    let mut bytes = created(6 * 4096, small_blocks().with("static", "on"));
    for (block, entry) in [2, 0, 1, u32::MAX, 4, 3].into_iter().enumerate() {
        set_entry(&mut bytes, block, entry);
    }
    bytes[388..392].copy_from_slice(&5u32.to_le_bytes());
    let storage = file(bytes);
    let image = open_on(storage.clone()).unwrap();
    let bulk = image.bulk().unwrap();
    assert!(bulk.overwrites());
    let data: Vec<u8> = (0..6 * 4096).map(|i| (i / 512 + 1) as u8).collect();
    let mut at = 0;
    while at < data.len() {
        let placement = bulk.place(at as u64, (data.len() - at) as u64, None);
        let placement = placement.unwrap_or_else(|e| panic!("{at}: {e}"));
        let end = at + placement.len as usize;
        bulk.store(&placement, &data[at..end]).unwrap();
        at = end;
    }
    image.close().unwrap();
    let again = open_on(storage).unwrap();
    assert!(whole(again.as_ref()) == data);
    let report = again.check(Repair::No, &Control::default()).unwrap();
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{:?}", report.messages);
}

#[test]
fn a_differencing_image_asks_for_its_parent_by_uuid() {
    let bytes = made_overlay(created(4096 * 4, small_blocks()));
    let image = open_on(file(bytes)).unwrap();
    let backing = image.backing().unwrap();
    assert_eq!(backing.name, "uuid:07070707-0707-0707-0707-070707070707");
    assert_eq!(image.extent(0, 100).unwrap().kind, ExtentKind::Unallocated);
    let other = open_on(file(created(4096 * 4, small_blocks()))).unwrap();
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
    let storage: StorageRef = file(bytes);
    let image = open_on(storage.clone()).unwrap();
    image.write(0, &[3; 2 * 4096], &NothingBelow).unwrap();
    image.close().unwrap();
    assert!(whole(open_on(storage.clone()).unwrap().as_ref()) == [3; 2 * 4096]);
    assert_eq!(storage.len().unwrap(), 1024 + 2 * (4096 + 512));
}
