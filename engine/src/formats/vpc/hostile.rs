//! Images made to break a reader: each is refused with a typed error, and no change of bytes makes the driver panic.

use std::sync::Arc;

use proptest::prelude::*;

use super::Vpc;
use super::layout::{FOOTER, HEADER, checksum};
use super::tests::{created, open_on, open_to_check, small_blocks};
use crate::formats::FormatDriver;
use crate::image::{NothingBelow, Repair};
use crate::options::Options;
use crate::storage::MemoryStorage;
use crate::{Control, ErrorKind, Image, Limits, OpenEnv, Result};

const SIZE: u64 = 64 << 20;

/// Puts a footer's or the header's sum right.
fn seal(bytes: &mut [u8], at: usize, len: usize, field: usize) {
    bytes[at + field..at + field + 4].fill(0);
    let sum = checksum(&bytes[at..at + len], &[0; 4]);
    bytes[at + field..at + field + 4].copy_from_slice(&sum.to_be_bytes());
}

fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.len() - FOOTER as usize;
    if bytes.starts_with(b"conectix") {
        seal(&mut bytes, 0, FOOTER as usize, 64);
        seal(&mut bytes, FOOTER as usize, HEADER as usize, 36);
    }
    seal(&mut bytes, end, FOOTER as usize, 64);
    bytes
}

/// A dynamic disk with one value changed in both footers, sums right.
fn footer(at: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = created(SIZE, Options::new());
    let end = bytes.len() - FOOTER as usize;
    for start in [0, end] {
        bytes[start + at..start + at + value.len()].copy_from_slice(value);
    }
    sealed(bytes)
}

/// A fixed disk with one value changed in its footer.
fn fixed(at: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = created(1 << 20, Options::new().with("subformat", "fixed"));
    let end = bytes.len() - FOOTER as usize;
    bytes[end + at..end + at + value.len()].copy_from_slice(value);
    sealed(bytes)
}

/// A dynamic disk with one value changed in its header or behind it, sums right.
fn header(at: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = created(SIZE, Options::new());
    let at = FOOTER as usize + at;
    bytes[at..at + value.len()].copy_from_slice(value);
    sealed(bytes)
}

fn overlay(at: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = small_blocks(SIZE, true);
    let at = FOOTER as usize + at;
    bytes[at..at + value.len()].copy_from_slice(value);
    sealed(bytes)
}

/// A locator of 24 bytes for the header.
fn locator(platform: &[u8; 4], len: u32, offset: u64) -> Vec<u8> {
    [
        platform,
        &512u32.to_be_bytes()[..],
        &len.to_be_bytes(),
        &[0; 4],
        &offset.to_be_bytes(),
    ]
    .concat()
}

fn open(bytes: Vec<u8>) -> Result<Box<dyn Image>> {
    let limits = Limits::default();
    Vpc.open(
        Arc::new(MemoryStorage::new("m", bytes)),
        &Options::new(),
        &OpenEnv::closed(&limits),
    )
}

const TYPE: usize = 60;
const OFFSET: usize = 16;
const SIZE_FIELD: usize = 48;
const GEOMETRY: usize = 56;
const TABLE: usize = 16;
const ENTRIES: usize = 28;
const BLOCK_SIZE: usize = 32;

#[test]
fn fields_that_cannot_be_true_are_refused_by_name() {
    use ErrorKind::{Corrupt, LimitExceeded, NotThisFormat, Unsupported};
    let u32 = |n: u32| n.to_be_bytes();
    let u64 = |n: u64| n.to_be_bytes();
    let mut wrong_sum = created(SIZE, Options::new());
    let end = wrong_sum.len() - FOOTER as usize;
    wrong_sum[end + 64] ^= 1;
    wrong_sum[64] ^= 2;
    let mut no_sum = fixed(0, b"conectix");
    let end = no_sum.len() - FOOTER as usize;
    no_sum[end + 64..end + 68].fill(0);
    let mut header_sum = created(SIZE, Options::new());
    header_sum[512 + 36] ^= 1;
    let mut differs = created(SIZE, Options::new());
    differs[70] ^= 1;
    seal(&mut differs, 0, 512, 64);
    let mut front_only = fixed(0, b"conectix");
    front_only.truncate(1 << 20);
    front_only.splice(..512, fixed(0, b"conectix")[1 << 20..].iter().copied());
    let cases = [
        (vec![0; 4096], NotThisFormat, "no footer"),
        (Vec::new(), NotThisFormat, "no footer"),
        (wrong_sum, Corrupt, "checksum"),
        (no_sum, Corrupt, "checksum"),
        (header_sum, Corrupt, "checksum"),
        (differs, Corrupt, "differs"),
        (front_only, Corrupt, "at the end"),
        (footer(8, &u32(0xffff_ffff)), Unsupported, "features"),
        (footer(12, &u32(0)), Unsupported, "version"),
        (footer(12, &u32(0x0002_0000)), Unsupported, "version"),
        (footer(TYPE, &u32(0)), Unsupported, "disk type"),
        (footer(TYPE, &u32(5)), Unsupported, "disk type"),
        (footer(TYPE, &u32(4)), Corrupt, "name the disk below"),
        (footer(OFFSET, &u64(u64::MAX)), Corrupt, "dynamic disk header"),
        (footer(OFFSET, &u64(u64::MAX - 1)), Corrupt, "dynamic disk header"),
        (footer(OFFSET, &u64(0)), Corrupt, "dynamic disk header"),
        (footer(OFFSET, &u64(1024)), Corrupt, "cxsparse"),
        (footer(SIZE_FIELD, &u64(u64::MAX)), Corrupt, "size field"),
        (footer(SIZE_FIELD, &u64(SIZE + 512)), Corrupt, "Page table"),
        (fixed(SIZE_FIELD, &u64(u64::MAX)), Corrupt, "size field"),
        (fixed(SIZE_FIELD, &u64((1 << 20) + 512)), Corrupt, "before the footer"),
        (header(0, b"cxsparsf"), Corrupt, "cxsparse"),
        (header(24, &u32(0x0002_0000)), Unsupported, "version"),
        (header(TABLE, &u64(u64::MAX)), Corrupt, "table"),
        (header(TABLE, &u64(0)), Corrupt, "table"),
        (header(TABLE, &u64(512)), Corrupt, "table"),
        (header(TABLE, &u64(1000)), Corrupt, "table"),
        (header(TABLE, &u64(2048)), Corrupt, "table"),
        (header(ENTRIES, &u32(0)), Corrupt, "Page table"),
        (header(ENTRIES, &u32(1)), Corrupt, "Page table"),
        (header(ENTRIES, &u32(u32::MAX)), LimitExceeded, "Max Table Entries"),
        (header(ENTRIES, &u32(60_000_000)), Corrupt, "table"),
        (header(BLOCK_SIZE, &u32(0)), Corrupt, "block size 0"),
        (header(BLOCK_SIZE, &u32(128)), Corrupt, "block size 128"),
        (header(BLOCK_SIZE, &u32(0x1234_5678)), Corrupt, "block size"),
        (header(BLOCK_SIZE, &u32(0x8000_0000)), Unsupported, "block size"),
        (header(1024, &u32(0)), Corrupt, "block 0"),
        (header(1024, &u32(1)), Corrupt, "block 0"),
        (header(1024, &u32(3)), Corrupt, "block 0"),
        (header(1024, &u32(0xffff_fffe)), Corrupt, "block 0"),
        (overlay(576, &locator(b"W2ru", 1 << 31, 1536)), Corrupt, "parent name"),
        (overlay(576, &locator(b"W2ru", 3, 1536)), Corrupt, "parent name"),
        (
            overlay(576, &locator(b"W2ku", 64, u64::MAX - 8)),
            Corrupt,
            "cannot read",
        ),
    ];
    for (number, (bytes, kind, word)) in cases.into_iter().enumerate() {
        for writable in [false, true] {
            let bytes = bytes.clone();
            let opened = if writable {
                open_on(Arc::new(MemoryStorage::new("m", bytes)))
            } else {
                open(bytes)
            };
            let error = opened.err().unwrap_or_else(|| panic!("case {number} ({word}) opened"));
            assert_eq!(error.kind(), kind, "case {number}: {error}");
            assert!(error.to_string().contains(word), "case {number}: {error}");
        }
    }
}

#[test]
fn a_geometry_without_sectors_is_refused_where_it_counts() {
    let mut bytes = footer(28, b"vpc ");
    let end = bytes.len() - FOOTER as usize;
    for start in [0, end] {
        bytes[start + GEOMETRY..start + GEOMETRY + 4].fill(0);
    }
    let error = open(sealed(bytes)).err().unwrap();
    assert!(error.to_string().contains("geometry"), "{error}");
}

#[test]
fn a_guest_cannot_turn_its_fixed_disk_into_another() {
    let mut bytes = created(1 << 20, Options::new().with("subformat", "fixed"));
    let other = created(SIZE, Options::new());
    bytes[..other.len()].copy_from_slice(&other);
    let image = open(bytes.clone()).unwrap();
    let mut first = [0; 512];
    image.read(0, &mut first).unwrap();
    assert!(image.virtual_size() == 1 << 20 && first[..] == other[..512]);
}

#[test]
fn blocks_over_each_other_are_reported_and_never_read() {
    let mut bytes = small_blocks(SIZE, false);
    let image = open_on(Arc::new(MemoryStorage::new("m", bytes.clone()))).unwrap();
    drop(image);
    let storage = Arc::new(MemoryStorage::new("m", bytes));
    let image = open_on(storage.clone()).unwrap();
    image.write(0, &[1; 8192], &NothingBelow).unwrap();
    image.close().unwrap();
    bytes = storage.contents();
    bytes.copy_within(1536..1540, 1540);
    assert!(open(bytes.clone()).err().unwrap().to_string().contains("overlap"));
    let (_, image) = open_to_check(bytes);
    let report = image.check(Repair::All, &Control::default()).unwrap();
    assert_eq!(
        (report.corruptions, report.corruptions_fixed),
        (1, 0),
        "{:?}",
        report.messages
    );
}

#[test]
fn footers_that_agree_on_a_wrong_sum_can_be_read_and_not_written() {
    let mut bytes = created(SIZE, Options::new());
    let end = bytes.len() - FOOTER as usize;
    for start in [0, end] {
        bytes[start + 70] ^= 0xff;
    }
    assert_eq!(open(bytes.clone()).unwrap().virtual_size(), SIZE);
    let error = open_on(Arc::new(MemoryStorage::new("m", bytes))).err().unwrap();
    assert!(error.to_string().contains("checksum"), "{error}");
}

#[test]
fn a_footer_of_511_bytes_is_read() {
    let mut bytes = created(1 << 20, Options::new().with("subformat", "fixed"));
    bytes.pop();
    bytes[5] = 5;
    let image = open(bytes).unwrap();
    let mut first = [0; 6];
    image.read(0, &mut first).unwrap();
    assert_eq!((image.virtual_size(), first[5]), (1 << 20, 5));
}

/// Opens, maps, reads, checks and writes as far as the image lets itself; what comes back does not matter, that it comes back does.
fn exercise(bytes: &[u8]) {
    let limits = Limits::untrusted();
    let env = OpenEnv::closed(&limits);
    for env in [env, env.for_check(), env.writable(), env.writable().for_check()] {
        let storage = Arc::new(MemoryStorage::new("m", bytes.to_vec()));
        let Ok(image) = Vpc.open(storage, &Options::new(), &env) else {
            continue;
        };
        let size = image.virtual_size();
        let mut at = 0;
        for _ in 0..64 {
            if at >= size {
                break;
            }
            let Ok(extent) = image.extent(at, size - at) else { break };
            assert!(extent.len > 0 && extent.len <= size - at);
            let _ = image.read(at, &mut vec![0; extent.len.min(8192) as usize]);
            at += extent.len;
        }
        let _ = image.check(Repair::No, &Control::default());
        if env.writable && size >= 512 {
            let _ = image.write(size - 512, &[1; 300], &NothingBelow);
            let _ = image.check(Repair::All, &Control::default());
            let _ = image.close();
        }
    }
}

fn samples() -> Vec<Vec<u8>> {
    let mut all = vec![created(100 * 512, Options::new().with("subformat", "fixed"))];
    for overlay in [false, true] {
        let storage = Arc::new(MemoryStorage::new("m", small_blocks(40 * 4096, overlay)));
        let image = open_on(storage.clone()).unwrap();
        image.write(5000, &[1; 9000], &NothingBelow).unwrap();
        image.close().unwrap();
        all.push(storage.contents());
    }
    all
}

#[test]
fn an_image_cut_anywhere_never_panics() {
    for bytes in samples() {
        for end in (0..=2048).step_by(61).chain((2048..bytes.len()).step_by(509)) {
            exercise(&bytes[..end.min(bytes.len())]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn changed_bytes_never_panic(
        sample in 0..3usize,
        right_sums in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = samples().swap_remove(sample);
        let end = bytes.len();
        for (index, in_footer, value) in changes {
            // Where the fields are: the first 2 KiB and the last footer.
            let at = if in_footer { end - 512 + index.index(90) } else { index.index(end.min(2048)) };
            bytes[at] = value;
            if right_sums && sample > 0 && in_footer {
                bytes[at - (end - 512)] = value;
            }
        }
        exercise(&if right_sums { sealed(bytes) } else { bytes });
    }
}
