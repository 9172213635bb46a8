//! Whole after any crash.

use std::sync::Arc;

use super::{BLOCK, created, filled, open_on, small_blocks};
use crate::Image;
use crate::formats::testing::crash::{CUTS, Crash, at_every_change};
use crate::formats::testing::{All, file, seen, to_size};
use crate::image::NothingBelow;
use crate::options::Options;
use crate::storage::{Fault, FaultyStorage};

/// Cuts `work` off at each change in turn; afterwards the image opens, and `judge` is given what it shows.
fn after_any_crash(bytes: &[u8], faults: &[Fault], work: impl Fn(&dyn Image), judge: impl Fn(&[u8], Crash)) {
    let work = |storage| work(open_on(storage).unwrap().as_ref());
    at_every_change(bytes, faults, work, |left, crash| {
        let after = open_on(file(left)).unwrap_or_else(|e| panic!("{crash}: {e}"));
        judge(&seen(after.as_ref(), 0x55), crash);
    });
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
        after_any_crash(&bytes, &CUTS, work, |now, crash| {
            assert!(
                now[..160 * BLOCK as usize] == content[..160 * BLOCK as usize],
                "{crash}"
            );
            for (number, block) in now[160 * BLOCK as usize..170 * BLOCK as usize]
                .chunks(BLOCK as usize)
                .enumerate()
            {
                let old = if overlay { 0x55 } else { 0 };
                assert!(
                    block[..5].iter().chain(&block[105..]).all(|b| *b == old),
                    "{crash}, block {number}"
                );
                assert!(
                    block[5..105].iter().all(|b| *b == 9 || *b == old),
                    "{crash}, block {number}"
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
    let after = open_on(file(storage.contents())).unwrap();
    let now = seen(after.as_ref(), 0x55);
    assert_eq!(now[200 * BLOCK as usize + 7..][..5000], [9; 5000]);
    assert_eq!(now[210 * BLOCK as usize..][..5000], [0x55; 5000]);
}

#[test]
fn a_crash_while_resizing_keeps_what_stays() {
    let (bytes, content) = filled(false);
    for blocks in [160u64, 301, 1000, 70_000] {
        let to = to_size(blocks * BLOCK);
        let keep = (blocks.min(300) * BLOCK) as usize;
        after_any_crash(
            &bytes,
            &CUTS,
            |image| image.resize(&to).unwrap(),
            |now, crash| {
                assert!(now[..keep] == content[..keep], "{blocks} blocks, {crash}");
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
        let to = to_size(sectors * 512);
        let keep = (sectors.min(20) * 512) as usize;
        let work = |image: &dyn Image| image.resize(&to).unwrap();
        // A footer that is half written is the one thing a fixed disk, which has only one, cannot survive.
        after_any_crash(&bytes, &[Fault::Freeze], work, |now, crash| {
            assert!(now[..keep].iter().all(|b| *b == 3), "{sectors} sectors, {crash}");
            if sectors > 20 {
                let news = &now[keep..];
                assert!(news.iter().all(|b| *b == 0), "{sectors} sectors, {crash}: not zeroes");
            }
        });
    }
}

#[test]
fn a_crash_while_emptying_leaves_all_or_nothing_of_a_block() {
    let (bytes, content) = filled(true);
    after_any_crash(
        &bytes,
        &CUTS,
        |image| image.make_empty().unwrap(),
        |now, crash| {
            let same = |at: usize| now[at..at + BLOCK as usize] == content[at..at + BLOCK as usize];
            let empty = |at: usize| now[at..at + BLOCK as usize].iter().all(|b| *b == 0x55);
            assert!(
                (0..now.len()).step_by(BLOCK as usize).all(|at| same(at) || empty(at)),
                "{crash}"
            );
        },
    );
}

#[test]
fn new_blocks_never_show_what_a_crash_left_behind() {
    let mut bytes = small_blocks(8 * BLOCK, false);
    bytes.extend_from_slice(&[0xaa; 3 * 4096 + 100]);
    let image = open_on(file(bytes)).unwrap();
    for block in 0..4 {
        image.write(block * BLOCK + 100, &[1; 10], &NothingBelow).unwrap();
    }
    assert!(seen(image.as_ref(), 0).iter().all(|b| *b != 0xaa));
}
