//! Mending: footers and sums written again, space given back.

use zerocopy::{FromBytes, IntoBytes};

use super::super::layout::{FOOTER, HEADER, RawFooter, SECTOR, UNUSED};
use super::{BLOCK, created, filled, open_on, open_to_check};
use crate::formats::FormatDriver;
use crate::formats::testing::{file, seen, to_size};
use crate::formats::vpc::Vpc;
use crate::image::{NothingBelow, Repair};
use crate::options::Options;
use crate::storage::MemoryStorage;
use crate::{Control, ErrorKind, Limits, OpenEnv};

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
        assert!(open_on(file(bytes.clone())).is_err(), "{at}");
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

/// Changes both footers of an image.
fn with_footers(bytes: &mut [u8], change: impl Fn(&mut RawFooter)) {
    change_footers(bytes, Some(0), change);
}

/// Changes the footer at the end of an image, and the copy at `front`.
fn change_footers(bytes: &mut [u8], front: Option<usize>, change: impl Fn(&mut RawFooter)) {
    for at in front.into_iter().chain([bytes.len() - FOOTER as usize]) {
        let footer = &mut bytes[at..at + FOOTER as usize];
        let mut raw = RawFooter::read_from_bytes(footer).unwrap();
        change(&mut raw);
        footer.copy_from_slice(raw.sealed().as_bytes());
    }
}

fn entry(bytes: &[u8], block: usize) -> u32 {
    u32::from_be_bytes(bytes[1536 + block * 4..1540 + block * 4].try_into().unwrap())
}

/// As programs that go by the size field leave a disk of Virtual PC: the geometry has fewer sectors, and the last block has data.
fn larger_than_its_geometry() -> Vec<u8> {
    let storage = file(filled(false).0);
    let image = open_on(storage.clone()).unwrap();
    image
        .write(299 * BLOCK, &[0x54; BLOCK as usize], &NothingBelow)
        .unwrap();
    image.close().unwrap();
    let mut bytes = storage.contents();
    with_footers(&mut bytes, |raw| {
        raw.creator = *b"vpc ";
        (raw.cylinders, raw.heads, raw.sectors) = (35.into(), 4, 17);
    });
    bytes
}

#[test]
fn blocks_between_the_geometry_and_the_size_field_are_in_use() {
    let bytes = larger_than_its_geometry();
    let (storage, image) = open_to_check(bytes.clone());
    assert_eq!(image.virtual_size(), 35 * 4 * 17 * SECTOR);
    for repair in [Repair::Leaks, Repair::All] {
        let report = image.check(repair, &Control::default()).unwrap();
        assert_eq!((report.leaks, report.leaks_fixed, report.corruptions), (0, 0, 0));
    }
    assert!(storage.contents() == bytes);
}

#[test]
fn a_disk_with_blocks_past_its_geometry_keeps_its_size() {
    let bytes = larger_than_its_geometry();
    let storage = file(bytes.clone());
    let image = open_on(storage.clone()).unwrap();
    for size in [300 * BLOCK, 200 * BLOCK] {
        let error = image.resize(&to_size(size)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        assert!(storage.contents() == bytes);
    }
    image.resize(&to_size(image.virtual_size())).unwrap();
    assert!(storage.contents() == bytes);
}

/// A disk whose last 100 bytes lie past the end that the geometry says, in its last block where it has blocks.
fn with_a_hidden_part(subformat: &str, creator: [u8; 4]) -> Vec<u8> {
    const SECTORS: u64 = 35 * 4 * 17 + 2;
    let options = Options::new().with("subformat", subformat);
    let storage = file(created(SECTORS * SECTOR, options));
    let image = open_on(storage.clone()).unwrap();
    image
        .write(SECTORS * SECTOR - 100, &[0x54; 100], &NothingBelow)
        .unwrap();
    image.close().unwrap();
    let mut bytes = storage.contents();
    let front = if subformat == "fixed" { None } else { Some(0) };
    change_footers(&mut bytes, front, |raw| {
        raw.creator = creator;
        (raw.cylinders, raw.heads, raw.sectors) = (35.into(), 4, 17);
    });
    bytes
}

#[test]
fn the_last_sectors_of_a_disk_count_by_its_size_field() {
    for subformat in ["fixed", "dynamic"] {
        for creator in [b"vbox", b"wa\0\0", b"vs  ", b"vmw ", b"\0\0\0\0"] {
            let storage = file(with_a_hidden_part(subformat, *creator));
            let image = open_on(storage).unwrap();
            let before = seen(image.as_ref(), 0);
            assert!(before.ends_with(&[0x54; 100]), "{subformat} {creator:?}");
            image.resize(&to_size(before.len() as u64 + (1 << 20))).unwrap();
            assert!(seen(image.as_ref(), 0).starts_with(&before), "{subformat} {creator:?}");
        }
    }
}

#[test]
fn sectors_past_the_geometry_are_neither_zeroed_nor_cut_off() {
    for subformat in ["fixed", "dynamic"] {
        let bytes = with_a_hidden_part(subformat, *b"vpc ");
        let storage = file(bytes.clone());
        let image = open_on(storage.clone()).unwrap();
        let size = image.virtual_size();
        assert_eq!(size, 35 * 4 * 17 * SECTOR);
        for to in [size + SECTOR, size + (4 << 20), size - SECTOR] {
            let error = image.resize(&to_size(to)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{subformat}: {error}");
        }
        if subformat == "dynamic" {
            assert!(image.make_empty().is_err());
        }
        image.resize(&to_size(size)).unwrap();
        assert!(storage.contents() == bytes, "{subformat}");
    }
}

#[test]
fn a_fixed_disk_with_a_geometry_past_its_data_opens_by_its_size_field() {
    let mut bytes = with_a_hidden_part("fixed", *b"vpc ");
    change_footers(&mut bytes, None, |raw| raw.cylinders = 36.into());
    let error = open_on(file(bytes.clone())).err().unwrap();
    assert!(error.to_string().contains("force_size_calc=current_size"), "{error}");
    let options = Options::new().with("force_size_calc", "current_size");
    let limits = Limits::default();
    let image = Vpc.open(file(bytes), &options, &OpenEnv::closed(&limits)).unwrap();
    assert!(seen(image.as_ref(), 0).ends_with(&[0x54; 100]));
}

#[test]
fn an_emptied_disk_keeps_blocks_past_its_geometry() {
    let storage = file(larger_than_its_geometry());
    let image = open_on(storage.clone()).unwrap();
    image.make_empty().unwrap();
    let bytes = storage.contents();
    let at = (entry(&bytes, 299) as usize + 1) * SECTOR as usize;
    assert_eq!(bytes[at..at + BLOCK as usize], [0x54; BLOCK as usize]);
    assert!(seen(open_on(storage).unwrap().as_ref(), 0).iter().all(|b| *b == 0));
}

#[test]
fn a_block_that_a_shrink_left_is_forgotten_before_it_is_cut_off() {
    let (mut bytes, _) = filled(false);
    with_footers(&mut bytes, |raw| raw.current_size = (100 * BLOCK).into());
    assert_ne!(entry(&bytes, 150), UNUSED);
    let (storage, image) = open_to_check(bytes);
    let report = image.check(Repair::Leaks, &Control::default()).unwrap();
    assert_eq!((report.leaks, report.leaks_fixed, report.corruptions), (0, 1, 0));
    assert_eq!(entry(&storage.contents(), 150), UNUSED);
}

/// The first byte of a block's bitmap; its block has eight sectors.
fn bits(storage: &MemoryStorage, block: usize) -> u8 {
    let bytes = storage.contents();
    bytes[entry(&bytes, block) as usize * SECTOR as usize]
}

#[test]
fn a_block_that_is_written_has_all_bits_in_a_dynamic_disk() {
    let (mut bytes, content) = filled(false);
    for block in [3, 7, 150] {
        let at = entry(&bytes, block) as usize * SECTOR as usize;
        bytes[at] = 0x80;
    }
    let storage = file(bytes);
    let image = open_on(storage.clone()).unwrap();
    image.write(3 * BLOCK, &[9; 512], &NothingBelow).unwrap();
    let bulk = image.bulk().unwrap();
    let placement = bulk.place(7 * BLOCK, BLOCK, None).unwrap();
    bulk.store(&placement, &[8; BLOCK as usize]).unwrap();
    image.close().unwrap();
    assert_eq!([3, 7, 150].map(|block| bits(&storage, block)), [0xff, 0xff, 0x80]);
    let mut expected = content;
    expected[3 * BLOCK as usize..][..512].fill(9);
    expected[7 * BLOCK as usize..][..BLOCK as usize].fill(8);
    assert!(seen(open_on(storage).unwrap().as_ref(), 0) == expected);
}
