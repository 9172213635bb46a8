//! 36: VHDX. Headers and region tables stand twice; values go into both.

use super::rows::{case, put};
use super::{Case, Verdict, Verdict::*};
use crate::samples::sample;

const HUGE: u64 = 0xffff_ffff;
const HEADERS: [i64; 2] = [64 << 10, 128 << 10];
const REGIONS: [i64; 2] = [192 << 10, 256 << 10];

type Field = (&'static str, i64, usize, &'static [u64], Verdict);

pub fn cases() -> Vec<Case> {
    let mut cases = twice(
        HEADERS,
        &[
            ("signature", 0, 4, &[0, HUGE], Refused),
            ("version", 66, 2, &[0, 2, 0xffff], Refused),
            ("log version", 64, 2, &[1, 0xffff], Refused),
            ("log GUID, garbage in the log", 48, 8, &[1, u64::MAX], Refused),
            ("log length", 68, 4, &[1, 4096, HUGE, 0xfff0_0000], Refused),
            (
                "log offset",
                72,
                8,
                &[1, 4096, 64 << 10, 1 << 63, u64::MAX, 1 << 40],
                Refused,
            ),
        ],
    );
    cases.extend(twice(
        REGIONS,
        &[
            ("signature", 0, 4, &[0, HUGE], Refused),
            ("regions", 8, 4, &[0, 1, 2048, HUGE], Refused),
            (
                "region offset",
                32,
                8,
                &[0, 1, 4096, 1 << 63, u64::MAX, u64::MAX - (1 << 20) + 1, 1 << 40],
                Refused,
            ),
            ("region length", 40, 4, &[0, 1, HUGE, 0xfff0_0000], Refused),
            (
                "second region offset",
                64,
                8,
                &[0, 1, 1 << 63, u64::MAX - (1 << 20) + 1, 1 << 40],
                Refused,
            ),
            ("second region length", 72, 4, &[0, 1, HUGE, 0xfff0_0000], Refused),
            ("region GUID, required", 16, 8, &[0, 7, u64::MAX], Refused),
        ],
    ));
    cases.extend(metadata());
    cases.extend(entries());
    cases.push(sums());
    cases.push(duplicate());
    cases.extend(log());
    cases
}

fn twice(places: [i64; 2], fields: &[Field]) -> Vec<Case> {
    let mut cases = Vec::new();
    for (field, at, width, values, verdict) in fields {
        for value in *values {
            let mut bytes = sample("vhdx");
            for place in places {
                put(&mut bytes, place + at, *width, *value, false);
            }
            cases.push(case(36, "vhdx", format!("{field} = {value:#x}"), bytes, *verdict));
        }
    }
    cases
}

fn number(bytes: &[u8], at: usize, width: usize) -> u64 {
    bytes[at..at + width]
        .iter()
        .rev()
        .fold(0, |n, b| n << 8 | u64::from(*b))
}

/// Offset of the region whose GUID begins with these bytes.
fn region(bytes: &[u8], guid: [u8; 4]) -> i64 {
    let table = REGIONS[0] as usize;
    let at = (0..2)
        .map(|n| table + 16 + n * 32)
        .find(|at| bytes[*at..*at + 4] == guid);
    number(bytes, at.unwrap() + 16, 8) as i64
}

const BAT: [u8; 4] = [0x66, 0x77, 0xc2, 0x2d];
const METADATA: [u8; 4] = [0x06, 0xa2, 0x7c, 0x8b];

/// First bytes of the GUID, field, place in the item, width, values.
type Item = ([u8; 4], &'static str, i64, usize, &'static [u64]);

/// The metadata table and its items. An item is found by the first bytes of its GUID.
fn metadata() -> Vec<Case> {
    const FILE_PARAMETERS: [u8; 4] = [0x37, 0x67, 0xa1, 0xca];
    const DISK_SIZE: [u8; 4] = [0x24, 0x42, 0xa5, 0x2f];
    const LOGICAL_SECTOR: [u8; 4] = [0x1d, 0xbf, 0x41, 0x81];
    let items: &[Item] = &[
        (
            FILE_PARAMETERS,
            "block size",
            0,
            4,
            &[0, 1, 3 << 20, 512 << 20, HUGE, 1 << 19],
        ),
        (FILE_PARAMETERS, "differencing without a locator", 4, 4, &[2]),
        (DISK_SIZE, "disk size", 0, 8, &[1, (64 << 40) + 512, 1 << 63, u64::MAX]),
        (LOGICAL_SECTOR, "sector size", 0, 4, &[0, 1, 513, 8192, HUGE]),
    ];
    let good = sample("vhdx");
    let table = region(&good, METADATA);
    let entry = |guid: [u8; 4]| {
        let count = number(&good, table as usize + 10, 2) as i64;
        let find = |n: &i64| good[(table + 32 + n * 32) as usize..][..4] == guid;
        table + 32 + (0..count).find(find).unwrap() * 32
    };
    let mut cases = Vec::new();
    let mut add = |what: String, at: i64, width: usize, value: u64| {
        let mut bytes = good.clone();
        put(&mut bytes, at, width, value, false);
        cases.push(case(36, "vhdx", what, bytes, Refused));
    };
    for (guid, field, at, width, values) in items {
        let place = table + number(&good, entry(*guid) as usize + 16, 4) as i64;
        values
            .iter()
            .for_each(|v| add(format!("{field} = {v:#x}"), place + at, *width, *v));
    }
    for count in [0, 2048, 0xffff] {
        add(format!("metadata items = {count}"), table + 10, 2, count);
    }
    let first = entry(FILE_PARAMETERS);
    for offset in [0, 1, 65_535, 1 << 20, HUGE] {
        add(format!("item offset = {offset:#x}"), first + 16, 4, offset);
    }
    for len in [0, 1, 1 << 20, HUGE] {
        add(format!("item length = {len:#x}"), first + 20, 4, len);
    }
    for guid in [0, HUGE] {
        add(format!("unknown required item {guid:#x}"), first, 4, guid);
    }
    add("metadata signature".to_owned(), table, 8, 0);
    cases
}

/// Block states of the first block.
fn entries() -> Vec<Case> {
    let good = sample("vhdx");
    let at = region(&good, BAT);
    [
        ("in the first MiB", 6u64),
        ("over the log", 1 << 20 | 6),
        ("past the end", 1 << 40 | 6),
        ("far away", !0 << 20 | 6),
        ("unaligned reserved bits", 0xf_f008 | 6),
        ("state 4", 4),
        ("state 5", 5),
        ("partially present without a parent", 4 << 20 | 7),
    ]
    .into_iter()
    .map(|(what, value)| {
        let mut bytes = good.clone();
        put(&mut bytes, at, 8, value, false);
        case(36, "vhdx", format!("block {what}"), bytes, Damaged)
    })
    .collect()
}

/// Nothing is put right here: no structure has its sum.
fn sums() -> Case {
    let mut bytes = sample("vhdx");
    for at in HEADERS {
        bytes[at as usize + 4] ^= 1;
    }
    Case {
        number: 36,
        what: "both headers bad".to_owned(),
        format: "vhdx",
        file: bytes.into(),
        verdict: Refused,
    }
}

fn duplicate() -> Case {
    let mut bytes = sample("vhdx");
    for table in REGIONS.map(|at| at as usize) {
        bytes.copy_within(table + 16..table + 32, table + 48);
    }
    case(36, "vhdx", "one region twice", bytes, Refused)
}

/// A log in use with an entry that cannot be true.
fn log() -> Vec<Case> {
    let entries: &[(&str, u64, u64, u64, u64)] = &[
        // length, descriptors, place of the first descriptor, its length
        ("10,000 descriptors", 4096, 10_000, 4 << 20, 4096),
        ("a descriptor of the headers", 4096, 1, 64 << 10, 4096),
        ("a zero descriptor of 2^63", 4096, 1, 1 << 20, 1 << 63),
        ("a zero descriptor that wraps", 4096, 1, u64::MAX - 4095, 8192),
        ("an entry of 4 GiB", 0xffff_f000, 1, 4 << 20, 4096),
        ("an entry of no bytes", 0, 1, 4 << 20, 4096),
        ("an unaligned place", 4096, 1, (4 << 20) + 1, 4096),
    ];
    entries
        .iter()
        .map(|(what, length, descriptors, place, len)| {
            let mut bytes = sample("vhdx");
            for header in HEADERS {
                bytes[header as usize + 48..header as usize + 64].fill(7);
            }
            let at = number(&bytes, HEADERS[0] as usize + 72, 8) as i64;
            let log = at as usize;
            bytes[log..log + 4].copy_from_slice(b"loge");
            put(&mut bytes, at + 8, 4, *length, false);
            put(&mut bytes, at + 16, 8, 1, false);
            put(&mut bytes, at + 24, 4, *descriptors, false);
            bytes[log + 32..log + 48].fill(7);
            put(&mut bytes, at + 48, 8, 8 << 20, false);
            put(&mut bytes, at + 56, 8, 8 << 20, false);
            bytes[log + 64..log + 68].copy_from_slice(b"zero");
            put(&mut bytes, at + 72, 8, *len, false);
            put(&mut bytes, at + 80, 8, *place, false);
            put(&mut bytes, at + 88, 8, 1, false);
            case(36, "vhdx", format!("log: {what}"), bytes, Refused)
        })
        .collect()
}
