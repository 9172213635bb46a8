//! What the file holds besides guest data: the log, ids, copies of the headers, and no more space than is used.

use super::super::layout::{HEADERS, MIB, REGION_TABLES};
use super::super::open;
use super::{created, filled, open_on, open_to_check, open_to_read};
use crate::formats::testing::{file, seen};
use crate::image::{NothingBelow, Repair};
use crate::options::Options;
use crate::{Control, Limits, OpenEnv, StorageRef};

#[test]
fn the_log_is_empty_after_a_flush() {
    let storage = file(created(4 * MIB, Options::new()));
    let image = open_on(storage.clone()).unwrap();
    image.write(0, &[1; 512], &NothingBelow).unwrap();
    image.flush().unwrap();
    let limits = Limits::default();
    let opened = open::read(&(file(storage.contents()) as StorageRef), &OpenEnv::closed(&limits));
    let opened = opened.unwrap();
    assert!(!opened.header.log_in_use && !opened.replayed);
}

#[test]
fn ids_change_when_the_image_does_and_not_before() {
    let storage = file(created(4 * MIB, Options::new()));
    let before = storage.contents();
    let image = open_on(storage.clone()).unwrap();
    let id = image.layer_id().unwrap();
    image.flush().unwrap();
    image.close().unwrap();
    assert!(storage.contents() == before, "opening for writing changed the file");
    image.write(0, &[1], &NothingBelow).unwrap();
    assert_ne!(image.layer_id().unwrap(), id);
    // Two copies that go different ways are two disks.
    let other = open_on(file(before)).unwrap();
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
fn many_changed_pages_go_through_a_small_log() {
    let storage = file(created(700 << 30, Options::new()));
    let image = open_on(storage.clone()).unwrap();
    let bulk = image.bulk().unwrap();
    // A block in each of 140 pages of the table, which is more than an entry holds.
    for page in 0..140u64 {
        bulk.place(page * 512 * MIB, 4096, None).unwrap();
    }
    image.flush().unwrap();
    drop(image);
    let limits = Limits::default();
    let again = open::read(&(storage as StorageRef), &OpenEnv::closed(&limits)).unwrap();
    assert_eq!(again.bat.iter().filter(|e| **e & 7 == 6).count(), 140);
    assert_eq!(again.findings.count, 0);
}
