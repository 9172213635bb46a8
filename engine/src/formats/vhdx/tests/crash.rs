//! Whole after any crash.

use std::sync::Arc;

use super::super::layout::{MIB, PAGE};
use super::{created, filled, open_on, open_to_read};
use crate::Image;
use crate::formats::testing::crash::{CUTS, Crash, at_every_change};
use crate::formats::testing::{All, file, seen, to_size};
use crate::image::NothingBelow;
use crate::options::Options;
use crate::storage::{Fault, FaultyStorage};

/// Cuts `work` off at each change in turn; afterwards the image opens for reading and for writing, and `judge` is given what it shows.
fn after_any_crash(bytes: &[u8], work: impl Fn(&dyn Image), judge: impl Fn(&[u8], Crash)) {
    let work = |storage| work(open_on(storage).unwrap().as_ref());
    at_every_change(bytes, &CUTS, work, |left, crash| {
        let reader = open_to_read(left.clone()).unwrap_or_else(|e| panic!("{crash}: {e}"));
        let now = seen(reader.as_ref(), 0x55);
        judge(&now, crash);
        let writer = open_on(file(left)).unwrap();
        assert!(seen(writer.as_ref(), 0x55) == now, "{crash}: the two replays differ");
    });
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
        after_any_crash(&bytes, work, |now, crash| {
            let mib = MIB as usize;
            assert!(
                now.len() == content.len() && now[..2 * mib] == content[..2 * mib],
                "{crash}"
            );
            for block in now[2 * mib..4 * mib].chunks(mib) {
                assert!(block[..5].iter().chain(&block[605..]).all(|b| *b == old), "{crash}");
                assert!(block[5..605].iter().all(|b| *b == 9 || *b == old), "{crash}");
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
        let to = to_size(blocks * MIB);
        let keep = (blocks.min(4) * MIB) as usize;
        let work = |storage| open_on(storage).unwrap().resize(&to).unwrap();
        at_every_change(&bytes, &CUTS, work, |left, crash| {
            let image = open_to_read(left).unwrap_or_else(|e| panic!("{blocks} blocks, {crash}: {e}"));
            let mut now = vec![0; keep];
            image.read(0, &mut now).unwrap();
            assert!(now == content[..keep], "{blocks} blocks, {crash}");
            assert!([4 * MIB, blocks * MIB].contains(&image.virtual_size()));
        });
    }
}

#[test]
fn new_blocks_never_show_what_a_crash_left_behind() {
    let mut bytes = created(4 * MIB, Options::new());
    bytes.extend_from_slice(&[0xaa; 3 * PAGE as usize + 100]);
    let image = open_on(file(bytes)).unwrap();
    for block in 0..4 {
        image.write(block * MIB + 100, &[1; 10], &NothingBelow).unwrap();
    }
    assert!(seen(image.as_ref(), 0).iter().all(|b| *b != 0xaa));
}
