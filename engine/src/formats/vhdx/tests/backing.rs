//! Over another disk: which one, and what a change of it leaves.

use std::sync::Arc;

use super::super::layout::MIB;
use super::{created, filled, open_on, open_to_read, overlay, reference};
use crate::Control;
use crate::formats::testing::crash::at_every_change;
use crate::formats::testing::{All, file, seen, seen_in};
use crate::image::{NothingBelow, Repair};
use crate::options::Options;
use crate::storage::{Fault, FaultyStorage};

#[test]
fn another_disk_below_is_named_with_its_id() {
    let (bytes, content) = filled(true, 4);
    let storage = file(bytes);
    let image = open_on(storage.clone()).unwrap();
    assert_eq!(image.backing(), Some(reference("base.vhdx")));
    let mut base = created(4 * MIB, Options::new());
    let changed = file(base.clone());
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
    let storage = file(bytes);
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
    let alone: Vec<u8> = content.iter().map(|b| if *b == 0x55 { 0 } else { *b }).collect();
    for name in [Some("other.vhdx"), None] {
        let backing = name.map(reference);
        let work = |storage| open_on(storage).unwrap().set_backing(backing.as_ref()).unwrap();
        at_every_change(&bytes, &[Fault::Freeze], work, |left, crash| {
            let after = open_to_read(left).unwrap();
            let found = after.backing();
            assert!(
                found == Some(reference("base.vhdx")) || found == backing,
                "{crash}: {found:?}"
            );
            let now = seen(after.as_ref(), if found.is_some() { 0x55 } else { 0 });
            assert!(now == if found.is_some() { &*content } else { &*alone }, "{crash}");
        });
    }
}

#[test]
fn a_table_with_more_changes_than_fit_in_the_log_changes_at_once_too() {
    const BLOCKS: u64 = 128;
    // One block of each page of the table: the log takes fewer pages.
    let first = |block: u64| block * 512 * MIB;
    let storage = file(overlay(first(BLOCKS)));
    let image = open_on(storage.clone()).unwrap();
    for block in 0..BLOCKS {
        image.write(first(block), &[block as u8 + 1; 512], &All(0x55)).unwrap();
    }
    image.close().unwrap();
    let bytes = storage.contents();
    let work = |storage: Arc<FaultyStorage>| open_on(storage).unwrap().set_backing(None).unwrap();
    let full = Arc::new(FaultyStorage::new(bytes.clone()));
    work(full.clone());
    let mut alone = 0;
    let last = full.changes();
    for change in [60, 40, 35, 20, 1, 0].map(|from_last| last - from_last) {
        let storage = Arc::new(FaultyStorage::new(bytes.clone()));
        storage.plan(change, Fault::Freeze);
        work(storage.clone());
        let after = open_on(file(storage.contents())).unwrap();
        let below = if after.backing().is_some() { 0x55 } else { 0 };
        alone += usize::from(below == 0);
        for block in 0..BLOCKS {
            let now = seen_in(after.as_ref(), first(block)..first(block) + 1024, below);
            assert!(
                now[..512] == [block as u8 + 1; 512] && now[512..] == [below; 512],
                "block {block}, cut off at change {change}"
            );
        }
        if change == last {
            let report = after.check(Repair::No, &Control::default()).unwrap();
            assert_eq!(report.corruptions, 0, "{:?}", report.messages);
        }
    }
    assert!((2..6).contains(&alone), "{alone} of 6 are without a disk below");
}
