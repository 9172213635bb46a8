//! What check finds and mends, and what is refused until it did.

use std::sync::Arc;

use super::Vmdk;
use super::tests::{GRAIN, assert_clean, created, half_written, open_on, open_to_check, whole};
use crate::formats::FormatDriver;
use crate::image::{NothingBelow, Repair};
use crate::options::Options;
use crate::storage::{Fault, FaultyStorage, MemoryStorage};
use crate::{Control, ErrorKind, Limits, OpenEnv, Result, StorageRef};

fn set_entry(bytes: &mut [u8], slot: usize, sector: u32) {
    for table in [22 * 512, 27 * 512] {
        bytes[table + slot * 4..table + slot * 4 + 4].copy_from_slice(&sector.to_le_bytes());
    }
}

#[test]
fn shared_grains_are_copied_apart() {
    let (mut bytes, mut content) = half_written();
    set_entry(&mut bytes, 12, 128); // The place of grain 3.
    let image = open_to_check(bytes);
    let report = image.check(Repair::All, &Control::default()).unwrap();
    assert_eq!(
        (report.corruptions, report.corruptions_fixed),
        (0, 1),
        "{:?}",
        report.messages
    );
    content[12 * GRAIN as usize..13 * GRAIN as usize].fill(4);
    assert!(whole(image.as_ref()) == content);
    image.write(12 * GRAIN, &[0x11; 512], &NothingBelow).unwrap();
    assert!(whole(image.as_ref())[3 * GRAIN as usize..4 * GRAIN as usize] == [4; GRAIN as usize]);
    assert_clean(image.as_ref());
}

#[test]
fn entries_outside_the_file_are_unallocated_after_repair() {
    let (mut bytes, mut content) = half_written();
    set_entry(&mut bytes, 3, 0x00ff_ffff);
    set_entry(&mut bytes, 7, 1);
    let image = open_to_check(bytes);
    assert_eq!(
        image.read(3 * GRAIN, &mut [0; 512]).unwrap_err().kind(),
        ErrorKind::Corrupt
    );
    assert_eq!(
        image.read(7 * GRAIN, &mut [0; 512]).unwrap_err().kind(),
        ErrorKind::Corrupt
    );
    let report = image.check(Repair::All, &Control::default()).unwrap();
    assert_eq!(
        (report.corruptions, report.corruptions_fixed),
        (0, 2),
        "{:?}",
        report.messages
    );
    for grain in [3, 7] {
        content[grain * GRAIN as usize..(grain + 1) * GRAIN as usize].fill(0);
    }
    assert!(whole(image.as_ref()) == content);
}

#[test]
fn space_at_the_end_is_a_leak_that_is_cut_off() {
    let (mut bytes, content) = half_written();
    let len = bytes.len();
    bytes.resize(len + 3 * GRAIN as usize, 1);
    let image = open_to_check(bytes);
    let report = image.check(Repair::Leaks, &Control::default()).unwrap();
    assert_eq!((report.leaks, report.leaks_fixed), (0, 3));
    assert_eq!(image.storages()[0].len().unwrap(), len as u64);
    assert!(whole(image.as_ref()) == content);
}

#[test]
fn redundant_tables_follow_the_primary_ones() {
    let (mut bytes, content) = half_written();
    bytes[22 * 512..23 * 512].fill(0);
    let image = open_to_check(bytes.clone());
    let report = image.check(Repair::All, &Control::default()).unwrap();
    assert!(report.messages[0].contains("redundant"), "{:?}", report.messages);
    assert!(
        image
            .check(Repair::No, &Control::default())
            .unwrap()
            .messages
            .is_empty()
    );
    assert!(whole(image.as_ref()) == content);
}

#[test]
fn a_mend_survives_any_crash() {
    let (mut bytes, content) = half_written();
    set_entry(&mut bytes, 12, 128);
    let len = content.len() - 8 * GRAIN as usize;
    let full = Arc::new(FaultyStorage::new(bytes.clone()));
    let mend = |storage: StorageRef| {
        let limits = Limits::default();
        let env = OpenEnv::closed(&limits).writable().for_check();
        let image = Vmdk.open(storage, &Options::new(), &env).unwrap();
        image.check(Repair::All, &Control::default()).unwrap();
    };
    mend(full.clone());
    for n in 0..=full.changes() {
        let storage = Arc::new(FaultyStorage::new(bytes.clone()));
        storage.plan(n, Fault::Freeze);
        mend(storage.clone());
        let after = open_to_check(storage.contents());
        assert!(whole(after.as_ref())[..len] == content[..len], "freeze at {n}");
    }
}

#[test]
fn a_grain_that_the_file_cuts_keeps_what_is_there() {
    let (mut bytes, mut content) = half_written();
    bytes.truncate(bytes.len() - 512);
    let image = open_to_check(bytes);
    let report = image.check(Repair::All, &Control::default()).unwrap();
    let found = (report.corruptions, report.corruptions_fixed, report.leaks);
    assert_eq!(found, (0, 1, 0), "{:?}", report.messages);
    // Grain 1 was written last.
    content[2 * GRAIN as usize - 512..2 * GRAIN as usize].fill(0);
    assert!(whole(image.as_ref()) == content);
    assert_clean(image.as_ref());
}

/// 64 MiB with grain 0 written, and the second grain table in the middle of it.
fn table_in_a_grain() -> Vec<u8> {
    let storage = Arc::new(MemoryStorage::new("m", created(64 << 20, Options::new())));
    let image = open_on(storage.clone()).unwrap();
    image.write(0, &[0; GRAIN as usize], &NothingBelow).unwrap();
    image.close().unwrap();
    let mut bytes = storage.contents();
    let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let directory = word(&bytes, 56) as usize * 512;
    let first = word(&bytes, directory) as usize * 512;
    assert_eq!(word(&bytes, first), 128, "grain 0");
    bytes[directory + 4..directory + 8].copy_from_slice(&192u32.to_le_bytes());
    bytes
}

#[test]
fn a_grain_over_a_table_behind_its_start_is_copied_apart() {
    let image = open_to_check(table_in_a_grain());
    let report = image.check(Repair::No, &Control::default()).unwrap();
    assert_eq!(report.corruptions, 1, "{:?}", report.messages);
    let report = image.check(Repair::All, &Control::default()).unwrap();
    assert_eq!((report.corruptions, report.corruptions_fixed), (0, 1));
    image.write(32 << 10, &[9; 512], &NothingBelow).unwrap();
    image.flush().unwrap();
    assert_clean(image.as_ref());
    let content = whole(image.as_ref());
    assert!(content[32 << 20..].iter().all(|b| *b == 0));
    assert!(content[32 << 10..][..512] == [9; 512]);
}

#[test]
fn a_write_never_goes_over_a_table() {
    let bytes = table_in_a_grain();
    let storage = Arc::new(MemoryStorage::new("m", bytes.clone()));
    let image = open_on(storage.clone()).unwrap();
    let done = [
        image.write(32 << 10, &[9; 512], &NothingBelow),
        image.write_zeroes(0, GRAIN, true, &NothingBelow),
        image.discard(0, GRAIN),
        image.write(0, &[9; 512], &NothingBelow),
    ];
    for error in done.map(Result::unwrap_err) {
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains("check can repair it"), "{error}");
    }
    image.close().unwrap();
    assert!(storage.contents() == bytes);
}
