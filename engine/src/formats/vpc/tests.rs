//! Behaviour: a byte array under any operations, whole after any crash, resized, mended, over another disk.

use std::sync::Arc;

use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

use super::Vpc;
use super::layout::{DiskKind, FOOTER, HEADER, RawFooter, RawHeader, UNUSED};
use super::locator;
use crate::env::{CreateSpec, NoSecrets};
use crate::formats::FormatDriver;
use crate::gate::DenyAll;
use crate::image::{BackingReference, Below, ExtentKind, NothingBelow, Repair, Resize};
use crate::options::Options;
use crate::storage::{Fault, FaultyStorage, MemoryStorage};
use crate::{Control, CreateEnv, Image, Limits, OpenEnv, Result, StorageRef};

const BLOCK: u64 = 4096;
const SIZE: u64 = 10 * BLOCK + 512;

pub(super) fn created(size: u64, options: Options) -> Vec<u8> {
    let storage: StorageRef = Arc::new(MemoryStorage::empty());
    let env = CreateEnv {
        gate: &DenyAll,
        limits: &Limits::default(),
        secrets: &NoSecrets,
        random: &|bytes| bytes.fill(7),
        now: 0,
    };
    let spec = CreateSpec {
        virtual_size: size,
        options: options.with("force_size", "on"),
        backing: None,
    };
    Vpc.create(storage.clone(), &spec, &env).unwrap();
    let len = storage.len().unwrap() as usize;
    crate::storage::read_vec(storage.as_ref(), 0, len).unwrap()
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
    Vpc.open(
        storage,
        &Options::new(),
        &OpenEnv::closed(&Limits::default()).writable(),
    )
}

pub(super) fn open_to_check(bytes: Vec<u8>) -> (Arc<MemoryStorage>, Box<dyn Image>) {
    let storage = Arc::new(MemoryStorage::new("m", bytes));
    let limits = Limits::default();
    let env = OpenEnv::closed(&limits).writable().for_check();
    (storage.clone(), Vpc.open(storage, &Options::new(), &env).unwrap())
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
    let below = All(if kind == DiskKind::Differencing { 0x55 } else { 0 });
    let bytes = match kind {
        DiskKind::Fixed => created(SIZE, Options::new().with("subformat", "fixed")),
        kind => small_blocks(SIZE, kind == DiskKind::Differencing),
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
                if kind == DiskKind::Differencing {
                    assert!(image.resize(&to).is_err());
                } else {
                    image.resize(&to).unwrap();
                    model.resize(size as usize, 0);
                }
            }
            Op::MakeEmpty if kind != DiskKind::Fixed => {
                image.make_empty().unwrap();
                model.fill(below.0);
            }
            Op::MakeEmpty => {}
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
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn it_is_a_byte_array_under_any_operations(
        kind in prop::sample::select(vec![DiskKind::Fixed, DiskKind::Dynamic, DiskKind::Differencing]),
        ops in prop::collection::vec(op(), 1..24),
    ) {
        run(kind, &ops);
    }
}

const BOTH: [Fault; 2] = [Fault::Freeze, Fault::Tear];

/// Runs `work` with a fault at each change in turn; afterwards the image opens, and `judge` is given what it shows.
fn after_any_crash(bytes: &[u8], faults: &[Fault], work: impl Fn(&dyn Image), judge: impl Fn(&[u8], u64)) {
    let full = Arc::new(FaultyStorage::new(bytes.to_vec()));
    work(open_on(full.clone()).unwrap().as_ref());
    for n in 0..=full.changes() {
        for fault in faults {
            let storage = Arc::new(FaultyStorage::new(bytes.to_vec()));
            storage.plan(n, *fault);
            work(open_on(storage.clone()).unwrap().as_ref());
            let after = open_on(Arc::new(MemoryStorage::new("after", storage.contents())))
                .unwrap_or_else(|e| panic!("{fault:?} at change {n}: {e}"));
            judge(&seen(after.as_ref(), 0x55), n);
        }
    }
}

/// An image with data in some blocks, and what it shows.
fn filled(overlay: bool) -> (Vec<u8>, Vec<u8>) {
    let storage = Arc::new(MemoryStorage::new("m", small_blocks(300 * BLOCK, overlay)));
    let image = open_on(storage.clone()).unwrap();
    for block in [3u64, 0, 7, 150] {
        let fill = [block as u8 + 1; 6 * 512];
        image.write(block * BLOCK + 512, &fill, &All(0x55)).unwrap();
    }
    image.close().unwrap();
    (storage.contents(), seen(image.as_ref(), 0x55))
}

#[test]
fn a_crash_while_writing_loses_nothing_flushed() {
    for overlay in [false, true] {
        let (bytes, content) = filled(overlay);
        let work = |image: &dyn Image| {
            for block in 160..170 {
                image.write(block * BLOCK + 5, &[9; 100], &All(0x55)).unwrap();
                image.flush().unwrap();
            }
        };
        after_any_crash(&bytes, &BOTH, work, |now, n| {
            assert!(now[..160 * BLOCK as usize] == content[..160 * BLOCK as usize], "{n}");
            for (number, block) in now[160 * BLOCK as usize..170 * BLOCK as usize]
                .chunks(BLOCK as usize)
                .enumerate()
            {
                let old = if overlay { 0x55 } else { 0 };
                assert!(
                    block[..5].iter().chain(&block[105..]).all(|b| *b == old),
                    "change {n}, block {number}"
                );
                assert!(
                    block[5..105].iter().all(|b| *b == 9 || *b == old),
                    "change {n}, block {number}"
                );
            }
        });
    }
}

#[test]
fn what_was_flushed_is_there_after_a_crash() {
    let (bytes, _) = filled(true);
    let storage = Arc::new(FaultyStorage::new(bytes));
    let image = open_on(storage.clone()).unwrap();
    image.write(200 * BLOCK + 7, &[9; 5000], &All(0x55)).unwrap();
    image.flush().unwrap();
    storage.plan(0, Fault::Freeze);
    image.write(210 * BLOCK, &[8; 5000], &All(0x55)).unwrap();
    image.close().unwrap();
    let after = open_on(Arc::new(MemoryStorage::new("after", storage.contents()))).unwrap();
    let now = seen(after.as_ref(), 0x55);
    assert_eq!(now[200 * BLOCK as usize + 7..][..5000], [9; 5000]);
    assert_eq!(now[210 * BLOCK as usize..][..5000], [0x55; 5000]);
}

#[test]
fn a_crash_while_resizing_keeps_what_stays() {
    let (bytes, content) = filled(false);
    for blocks in [160u64, 301, 1000, 70_000] {
        let to = Resize {
            virtual_size: blocks * BLOCK,
            shrink: true,
            ..Resize::default()
        };
        let keep = (blocks.min(300) * BLOCK) as usize;
        after_any_crash(
            &bytes,
            &BOTH,
            |image| image.resize(&to).unwrap(),
            |now, n| {
                assert!(now[..keep] == content[..keep], "{blocks} blocks, change {n}");
                assert!(now.len() as u64 == 300 * BLOCK || now.len() as u64 == blocks * BLOCK);
            },
        );
    }
}

#[test]
fn a_crash_while_a_fixed_disk_is_resized_keeps_what_stays() {
    let mut bytes = created(20 * 512, Options::new().with("subformat", "fixed"));
    bytes[..20 * 512].fill(3);
    for sectors in [10u64, 21, 400] {
        let to = Resize {
            virtual_size: sectors * 512,
            shrink: true,
            ..Resize::default()
        };
        let keep = (sectors.min(20) * 512) as usize;
        let work = |image: &dyn Image| image.resize(&to).unwrap();
        // A footer that is half written is the one thing a fixed disk, which has only one, cannot survive.
        after_any_crash(&bytes, &[Fault::Freeze], work, |now, n| {
            assert!(now[..keep].iter().all(|b| *b == 3), "{sectors} sectors, change {n}");
        });
    }
}

#[test]
fn a_crash_while_emptying_leaves_all_or_nothing_of_a_block() {
    let (bytes, content) = filled(true);
    after_any_crash(
        &bytes,
        &BOTH,
        |image| image.make_empty().unwrap(),
        |now, n| {
            let same = |at: usize| now[at..at + BLOCK as usize] == content[at..at + BLOCK as usize];
            let empty = |at: usize| now[at..at + BLOCK as usize].iter().all(|b| *b == 0x55);
            assert!(
                (0..now.len()).step_by(BLOCK as usize).all(|at| same(at) || empty(at)),
                "change {n}"
            );
        },
    );
}

fn reference(name: &str) -> BackingReference {
    BackingReference {
        name: name.into(),
        format: Some("vpc".into()),
    }
}

#[test]
fn another_disk_below_is_named_with_its_id() {
    let (bytes, content) = filled(true);
    let storage = Arc::new(MemoryStorage::new("m", bytes));
    let image = open_on(storage.clone()).unwrap();
    assert_eq!(image.backing(), Some(reference("base.vhd")));
    let base = open_on(Arc::new(MemoryStorage::new("b", small_blocks(300 * BLOCK, false)))).unwrap();
    assert!(image.check_below(base.as_ref()).is_err());
    image
        .set_backing_over(Some(&reference("dir/new base.vhd")), Some(base.as_ref()))
        .unwrap();
    image.check_below(base.as_ref()).unwrap();
    image.write(0, &[1; 512], &All(0x55)).unwrap();
    image.close().unwrap();
    let again = open_on(storage).unwrap();
    assert_eq!(again.backing(), Some(reference("dir/new base.vhd")));
    again.check_below(base.as_ref()).unwrap();
    let now = seen(again.as_ref(), 0x55);
    assert!(now[512..] == content[512..] && now[..512] == [1; 512]);
    let smaller = open_on(Arc::new(MemoryStorage::new("b", small_blocks(BLOCK, false)))).unwrap();
    assert!(
        image
            .set_backing_over(Some(&reference("x")), Some(smaller.as_ref()))
            .is_err()
    );
}

#[test]
fn without_a_disk_below_the_missing_sectors_are_zero() {
    let (mut bytes, content) = filled(true);
    // Another program may have left anything in the sectors that it does not have.
    let first = u32::from_be_bytes(bytes[1536 + 12..1536 + 16].try_into().unwrap()) as usize * 512 + 512;
    bytes[first..first + 512].fill(0xbb);
    let storage = Arc::new(MemoryStorage::new("m", bytes));
    let image = open_on(storage.clone()).unwrap();
    image.set_backing(None).unwrap();
    assert_eq!(image.backing(), None);
    image.close().unwrap();
    let again = open_on(storage).unwrap();
    assert_eq!(again.backing(), None);
    let now = seen(again.as_ref(), 0xdd);
    let expected: Vec<u8> = content.iter().map(|b| if *b == 0x55 { 0 } else { *b }).collect();
    assert!(now == expected);
}

#[test]
fn a_crash_while_the_disk_below_changes_leaves_one_of_the_two() {
    let (bytes, content) = filled(true);
    for name in [Some("other.vhd"), None] {
        let full = Arc::new(FaultyStorage::new(bytes.clone()));
        let backing = name.map(reference);
        open_on(full.clone()).unwrap().set_backing(backing.as_ref()).unwrap();
        for n in 0..=full.changes() {
            let storage = Arc::new(FaultyStorage::new(bytes.clone()));
            storage.plan(n, Fault::Freeze);
            open_on(storage.clone()).unwrap().set_backing(backing.as_ref()).unwrap();
            let after = open_on(Arc::new(MemoryStorage::new("after", storage.contents()))).unwrap();
            let found = after.backing();
            assert!(
                found == Some(reference("base.vhd")) || found == backing,
                "change {n}: {found:?}"
            );
            if found.is_some() {
                assert!(seen(after.as_ref(), 0x55) == content, "change {n}");
            }
        }
    }
}

#[test]
fn bulk_and_plain_writes_read_the_same() {
    let storage: StorageRef = Arc::new(MemoryStorage::new("m", small_blocks(10 * BLOCK + 512, false)));
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

#[test]
fn new_blocks_never_show_what_a_crash_left_behind() {
    let mut bytes = small_blocks(8 * BLOCK, false);
    bytes.extend_from_slice(&[0xaa; 3 * 4096 + 100]);
    let image = open_on(Arc::new(MemoryStorage::new("m", bytes))).unwrap();
    for block in 0..4 {
        image.write(block * BLOCK + 100, &[1; 10], &NothingBelow).unwrap();
    }
    assert!(seen(image.as_ref(), 0).iter().all(|b| *b != 0xaa));
}

#[test]
fn a_lost_footer_at_the_end_is_written_again() {
    let (bytes, content) = filled(false);
    let cut = bytes[..bytes.len() - FOOTER as usize].to_vec();
    let (storage, image) = open_to_check(cut);
    let report = image.check(Repair::No, &Control::default()).unwrap();
    assert_eq!((report.corruptions, report.leaks), (1, 0), "{:?}", report.messages);
    let report = image.check(Repair::All, &Control::default()).unwrap();
    assert_eq!((report.corruptions, report.corruptions_fixed), (0, 1));
    assert!(storage.contents() == bytes);
    assert!(seen(image.as_ref(), 0) == content);
}

#[test]
fn wrong_sums_are_mended() {
    let (good, _) = filled(false);
    let end = good.len() - FOOTER as usize;
    // The sum of the last footer, of the header, a byte of the front copy.
    for at in [end + 64, (FOOTER + 36) as usize, 100] {
        let mut bytes = good.clone();
        bytes[at] ^= 0x40;
        assert!(
            open_on(Arc::new(MemoryStorage::new("m", bytes.clone()))).is_err(),
            "{at}"
        );
        let (storage, image) = open_to_check(bytes);
        let report = image.check(Repair::All, &Control::default()).unwrap();
        assert_eq!(
            (report.corruptions, report.corruptions_fixed),
            (0, 1),
            "{at}: {:?}",
            report.messages
        );
        assert!(storage.contents() == good, "{at}");
    }
}

#[test]
fn space_that_nothing_refers_to_is_given_back() {
    let (mut bytes, _) = filled(false);
    let entry = |block: usize| 1536 + block * 4;
    assert_eq!(HEADER + FOOTER, 1536);
    bytes[entry(150)..entry(151)].copy_from_slice(&UNUSED.to_be_bytes());
    let (storage, image) = open_to_check(bytes.clone());
    let report = image.check(Repair::Leaks, &Control::default()).unwrap();
    assert_eq!((report.leaks, report.leaks_fixed, report.corruptions), (0, 1, 0));
    assert_eq!(storage.contents().len(), bytes.len() - 512 - BLOCK as usize);
    let again = image.check(Repair::No, &Control::default()).unwrap();
    assert_eq!((again.leaks, again.corruptions), (0, 0), "{:?}", again.messages);
}
