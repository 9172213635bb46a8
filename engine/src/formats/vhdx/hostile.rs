//! Images made to break a reader: each is refused with a typed error, and no change of bytes makes the driver panic.

use std::sync::Arc;

use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::Vhdx;
use super::layout::{
    DATA_DESCRIPTOR, HEADERS, MIB, PAGE, REGION_TABLE, REGION_TABLES, RawDescriptor, RawEntry, ZERO_DESCRIPTOR, seal,
};
use super::tests::{created, open_on, open_to_check, overlay};
use crate::formats::FormatDriver;
use crate::image::{NothingBelow, Repair};
use crate::options::Options;
use crate::storage::MemoryStorage;
use crate::{Control, ErrorKind, Image, Limits, OpenEnv, Result};

/// Places in a new image with a log of 1 MiB.
const BAT: usize = 2 << 20;
const METADATA: usize = 3 << 20;
const ITEMS: usize = METADATA + (64 << 10);

fn base() -> Vec<u8> {
    created(4 * MIB, Options::new())
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn with(at: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = base();
    put(&mut bytes, at, value);
    bytes
}

/// One value changed in both headers, sums right.
fn header(at: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = base();
    for place in HEADERS.map(|p| p as usize) {
        put(&mut bytes, place + at, value);
        seal(&mut bytes[place..place + PAGE as usize]);
    }
    bytes
}

/// One value changed in both region tables, sums right.
fn regions(at: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = base();
    for place in REGION_TABLES.map(|p| p as usize) {
        put(&mut bytes, place + at, value);
        seal(&mut bytes[place..place + REGION_TABLE as usize]);
    }
    bytes
}

fn entry(index: usize, value: u64) -> Vec<u8> {
    with(BAT + index * 8, &value.to_le_bytes())
}

fn open(bytes: Vec<u8>) -> Result<Box<dyn Image>> {
    let limits = Limits::untrusted();
    Vhdx.open(
        Arc::new(MemoryStorage::new("m", bytes)),
        &Options::new(),
        &OpenEnv::closed(&limits),
    )
}

const LOG_GUID: usize = 48;
const SEQUENCE: usize = 8;

#[test]
fn fields_that_cannot_be_true_are_refused_by_name() {
    use ErrorKind::{Corrupt, LimitExceeded, NotThisFormat, Unsupported};
    let u16 = |n: u16| n.to_le_bytes();
    let u32 = |n: u32| n.to_le_bytes();
    let u64 = |n: u64| n.to_le_bytes();
    let mut no_headers = base();
    let mut no_tables = base();
    for (a, b) in HEADERS.into_iter().zip(REGION_TABLES) {
        no_headers[a as usize + 4] ^= 1;
        no_tables[b as usize + 4] ^= 1;
    }
    let mut same_number = base();
    for place in HEADERS.map(|p| p as usize) {
        put(&mut same_number, place + SEQUENCE, &u64(7));
        put(&mut same_number, place + 16, &[place as u8 | (place >> 16) as u8; 16]);
        seal(&mut same_number[place..place + PAGE as usize]);
    }
    let mut twice = base();
    for place in REGION_TABLES.map(|p| p as usize) {
        twice.copy_within(place + 16..place + 32, place + 48);
        seal(&mut twice[place..place + REGION_TABLE as usize]);
    }
    let mut item_twice = base();
    item_twice.copy_within(METADATA + 32..METADATA + 48, METADATA + 64);
    let unknown = [9u8; 16];
    let mut unknown_region = regions(8, &u32(3));
    for place in REGION_TABLES.map(|p| p as usize) {
        put(
            &mut unknown_region,
            place + 80,
            &[&unknown[..], &u64(5 << 20), &u32(1 << 20), &u32(1)].concat(),
        );
        seal(&mut unknown_region[place..place + REGION_TABLE as usize]);
    }
    let cases = [
        (Vec::new(), NotThisFormat, "vhdxfile"),
        (vec![0; 4 << 20], NotThisFormat, "vhdxfile"),
        (base()[..100_000].to_vec(), Corrupt, "log"),
        (base()[..20_000].to_vec(), Corrupt, "headers"),
        (no_headers, Corrupt, "headers"),
        (no_tables, Corrupt, "region tables"),
        (same_number, Corrupt, "differ"),
        (header(64, &u16(1)), Unsupported, "version"),
        (header(66, &u16(2)), Unsupported, "version"),
        (header(68, &u32(0)), Corrupt, "log"),
        (header(68, &u32(4096)), Corrupt, "log"),
        (header(68, &u32(0xfff0_0000)), Corrupt, "log"),
        (header(72, &u64(0)), Corrupt, "log"),
        (header(72, &u64(u64::MAX)), Corrupt, "log"),
        (header(72, &u64(!0xf_ffff)), Corrupt, "log"),
        (header(72, &u64(BAT as u64)), Corrupt, "overlap"),
        (header(LOG_GUID, &[7; 16]), Corrupt, "no sound entry"),
        (regions(8, &u32(2048)), Corrupt, "regions"),
        (regions(8, &u32(u32::MAX)), Corrupt, "regions"),
        (regions(8, &u32(0)), Corrupt, "BAT"),
        (regions(8, &u32(1)), Corrupt, "metadata"),
        (regions(32, &u64(u64::MAX)), Corrupt, "region"),
        (regions(32, &u64(!0xf_ffff)), Corrupt, "region"),
        (regions(32, &u64(0)), Corrupt, "region"),
        (regions(32, &u64(METADATA as u64)), Corrupt, "overlap"),
        (regions(32, &u64(1 << 40)), Corrupt, "past the end"),
        (regions(40, &u32(u32::MAX)), Corrupt, "region"),
        (regions(40, &u32(0)), Corrupt, "region"),
        (twice, Corrupt, "several"),
        (unknown_region, Unsupported, "must be known"),
        (with(METADATA, b"metadatb"), Corrupt, "metadata"),
        (with(METADATA + 10, &u16(2048)), Corrupt, "2048"),
        (with(METADATA + 10, &u16(0)), Corrupt, "file parameters"),
        (with(METADATA + 48, &u32(0)), Corrupt, "item"),
        (with(METADATA + 48, &u32(u32::MAX)), Corrupt, "item"),
        (with(METADATA + 52, &u32(0)), Corrupt, "item"),
        (with(METADATA + 52, &u32(u32::MAX)), Corrupt, "item"),
        (with(METADATA + 52, &u32(4)), Corrupt, "file parameters"),
        (with(METADATA + 32, &unknown), Unsupported, "must be known"),
        (item_twice, Corrupt, "twice"),
        (with(METADATA + 80, &u32((64 << 10) + 4)), Corrupt, "overlap"),
        (with(ITEMS, &u32(0)), Corrupt, "block size"),
        (with(ITEMS, &u32(3 << 20)), Corrupt, "block size"),
        (with(ITEMS, &u32(512 << 20)), Corrupt, "block size"),
        (with(ITEMS + 4, &u32(2)), Corrupt, "disk below"),
        (with(ITEMS + 8, &u64(513)), Corrupt, "virtual size"),
        (with(ITEMS + 8, &u64((64 << 40) + 512)), Corrupt, "virtual size"),
        (with(ITEMS + 8, &u64(u64::MAX)), Corrupt, "virtual size"),
        (with(ITEMS + 8, &u64(1 << 40)), Corrupt, "BAT"),
        (with(ITEMS + 32, &u32(0)), Corrupt, "sector size"),
        (with(ITEMS + 32, &u32(1)), Corrupt, "sector size"),
        (with(ITEMS + 36, &u32(1024)), Corrupt, "sector size"),
        (entry(0, 6), Corrupt, "headers"),
        (entry(0, 4), Corrupt, "state 4"),
        (entry(0, 5), Corrupt, "state 5"),
        (entry(0, 8), Corrupt, "reserved"),
        (entry(1, (1 << 20) | 6), Corrupt, "region"),
        (entry(1, (1 << 40) | 6), Corrupt, "past the end"),
        (entry(1, !0xf_ffff | 6), Corrupt, "past"),
        (entry(1, (4 << 20) | 7), Corrupt, "partially"),
        (
            with(BAT, &[u64((5 << 20) | 6), u64((5 << 20) | 6)].concat()),
            Corrupt,
            "share",
        ),
    ];
    for (number, (bytes, kind, word)) in cases.into_iter().enumerate() {
        for writable in [false, true] {
            let storage = Arc::new(MemoryStorage::new("m", bytes.clone()));
            let opened = if writable {
                open_on(storage.clone())
            } else {
                open(bytes.clone())
            };
            let error = opened.err().unwrap_or_else(|| panic!("case {number} ({word}) opened"));
            assert_eq!(error.kind(), kind, "case {number}: {error}");
            assert!(error.to_string().contains(word), "case {number}: {error}");
            assert!(storage.contents() == bytes, "case {number} was changed");
        }
    }
    // A table of 512 MiB in a file that has room for it, but only in name.
    let huge = [regions(40, &u32(0xc000_0000)), Vec::new()].concat();
    let error = open(huge).err().unwrap();
    assert!(matches!(error.kind(), Corrupt | LimitExceeded), "{error}");
}

/// An image whose log holds one entry.
fn logged(change: impl Fn(&mut RawEntry, &mut RawDescriptor), patch: impl Fn(&mut [u8])) -> Vec<u8> {
    let guid = [7; 16];
    let mut bytes = header(LOG_GUID, &guid);
    let mut entry = RawEntry {
        signature: *b"loge",
        checksum: 0.into(),
        length: 4096.into(),
        tail: 0.into(),
        sequence: 5.into(),
        descriptors: 1.into(),
        reserved: 0.into(),
        log_guid: guid,
        flushed_offset: (8 << 20).into(),
        last_offset: (8 << 20).into(),
    };
    // Zeroes the first page of the table.
    let mut descriptor = RawDescriptor {
        signature: ZERO_DESCRIPTOR,
        trailing: [0; 4],
        leading: 4096u64.to_le_bytes(),
        offset: (BAT as u64).into(),
        sequence: 5.into(),
    };
    change(&mut entry, &mut descriptor);
    let mut page = [entry.as_bytes(), descriptor.as_bytes()].concat();
    page.resize(PAGE as usize, 0);
    patch(&mut page);
    seal(&mut page);
    put(&mut bytes, MIB as usize, &page);
    bytes
}

#[test]
fn a_sound_entry_is_replayed() {
    let bytes = logged(|_, _| (), |_| ());
    assert_eq!(bytes[BAT], 2);
    let image = open(bytes.clone()).unwrap();
    assert_eq!(image.check(Repair::No, &Control::default()).unwrap().corruptions, 1);
    let storage = Arc::new(MemoryStorage::new("m", bytes));
    open_on(storage.clone()).unwrap();
    assert_eq!(storage.contents()[BAT], 0);
}

#[test]
fn logs_that_cannot_be_true_are_refused_and_not_replayed() {
    type Change = fn(&mut RawEntry, &mut RawDescriptor);
    let cases: [(Change, &str); 13] = [
        (|e, _| e.sequence = 0.into(), "no sound entry"),
        (|e, _| e.log_guid = [8; 16], "no sound entry"),
        (|e, _| e.length = 100.into(), "no sound entry"),
        (|e, _| e.length = u32::MAX.into(), "no sound entry"),
        (|e, _| e.tail = 8192.into(), "no sound entry"),
        (|e, _| e.descriptors = 10_000.into(), "no sound entry"),
        (|e, _| e.flushed_offset = (1 << 40).into(), "when the file had"),
        (|e, _| e.last_offset = u64::MAX.into(), "grow"),
        (|_, d| d.sequence = 6.into(), "another entry"),
        (|_, d| d.signature = *b"what", "unknown kind"),
        (|_, d| d.signature = DATA_DESCRIPTOR, "fewer data"),
        (|_, d| d.leading = (1u64 << 63).to_le_bytes(), "may not"),
        (|_, d| d.offset = HEADERS[0].into(), "may not"),
    ];
    for (number, (change, word)) in cases.into_iter().enumerate() {
        let bytes = logged(change, |_| ());
        let storage = Arc::new(MemoryStorage::new("m", bytes.clone()));
        for opened in [open(bytes.clone()), open_on(storage.clone())] {
            let error = opened.err().unwrap_or_else(|| panic!("case {number} ({word}) opened"));
            assert_eq!(error.kind(), ErrorKind::Corrupt, "case {number}: {error}");
            assert!(error.to_string().contains(word), "case {number}: {error}");
        }
        assert!(storage.contents() == bytes, "case {number} was changed");
        let limits = Limits::default();
        let env = OpenEnv::closed(&limits).for_check();
        let image = Vhdx
            .open(Arc::new(MemoryStorage::new("m", bytes)), &Options::new(), &env)
            .unwrap();
        assert!(image.check(Repair::No, &Control::default()).unwrap().corruptions > 0);
    }
    let into_log = logged(|_, d| d.offset = MIB.into(), |_| ());
    assert!(open(into_log).err().unwrap().to_string().contains("may not"));
}

#[test]
fn a_log_of_nested_claims_ends_in_time() {
    // Every page claims to begin an entry of the whole log.
    let log = 16 << 20;
    let mut bytes = created(4 * MIB, Options::new().with("log_size", "16M"));
    for place in HEADERS.map(|p| p as usize) {
        put(&mut bytes, place + LOG_GUID, &[7; 16]);
        seal(&mut bytes[place..place + PAGE as usize]);
    }
    let claim = [
        &b"loge"[..],
        &[0; 4],
        &(log as u32).to_le_bytes(),
        &[0; 4],
        &1u64.to_le_bytes(),
        &[0; 8],
        &[7; 16],
    ]
    .concat();
    for page in (0..log).step_by(PAGE as usize) {
        put(&mut bytes, MIB as usize + page, &claim);
    }
    assert_eq!(open(bytes).err().unwrap().kind(), ErrorKind::LimitExceeded);
}

/// Opens, maps, reads, checks and writes as far as the image lets itself; what comes back does not matter, that it comes back does.
fn exercise(bytes: &[u8]) {
    let limits = Limits::untrusted();
    let env = OpenEnv::closed(&limits);
    for env in [env, env.for_check(), env.writable(), env.writable().for_check()] {
        let storage = Arc::new(MemoryStorage::new("m", bytes.to_vec()));
        let Ok(image) = Vhdx.open(storage, &Options::new(), &env) else {
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

fn samples() -> &'static [Vec<u8>] {
    static SAMPLES: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
    SAMPLES.get_or_init(|| {
        let mut all = Vec::new();
        for bytes in [base(), overlay(4 * MIB)] {
            let storage = Arc::new(MemoryStorage::new("m", bytes));
            let image = open_on(storage.clone()).unwrap();
            image.write(5000, &[1; 9000], &NothingBelow).unwrap();
            image.close().unwrap();
            all.push(storage.contents());
        }
        all.push(logged(|_, _| (), |_| ()));
        all
    })
}

#[test]
fn an_image_cut_anywhere_never_panics() {
    for bytes in samples() {
        for end in (0..=1024).step_by(97).chain((1024..bytes.len()).step_by(377_777)) {
            exercise(&bytes[..end]);
        }
    }
}

/// Where the fields are, and how to put the sum of each structure right.
const STRUCTURES: [(usize, usize, bool); 7] = [
    (64 << 10, 80, true),
    (128 << 10, 80, true),
    (192 << 10, 80, true),
    (1 << 20, 100, true),
    (BAT, 64, false),
    (METADATA, 240, false),
    (ITEMS, 256, false),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn changed_bytes_never_panic(
        sample in 0..3usize,
        right_sums in any::<bool>(),
        changes in prop::collection::vec((0..7usize, any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = samples()[sample].clone();
        for (structure, index, value) in changes {
            let (start, len, summed) = STRUCTURES[structure];
            bytes[start + index.index(len)] = value;
            if right_sums && summed {
                let len = if start == 192 << 10 { REGION_TABLE } else { PAGE } as usize;
                seal(&mut bytes[start..start + len]);
            }
        }
        exercise(&bytes);
    }
}

#[test]
fn a_damaged_table_is_reported_and_nothing_is_built_on_it() {
    let bytes = with(
        BAT,
        &[((5u64 << 20) | 6).to_le_bytes(), ((5u64 << 20) | 6).to_le_bytes()].concat(),
    );
    let (storage, image) = open_to_check(bytes.clone());
    let report = image.check(Repair::All, &Control::default()).unwrap();
    assert_eq!(
        (report.corruptions, report.corruptions_fixed),
        (1, 0),
        "{:?}",
        report.messages
    );
    assert_eq!(
        image.write(0, &[1], &NothingBelow).unwrap_err().kind(),
        ErrorKind::Corrupt
    );
    assert!(storage.contents() == bytes);
}
