//! Images made to break a reader: each is refused with a typed error, and no bit flip makes the driver panic.

use std::sync::Arc;

use proptest::prelude::*;

use super::Vdi;
use super::tests::{created, open_on, open_to_check};
use crate::formats::FormatDriver;
use crate::image::{NothingBelow, Repair};
use crate::options::Options;
use crate::storage::MemoryStorage;
use crate::{Control, ErrorKind, Limits, OpenEnv};

fn with(offset: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = created(64 << 20, Options::new());
    bytes[offset..offset + value.len()].copy_from_slice(value);
    bytes
}

fn with_u32(offset: usize, value: u32) -> Vec<u8> {
    with(offset, &value.to_le_bytes())
}

#[test]
fn fields_that_cannot_be_true_are_refused_by_name() {
    use ErrorKind::{Corrupt, LimitExceeded, NotThisFormat, Unsupported};
    let cases = [
        (with_u32(0x40, 0), NotThisFormat, "signature"),
        (with_u32(0x44, 0x0001_0000), Unsupported, "version"),
        (with_u32(0x44, 0xffff_ffff), Unsupported, "version"),
        (with_u32(0x4c, 0), Corrupt, "image_type"),
        (with_u32(0x4c, 4), Corrupt, "uuid_link"),
        (with(0x1a8, &[1]), Corrupt, "uuid_link"),
        (with(0x1b8, &[1]), Corrupt, "uuid_link"),
        (with_u32(0x154, 3), Corrupt, "offset_map"),
        (with_u32(0x154, 0), Corrupt, "offset_map"),
        (with_u32(0x154, 0xffff_fe00), Corrupt, "offset_data"),
        (with_u32(0x158, 3), Corrupt, "offset_data"),
        (with_u32(0x158, 512), Corrupt, "offset_data"),
        (with_u32(0x168, 1), Corrupt, "sector_size"),
        (with(0x170, &u64::MAX.to_le_bytes()), Corrupt, "blocks"),
        (with(0x170, &(65u64 << 20).to_le_bytes()), Corrupt, "blocks"),
        (with_u32(0x178, 0), Corrupt, "block_size"),
        (with_u32(0x178, 1), Corrupt, "block_size"),
        (with_u32(0x178, (1 << 20) + 1), Corrupt, "block_size"),
        (with_u32(0x178, 1 << 31), Corrupt, "block_size"),
        (with_u32(0x17c, 1), Corrupt, "block_extra"),
        (with_u32(0x17c, 0xffff_fe00), Corrupt, "block_extra"),
        (with_u32(0x180, 63), Corrupt, "blocks"),
        (with_u32(0x180, 0xffff_ffff), Corrupt, "blocks"),
        (with_u32(0x184, 65), Corrupt, "blocks_allocated"),
        (with_u32(0x200, 0x7fff_ffff), Corrupt, "block map"),
        (with(0x200, &[0; 8]), Corrupt, "block map"),
    ];
    for (number, (bytes, kind, word)) in cases.into_iter().enumerate() {
        let error = open_on(Arc::new(MemoryStorage::new("m", bytes))).err();
        let error = error.unwrap_or_else(|| panic!("case {number} ({word}) opened"));
        assert_eq!(error.kind(), kind, "case {number}: {error}");
        assert!(error.to_string().contains(word), "case {number}: {error}");
    }
    // A map of 2 GiB in a file of 1 KiB: the limit comes first, then the file's length.
    let mut bytes = with_u32(0x180, 0x1fff_ff80);
    bytes[0x158..0x15c].copy_from_slice(&0x8000_0000u32.to_le_bytes());
    let error = open_on(Arc::new(MemoryStorage::new("m", bytes))).err().unwrap();
    assert_eq!(error.kind(), LimitExceeded, "{error}");
}

#[test]
fn a_map_that_the_file_cannot_hold_is_refused_before_it_is_allocated() {
    let mut bytes = with_u32(0x180, 1 << 25);
    bytes[0x158..0x15c].copy_from_slice(&(1u32 << 28).to_le_bytes());
    let error = open_on(Arc::new(MemoryStorage::new("m", bytes))).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}

#[test]
fn a_block_past_the_end_of_the_file_reads_as_an_error() {
    let image = open_on(Arc::new(MemoryStorage::new("m", with_u32(0x200, 5)))).unwrap();
    assert_eq!(image.read(0, &mut [0; 512]).unwrap_err().kind(), ErrorKind::Corrupt);
    let report = image.check(Repair::No, &Control::default()).unwrap();
    assert!(report.corruptions > 0);
}

#[test]
fn any_truncation_is_an_error_or_a_readable_image() {
    let storage = Arc::new(MemoryStorage::new(
        "m",
        created(16 << 10, Options::new().with("block_size", "4k")),
    ));
    let image = open_on(storage.clone()).unwrap();
    image.write(0, &[1; 16 << 10], &NothingBelow).unwrap();
    image.close().unwrap();
    let bytes = storage.contents();
    for len in (0..1100).chain((1100..bytes.len()).step_by(512)) {
        let Ok(image) = open_on(Arc::new(MemoryStorage::new("m", bytes[..len].to_vec()))) else {
            continue;
        };
        let mut buf = vec![0; 16 << 10];
        let whole = image.read(0, &mut buf);
        assert!(whole.is_err() || buf == [1; 16 << 10], "wrong bytes from {len} bytes");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn flipped_bytes_never_panic(flips in proptest::collection::vec((0..4096usize, any::<u8>()), 1..6)) {
        let storage = Arc::new(MemoryStorage::new("m", created(1 << 20, Options::new().with("block_size", "4k"))));
        let image = open_on(storage.clone()).unwrap();
        image.write(5000, &[1; 9000], &NothingBelow).unwrap();
        image.close().unwrap();
        let mut bytes = storage.contents();
        for (at, value) in flips {
            let at = at % 0x600; // header and map
            bytes[at] ^= value;
        }
        if let Ok(image) = open_on(Arc::new(MemoryStorage::new("m", bytes.clone()))) {
            let mut at = 0;
            while at < image.virtual_size().min(1 << 30) {
                let extent = image.extent(at, image.virtual_size() - at).unwrap();
                prop_assert!(extent.len > 0);
                at += extent.len;
            }
            let mut buf = vec![0; image.virtual_size().min(1 << 20) as usize];
            let _ = image.read(0, &mut buf);
            let _ = image.write(0, &[1; 512][..image.virtual_size().min(512) as usize], &NothingBelow);
            let _ = image.flush();
        }
        let limits = Limits { table_bytes: 1 << 20, ..Limits::default() };
        let env = OpenEnv::closed(&limits).writable().for_check();
        if let Ok(image) = Vdi.open(Arc::new(MemoryStorage::new("m", bytes)), &Options::new(), &env) {
            let _ = image.check(Repair::No, &Control::default());
        }
    }
}

#[test]
fn a_check_opens_what_reading_refuses() {
    let (_, image) = open_to_check(with_u32(0x200, 0x7fff_ffff));
    assert_eq!(image.check(Repair::No, &Control::default()).unwrap().corruptions, 1);
}
