//! Damaged metadata: nothing that either kind of tables knows is lost, and nothing is written where something else is.

use std::sync::Arc;

use super::tests::{GRAIN, assert_clean, created, half_written, open_on, open_to_check, whole};
use crate::image::{NothingBelow, Repair, Resize};
use crate::options::Options;
use crate::storage::MemoryStorage;
use crate::{Control, ErrorKind, Image};

/// Directories and first tables of an image of [`half_written`].
const TWIN_DIRECTORY: usize = 21 * 512;
const TWIN: usize = 22 * 512;
const DIRECTORY: usize = 26 * 512;
const TABLE: usize = 27 * 512;

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}
fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn stored(image: &dyn Image) -> Vec<u8> {
    let file = &image.storages()[0];
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_at(0, &mut bytes).unwrap();
    bytes
}

/// Damages of the primary tables of [`half_written`] after which the redundant ones have everything.
fn lost() -> Vec<(&'static str, Vec<u8>)> {
    let damaged = |at: usize, with: &[u8]| {
        let mut bytes = half_written().0;
        bytes[at..at + with.len()].copy_from_slice(with);
        bytes
    };
    vec![
        ("table of zeroes", damaged(TABLE, &[0; 2048])),
        ("sector of zeroes", damaged(TABLE, &[0; 512])),
        ("torn sector", damaged(TABLE, &[0xf0; 32])),
        ("no table", damaged(DIRECTORY, &[0; 4])),
        ("table outside the file", damaged(DIRECTORY, &[0xf0; 4])),
    ]
}

#[test]
fn what_a_redundant_table_alone_knows_is_no_leak_and_is_never_cut_off() {
    for (what, bytes) in lost() {
        let image = open_to_check(bytes.clone());
        let report = image.check(Repair::No, &Control::default()).unwrap();
        assert_eq!(report.leaks, 0, "{what}: {:?}", report.messages);
        let told = report
            .messages
            .iter()
            .any(|m| m.contains("redundant grain tables alone"));
        assert!(told, "{what}: {:?}", report.messages);
        image.check(Repair::Leaks, &Control::default()).unwrap();
        assert!(stored(image.as_ref()) == bytes, "{what}");
    }
}

#[test]
fn a_repair_takes_what_the_redundant_table_knows() {
    let content = half_written().1;
    for (what, bytes) in lost() {
        let image = open_to_check(bytes);
        image.check(Repair::All, &Control::default()).unwrap();
        assert!(whole(image.as_ref()) == content, "{what}");
        let report = image.check(Repair::No, &Control::default()).unwrap();
        assert!(report.messages.is_empty(), "{what}: {:?}", report.messages);
        assert_clean(image.as_ref());
        let again = open_on(Arc::new(MemoryStorage::new("m", stored(image.as_ref())))).unwrap();
        assert!(whole(again.as_ref()) == content, "{what}");
    }
}

#[test]
fn a_write_leaves_what_the_redundant_table_alone_knows() {
    for (what, bytes) in lost().into_iter().filter(|(what, _)| !what.contains("outside")) {
        let storage = Arc::new(MemoryStorage::new("m", bytes.clone()));
        let image = open_on(storage.clone()).unwrap();
        image.write(12 * GRAIN, &[9; 512], &NothingBelow).unwrap();
        image.close().unwrap();
        let after = storage.contents();
        assert_eq!(word(&after, TWIN_DIRECTORY), 22, "{what}");
        assert_ne!(word(&after, TWIN + 12 * 4), 0, "{what}");
        assert!(after[TWIN..TWIN + 12 * 4] == bytes[TWIN..TWIN + 12 * 4], "{what}");
        let image = open_to_check(after);
        image.check(Repair::All, &Control::default()).unwrap();
        let mut content = half_written().1;
        content[12 * GRAIN as usize..][..512].fill(9);
        assert!(whole(image.as_ref()) == content, "{what}");
    }
}

#[test]
fn a_redundant_entry_whose_place_another_grain_has_is_not_taken() {
    let (mut bytes, mut content) = half_written();
    put(&mut bytes, TABLE + 3 * 4, 0);
    let other = word(&bytes, TABLE + 7 * 4);
    put(&mut bytes, TWIN + 3 * 4, other);
    let image = open_to_check(bytes);
    image.check(Repair::All, &Control::default()).unwrap();
    content[3 * GRAIN as usize..4 * GRAIN as usize].fill(0);
    assert!(whole(image.as_ref()) == content);
    let report = image.check(Repair::No, &Control::default()).unwrap();
    assert_eq!(report.corruptions, 0, "{:?}", report.messages);
}

#[test]
fn a_redundant_entry_past_the_end_does_not_come_back_when_the_disk_grows() {
    let (mut bytes, content) = half_written();
    let place = word(&bytes, TABLE + 3 * 4);
    put(&mut bytes, TWIN + 25 * 4, place);
    let storage = Arc::new(MemoryStorage::new("m", bytes));
    let image = open_on(storage.clone()).unwrap();
    let virtual_size = 30 * GRAIN;
    let to = Resize {
        virtual_size,
        ..Resize::default()
    };
    image.resize(&to).unwrap();
    image.close().unwrap();
    assert_eq!(word(&storage.contents(), TWIN + 25 * 4), 0);
    assert!(whole(image.as_ref())[..content.len()] == content);
}

/// 64 MiB with the first grains of both tables written.
fn two_tables() -> (Vec<u8>, Vec<u8>) {
    let storage = Arc::new(MemoryStorage::new("m", created(64 << 20, Options::new())));
    let image = open_on(storage.clone()).unwrap();
    image.write(0, &[1; 3 * GRAIN as usize], &NothingBelow).unwrap();
    image.write(32 << 20, &[2; 3 * GRAIN as usize], &NothingBelow).unwrap();
    image.close().unwrap();
    (storage.contents(), whole(image.as_ref()))
}

/// Images whose redundant directory names what is another's, each with words of the message.
fn over_others() -> Vec<(&'static str, Vec<u8>)> {
    let bytes = two_tables().0;
    let directory = word(&bytes, 56) as usize * 512;
    let redundant = word(&bytes, 48) as usize * 512;
    let second = word(&bytes, directory + 4);
    let names = |sector: u32| {
        let mut bytes = bytes.clone();
        put(&mut bytes, redundant, sector);
        bytes
    };
    vec![
        ("grain table 1", names(second)),
        ("grain table 0 at", names(second - 2)),
        ("the descriptor", names(1)),
        ("the descriptor", names(2)),
        ("the redundant grain directory", names((redundant / 512) as u32)),
        ("redundant grain table 1", names(word(&bytes, redundant + 4))),
        ("past the end", names(0x0100_0000)),
    ]
}

#[test]
fn a_redundant_table_over_other_metadata_is_not_written() {
    for (what, bytes) in over_others() {
        let storage = Arc::new(MemoryStorage::new("m", bytes));
        let error = open_on(storage).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}");
        assert!(error.to_string().contains("redundant grain table 0"), "{error}");
        assert!(error.to_string().contains(what), "{error}");
    }
}

#[test]
fn a_redundant_table_over_other_metadata_is_a_corruption_and_gets_a_place_of_its_own() {
    let content = two_tables().1;
    for (what, bytes) in over_others() {
        let image = open_to_check(bytes.clone());
        let report = image.check(Repair::Leaks, &Control::default()).unwrap();
        assert!(report.corruptions > 0, "{what}: {:?}", report.messages);
        assert!(stored(image.as_ref()) == bytes, "{what}");
        let report = image.check(Repair::All, &Control::default()).unwrap();
        assert_eq!(report.corruptions, 0, "{what}: {:?}", report.messages);
        let after = stored(image.as_ref());
        let again = open_on(Arc::new(MemoryStorage::new("m", after))).unwrap();
        assert!(whole(again.as_ref()) == content, "{what}");
        again.write(16 << 20, &[9; 512], &NothingBelow).unwrap();
        again.write(48 << 20, &[9; 512], &NothingBelow).unwrap();
        again.flush().unwrap();
        assert_clean(again.as_ref());
    }
}

#[test]
fn tables_that_lie_over_each_other_are_neither_written_nor_mended() {
    let mut bytes = two_tables().0;
    let directory = word(&bytes, 56) as usize * 512;
    let second = word(&bytes, directory + 4);
    put(&mut bytes, directory, second - 2);
    let error = open_on(Arc::new(MemoryStorage::new("m", bytes.clone()))).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("reaches over grain table 1"), "{error}");
    let image = open_to_check(bytes.clone());
    let report = image.check(Repair::All, &Control::default()).unwrap();
    assert!(report.corruptions > 0, "{:?}", report.messages);
    assert!(stored(image.as_ref()) == bytes);
}

#[test]
fn a_redundant_table_over_a_guest_grain_is_not_written() {
    let (mut bytes, content) = two_tables();
    let redundant = word(&bytes, 48) as usize * 512;
    put(&mut bytes, redundant + 4, 130); // Within the place of grain 0.
    let storage = Arc::new(MemoryStorage::new("m", bytes.clone()));
    let image = open_on(storage.clone()).unwrap();
    let error = image.write(48 << 20, &[9; 512], &NothingBelow).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("check can repair it"), "{error}");
    image.close().unwrap();
    assert!(storage.contents() == bytes);
    assert!(whole(image.as_ref()) == content);
}

#[test]
fn a_grain_past_the_end_of_the_file_is_not_written() {
    let (mut bytes, _) = half_written();
    for table in [TWIN, TABLE] {
        put(&mut bytes, table, 0xf0f0_f0f0);
    }
    let storage = Arc::new(MemoryStorage::new("m", bytes.clone()));
    let image = open_on(storage.clone()).unwrap();
    let error = image.write(0, &[9; 512], &NothingBelow).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    image.close().unwrap();
    assert_eq!(storage.contents().len(), bytes.len());
}

#[test]
fn a_grain_that_two_entries_name_is_not_written() {
    let (mut bytes, _) = half_written();
    for table in [TWIN, TABLE] {
        let first = word(&bytes, table);
        put(&mut bytes, table + 4, first);
    }
    for change in [
        |image: &dyn Image| image.write(0, &[9; 512], &NothingBelow),
        |image: &dyn Image| image.write_zeroes(0, 512, false, &NothingBelow),
        |image: &dyn Image| image.discard(0, GRAIN),
        |image: &dyn Image| image.bulk().unwrap().place(12 * GRAIN, GRAIN, None).map(drop),
    ] {
        let storage = Arc::new(MemoryStorage::new("m", bytes.clone()));
        let image = open_on(storage.clone()).unwrap();
        let error = change(image.as_ref()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        let place = format!("{:#x}", u64::from(word(&bytes, TABLE)) * 512);
        assert!(error.to_string().contains(&place), "{error}");
        image.close().unwrap();
        assert!(storage.contents() == bytes);
    }
}
