//! Behaviour: a byte array under any operations; crashes, disks below and mending in files of their own.

mod backing;
mod crash;
mod mend;

use std::sync::Arc;

use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use super::Vpc;
use super::layout::{DiskKind, RawFooter, RawHeader};
use super::locator;
use crate::formats::testing::bytes::{ByteArray, Op, assert_sound};
use crate::formats::testing::{self, All, file, seen, to_size};
use crate::options::Options;
use crate::storage::MemoryStorage;
use crate::{Image, Result, StorageRef};

const BLOCK: u64 = 4096;
const SIZE: u64 = 10 * BLOCK + 512;

pub(super) fn created(size: u64, options: Options) -> Vec<u8> {
    testing::created(&Vpc, size, options.with("force_size", "on"))
}

/// A dynamic or differencing disk with blocks of 4 KiB, which other programs make but `create` does not.
pub(super) fn small_blocks(size: u64, overlay: bool) -> Vec<u8> {
    let bytes = created(size, Options::new());
    let mut footer = RawFooter::read_from_bytes(&bytes[..512]).unwrap();
    let mut header = RawHeader::read_from_bytes(&bytes[512..1536]).unwrap();
    let entries = size.div_ceil(BLOCK) as u32;
    header.block_size = (BLOCK as u32).into();
    header.max_table_entries = entries.into();
    if overlay {
        footer.disk_type = DiskKind::Differencing.code().into();
        header.parent_name = locator::header_name("base.vhd");
        header.parent_unique_id = [9; 16];
    }
    let footer = footer.sealed();
    let table = vec![0xff; (entries as usize * 4).next_multiple_of(512)];
    [footer.as_bytes(), header.sealed().as_bytes(), &table, footer.as_bytes()].concat()
}

pub(super) fn open_on(storage: StorageRef) -> Result<Box<dyn Image>> {
    testing::open_on(&Vpc, storage)
}

pub(super) fn open_to_check(bytes: Vec<u8>) -> (Arc<MemoryStorage>, Box<dyn Image>) {
    testing::open_to_check(&Vpc, bytes)
}

/// An image with data in some blocks, and what it shows.
fn filled(overlay: bool) -> (Vec<u8>, Vec<u8>) {
    testing::changed(&Vpc, small_blocks(300 * BLOCK, overlay), 0x55, |image| {
        for block in [3u64, 0, 7, 150] {
            let fill = [block as u8 + 1; 6 * 512];
            image.write(block * BLOCK + 512, &fill, &All(0x55)).unwrap();
        }
    })
}

fn op() -> impl Strategy<Value = Op> {
    let range = (0..SIZE, 1..3 * BLOCK).prop_map(|(o, l)| (o, l.min(SIZE - o)));
    prop_oneof![
        6 => (range.clone(), 1..=255u8).prop_map(|((o, l), b)| Op::Write(o, l, b)),
        3 => (range.clone(), any::<bool>()).prop_map(|((o, l), u)| Op::Zero(o, l, u)),
        1 => range.prop_map(|(o, l)| Op::Discard(o, l)),
        1 => Just(Op::Flush),
        1 => Just(Op::Reopen),
        1 => (SIZE / 512..600u64).prop_map(|s| Op::Resize(s * 512)),
        1 => Just(Op::MakeEmpty),
    ]
}

fn run(kind: DiskKind, ops: &[Op]) {
    let is_overlay = kind == DiskKind::Differencing;
    let bytes = match kind {
        DiskKind::Fixed => created(SIZE, Options::new().with("subformat", "fixed")),
        _ => small_blocks(SIZE, is_overlay),
    };
    let mut disk = ByteArray::new(&Vpc, bytes, SIZE, if is_overlay { 0x55 } else { 0 });
    for op in ops {
        match op {
            Op::Resize(size) if is_overlay => assert!(disk.image.resize(&to_size(*size)).is_err()),
            Op::MakeEmpty if kind == DiskKind::Fixed => {}
            op => disk.apply(op),
        }
    }
    assert_sound(disk.finish().as_ref());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn it_is_a_byte_array_under_any_operations(
        kind in prop::sample::select(vec![DiskKind::Fixed, DiskKind::Dynamic, DiskKind::Differencing]),
        ops in prop::collection::vec(op(), 1..24),
    ) {
        run(kind, &ops);
    }
}

#[test]
fn bulk_and_plain_writes_read_the_same() {
    let storage: StorageRef = file(small_blocks(10 * BLOCK + 512, false));
    let image = open_on(storage.clone()).unwrap();
    let bulk = image.bulk().unwrap();
    for (offset, len) in [(BLOCK, 3 * BLOCK), (6 * BLOCK, BLOCK), (10 * BLOCK, 512)] {
        let placement = bulk.place(offset, len, None).unwrap();
        bulk.store(&placement, &vec![7; len as usize]).unwrap();
    }
    image.flush().unwrap();
    let now = seen(open_on(storage).unwrap().as_ref(), 0);
    for (number, block) in now.chunks(BLOCK as usize).enumerate() {
        let expected = if matches!(number, 1..=3 | 6 | 10) { 7 } else { 0 };
        assert!(block.iter().all(|b| *b == expected), "block {number}");
    }
}
