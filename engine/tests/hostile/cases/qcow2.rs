//! 1 to 31: qcow2. The sample has clusters of 64 KiB: header 0, refcount table 1, block 2, L1 3, L2 4, data 5 and 6.

use super::rows::{Row, case, of_sample, put, row};
use super::{Case, Verdict, Verdict::*};
use crate::samples::{sample, sample_with};

const HUGE: u64 = 0xffff_ffff;
const COPIED: u64 = 1 << 63;
const L1: i64 = 0x3_0000;
const L2: i64 = 0x4_0000;
const BLOCK: i64 = 0x2_0000;

const ROWS: &[Row] = &[
    row(1, "cluster_bits", 20, 4, &[0, 8, 22, 31, 32, 63, HUGE], Refused),
    row(2, "version", 4, 4, &[0, 1, 4, HUGE], Refused),
    row(3, "header_length", 100, 4, &[0, 72, 103, 105, 0x1_0001, HUGE], Refused),
    row(
        4,
        "extension length",
        116,
        4,
        &[0x7fff_ffff, 0xffff_fff8, 0xff89, HUGE],
        Refused,
    ),
    row(
        7,
        "backing offset without size",
        8,
        8,
        &[4, 103, 0x1_0000, 1 << 63, u64::MAX],
        Refused,
    ),
    row(
        14,
        "size",
        24,
        8,
        &[1 << 56, i64::MAX as u64, u64::MAX, 1 << 50],
        Refused,
    ),
    row(14, "size", 24, 8, &[0, 511, 513, (1 << 20) - 1], Good),
    row(
        15,
        "l1_size",
        36,
        4,
        &[0, HUGE, 0x7fff_ffff, (4 << 20) + 1, 4 << 20],
        Refused,
    ),
    row(
        15,
        "l1_table_offset",
        40,
        8,
        &[0, 0x3_0200, 1 << 63, 1 << 40, u64::MAX],
        Refused,
    ),
    row(
        16,
        "refcount_table_offset",
        48,
        8,
        &[0, 0x1_0200, 1 << 63, u64::MAX],
        Refused,
    ),
    row(16, "refcount_table_clusters", 56, 4, &[0, HUGE, 129], Refused),
    row(16, "refcount_table_clusters", 56, 4, &[128], Damaged),
    row(17, "refcount_order", 96, 4, &[7, 32, 64, HUGE], Refused),
    row(18, "nb_snapshots", 60, 4, &[65_537, HUGE], Refused),
    row(18, "nb_snapshots", 60, 4, &[1], Damaged),
    row(
        21,
        "L1[0]",
        L1,
        8,
        &[
            COPIED | 0x3_0000,
            COPIED | 0x2_0000,
            COPIED | 0x1_0000,
            COPIED | 0x4_2a00,
            COPIED | 1 << 40,
            COPIED | 0x4_0002,
            COPIED | 0x4_0100,
            COPIED | 1 << 56 | 0x4_0000,
            COPIED | 1 << 62 | 0x4_0000,
        ],
        Damaged,
    ),
    // The header is no place for a table or a cluster: offset 0 means that there is none.
    row(21, "L1[0]", L1, 8, &[COPIED], Good),
    row(22, "L2 entry", L2, 8, &[COPIED], Good),
    row(
        22,
        "L2 entry",
        L2,
        8,
        &[
            COPIED | 0x5_2a00,
            0xbfff_ffff_ffff_0000,
            COPIED | 0x2_0000,
            COPIED | 0x3_0000,
            COPIED | 0x4_0000,
            COPIED | 0x1_0000,
            COPIED | 1 << 40,
            COPIED | 0x5_0002,
            COPIED | 1 << 56 | 0x5_0000,
        ],
        Damaged,
    ),
    row(
        23,
        "second L2 entry",
        L2 + 8,
        8,
        &[COPIED | 0x5_0000, 0x5_0000],
        Damaged,
    ),
    row(
        24,
        "compressed entry",
        L2,
        8,
        &[
            1 << 62 | 1 << 40,
            (1 << 62) | ((1 << 54) - 1),
            1 << 62 | 0xff << 54 | 0x5_0000,
            1 << 62,
            3 << 62 | 0x5_0000,
        ],
        Damaged,
    ),
    row(
        28,
        "reftable entry",
        0x1_0000,
        8,
        &[0x2_0200, 1 << 55, 0x1_0000, 0, 1, 0x3_0000, 1 << 63],
        Damaged,
    ),
    row(28, "refcount of the block itself", BLOCK + 4, 2, &[0], Damaged),
    row(
        28,
        "refcount of the block itself, too large: a leak",
        BLOCK + 4,
        2,
        &[2, 0xffff],
        Good,
    ),
    row(28, "refcount of the header", BLOCK, 2, &[0], Damaged),
    row(29, "crypt_method", 32, 4, &[2, 3, HUGE], Refused),
];

pub fn cases() -> Vec<Case> {
    let mut cases = of_sample("qcow2", true, ROWS);
    cases.extend(extensions());
    cases.extend(backing());
    cases.extend(features());
    cases.extend(data_files());
    cases.extend(tables());
    cases.extend(streams());
    cases.extend(bitmaps());
    cases.push(q(
        27,
        "100 bitmaps of 64 MiB that share one cluster of bits",
        shared_bits(),
        Damaged,
    ));
    cases.extend(cuts());
    cases
}

fn q(number: u8, what: impl Into<String>, bytes: Vec<u8>, verdict: Verdict) -> Case {
    case(number, "qcow2", what, bytes, verdict)
}

fn with(changes: &[(i64, usize, u64)]) -> Vec<u8> {
    let mut bytes = sample("qcow2");
    for (at, width, value) in changes {
        put(&mut bytes, *at, *width, *value, true);
    }
    bytes
}

const DATA_FILE: u32 = 0x4441_5441;
const FORMAT: u32 = 0xe279_2aca;
const NAMES: u32 = 0x6803_f857;
const BITMAPS: u32 = 0x2385_2875;
const LUKS: u32 = 0x0537_be77;

/// Extensions behind the header in place of the feature names: kind, length, data.
fn extension(list: &[(u32, u32, &[u8])]) -> Vec<u8> {
    let mut bytes = sample("qcow2");
    bytes[112..4096].fill(0);
    let mut at = 112;
    for (kind, len, data) in list {
        bytes[at..at + 4].copy_from_slice(&kind.to_be_bytes());
        bytes[at + 4..at + 8].copy_from_slice(&len.to_be_bytes());
        bytes[at + 8..at + 8 + data.len()].copy_from_slice(data);
        at += 8 + data.len().next_multiple_of(8);
    }
    bytes
}

fn extensions() -> Vec<Case> {
    let mut endless = sample("qcow2");
    for chunk in endless[112..65_536].chunks_mut(8) {
        chunk.copy_from_slice(&[0x12, 0x34, 0x56, 0x78, 0, 0, 0, 0]);
    }
    let bitmap = [0u8; 24];
    let names: Vec<u8> = std::iter::repeat_n(*b"%s%n\x1b[31m\xff\xfe\n", 4000 / 12)
        .flatten()
        .collect();
    let mut cases = vec![
        q(4, "extensions that fill the cluster", endless, Refused),
        // QEMU reads such images, and so do we: the last one counts, and it names a driver, never a file.
        q(
            5,
            "two backing formats",
            extension(&[(FORMAT, 3, b"raw"), (FORMAT, 3, b"raw")]),
            Good,
        ),
        q(
            5,
            "two data files",
            extension(&[(DATA_FILE, 1, b"a"), (DATA_FILE, 1, b"a")]),
            Refused,
        ),
        q(
            5,
            "two bitmap extensions",
            extension(&[(BITMAPS, 24, &bitmap), (BITMAPS, 24, &bitmap)]),
            Refused,
        ),
        q(
            6,
            "feature names of 47 bytes",
            extension(&[(NAMES, 47, &[b'x'; 47])]),
            Good,
        ),
        q(
            6,
            "feature names with escapes",
            extension(&[(NAMES, names.len() as u32, &names)]),
            Good,
        ),
        q(
            29,
            "encryption header without its data",
            extension(&[(LUKS, 16, &[0xff; 16])]),
            Refused,
        ),
        q(
            29,
            "encryption header of 15 bytes",
            extension(&[(LUKS, 15, &[0; 15])]),
            Refused,
        ),
    ];
    for len in [0u64, 512, 1 << 40, u64::MAX] {
        let place = [0x7_0000u64.to_be_bytes(), len.to_be_bytes()].concat();
        let mut bytes = extension(&[(LUKS, 16, &place)]);
        put(&mut bytes, 32, 4, 2, true);
        cases.push(q(
            29,
            format!("encryption header of {len:#x} bytes past the end"),
            bytes,
            Refused,
        ));
    }
    let at = [0x5_0000u64.to_be_bytes(), 4096u64.to_be_bytes()].concat();
    let mut bytes = extension(&[(LUKS, 16, &at)]);
    put(&mut bytes, 32, 4, 2, true);
    cases.push(q(29, "encryption header that is none", bytes, Refused));
    cases
}

fn backing() -> Vec<Case> {
    let mut cases = Vec::new();
    let place = |offset: u64, size: u64| with(&[(8, 8, offset), (16, 4, size)]);
    for offset in [4, 103, 0x1_0000, 1 << 63, u64::MAX, u64::MAX - 7] {
        cases.push(q(7, format!("backing name at {offset:#x}"), place(offset, 8), Refused));
    }
    for size in [0, 1024, HUGE] {
        cases.push(q(
            7,
            format!("backing name of {size:#x} bytes"),
            place(1024, size),
            Refused,
        ));
    }
    for (offset, size) in [(0xffff, 2), (0xff00, 257), (0xfc02, 1023)] {
        cases.push(q(
            7,
            format!("backing name at {offset:#x} of {size} bytes, over the cluster"),
            place(offset, size),
            Refused,
        ));
    }
    let rlo = "\u{202e}".repeat(341);
    for name in [
        "/etc/shadow",
        "../../x",
        "/proc/self/mem",
        "/dev/zero",
        "json:{\"driver\":\"file\",\"filename\":\"/etc/shadow\"}",
        "nbd://169.254.169.254/",
        "http://127.0.0.1/",
        "file:///etc/passwd",
        "fd:3",
        "/dev/fdset/0",
        "a\nb",
        "\"",
        &rlo,
        "hostile",
    ] {
        // Whatever the name, it is nothing to the image alone; that nobody opens it is watched.
        let mut bytes = place(1024, name.len() as u64);
        bytes[112..1024].fill(0);
        bytes[1024..1024 + name.len()].copy_from_slice(name.as_bytes());
        cases.push(q(
            8,
            format!("backing name {:?}", name.chars().take(40).collect::<String>()),
            bytes,
            Good,
        ));
    }
    let mut nul = place(1024, 5);
    nul[1024..1029].copy_from_slice(b"a\0b/c");
    cases.push(q(8, "backing name with a NUL", nul, Refused));
    for (what, format) in [("with a NUL", &b"qcow2\0raw"[..]), ("not UTF-8", b"\xff\xfe")] {
        let bytes = extension(&[(FORMAT, format.len() as u32, format)]);
        cases.push(q(9, format!("backing format {what}"), bytes, Refused));
    }
    cases
}

fn features() -> Vec<Case> {
    let mut cases = Vec::new();
    for bit in 5..64 {
        cases.push(q(12, format!("feature bit {bit}"), with(&[(72, 8, 1 << bit)]), Refused));
    }
    for kind in [0, 2, 255] {
        let bytes = with(&[(72, 8, 8), (104, 1, kind)]);
        cases.push(q(12, format!("compression type {kind}"), bytes, Refused));
    }
    for bits in 9..=13 {
        let bytes = with(&[(72, 8, 16), (20, 4, bits)]);
        cases.push(q(
            12,
            format!("extended L2 entries in clusters of 2^{bits}"),
            bytes,
            Refused,
        ));
    }
    cases.push(q(12, "dirty", with(&[(72, 8, 1)]), ReadOnly));
    cases.push(q(12, "corrupt", with(&[(72, 8, 2)]), ReadOnly));
    cases.push(q(12, "type without compression bit", with(&[(104, 1, 1)]), Refused));
    cases
}

fn data_files() -> Vec<Case> {
    let mut cases = vec![
        q(12, "data file bit without a name", with(&[(72, 8, 4)]), Refused),
        q(
            13,
            "raw data file bit without a data file",
            with(&[(88, 8, 2)]),
            Refused,
        ),
    ];
    for name in [
        "/etc/shadow",
        "json:{}",
        "../../x",
        "/dev/zero",
        "hostile",
        "nbd://127.0.0.1/",
        "",
    ] {
        let mut bytes = extension(&[(DATA_FILE, name.len() as u32, name.as_bytes())]);
        put(&mut bytes, 72, 8, 4, true);
        cases.push(q(13, format!("data file {name:?}"), bytes, Refused));
    }
    cases
}

/// 17 to 20: widths of refcounts, snapshots.
fn tables() -> Vec<Case> {
    let mut cases = Vec::new();
    for bits in ["1", "2", "64"] {
        cases.push(q(
            17,
            format!("refcounts of {bits} bits"),
            sample_with("qcow2", &[("refcount_bits", bits)]),
            Good,
        ));
    }
    let snapshot = |changes: &[(i64, usize, u64)]| {
        let mut bytes = with(&[(60, 4, 1), (64, 8, 0x7_0000)]);
        bytes.resize(0x8_0000, 0);
        for (at, width, value) in changes {
            put(&mut bytes, 0x7_0000 + at, *width, *value, true);
        }
        bytes
    };
    let many = |count: u64| {
        let mut bytes = with(&[(60, 4, count), (64, 8, 0x7_0000)]);
        bytes.resize(0x7_0000 + 40 * count as usize, 0);
        bytes
    };
    cases.push(q(18, "65,536 snapshots in a hole", many(65_536), Damaged));
    for count in [65_536, 1_024] {
        let mut bytes = many(count);
        let shared = bytes.len().next_multiple_of(0x1_0000);
        bytes.resize(shared + (4 << 20), 0);
        for number in 0..count as i64 {
            put(&mut bytes, 0x7_0000 + 40 * number, 8, shared as u64, true);
            put(&mut bytes, 0x7_0008 + 40 * number, 4, (4 << 20) / 8, true);
        }
        cases.push(q(
            20,
            format!("{count} snapshots with one L1 table of 4 MiB"),
            bytes,
            Damaged,
        ));
    }
    for (what, changes, verdict) in [
        (
            "L1 of 2^22+1 entries",
            vec![(8, 4, (4 << 20) + 1), (0, 8, 0x3_0000)],
            Damaged,
        ),
        ("id of 65,535 bytes", vec![(12, 2, 0xffff)], Damaged),
        ("name of 65,535 bytes", vec![(14, 2, 0xffff)], Damaged),
        ("1,025 bytes of extra data", vec![(36, 4, 1025)], Damaged),
        ("4 GiB of extra data", vec![(36, 4, HUGE)], Damaged),
        ("VM state of 2^63", vec![(36, 4, 16), (40, 8, 1 << 63)], Damaged),
        ("size 2^64-1", vec![(36, 4, 16), (48, 8, u64::MAX)], Damaged),
        ("text that is not UTF-8", vec![(12, 2, 2), (40, 2, 0xfffe)], Damaged),
    ] {
        cases.push(q(19, format!("snapshot: {what}"), snapshot(&changes), verdict));
    }
    for (what, offset, verdict) in [
        ("unaligned", 0x3_0200, Damaged),
        ("the active one", 0x3_0000, Damaged),
        ("the refcount block", 0x2_0000, Damaged),
        ("past the end", 1 << 40, Damaged),
    ] {
        cases.push(q(
            20,
            format!("snapshot's L1: {what}"),
            snapshot(&[(8, 4, 1), (0, 8, offset)]),
            verdict,
        ));
    }
    cases.extend(subclusters());
    cases
}

fn subclusters() -> Vec<Case> {
    let good = sample_with("qcow2", &[("extended_l2", "on")]);
    [
        ("data and zero at once", None, 1u64 << 32 | 1),
        ("all data and all zero", None, u64::MAX),
        ("a map on a compressed cluster", Some(1u64 << 62 | 0x5_0000), 1),
        ("zero bits on a compressed cluster", Some(1 << 62 | 0x5_0000), 1 << 40),
    ]
    .into_iter()
    .map(|(what, entry, map)| {
        let mut bytes = good.clone();
        if let Some(entry) = entry {
            put(&mut bytes, L2, 8, entry, true);
        }
        put(&mut bytes, L2 + 8, 8, map, true);
        q(26, format!("subclusters: {what}"), bytes, Damaged)
    })
    .collect()
}

/// 24 and 25: compressed clusters whose stream is not what it must be.
fn streams() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in ["zlib", "zstd"] {
        let good = sample_with("qcow2", &[("compression_type", kind)]);
        for (what, stream) in [
            ("of nothing", &[][..]),
            ("too short a result", b"\x03\x00"),
            ("a zstd window of 2 GiB", b"\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00"),
            (
                "a zstd frame of 2^63 bytes",
                b"\x28\xb5\x2f\xfd\xe0\xff\xff\xff\xff\xff\xff\xff\x7f",
            ),
            ("a zstd dictionary", b"\x28\xb5\x2f\xfd\x23\x01\x02\x03\x04\x05\x06\x07"),
            ("a skippable zstd frame", b"\x50\x2a\x4d\x18\x00\x00\x00\x00"),
            ("a zlib dictionary", b"\x78\xbb\x00\x00\x00\x01\x03\x00"),
            ("noise", b"\xde\xad\xbe\xef\xde\xad\xbe\xef"),
        ] {
            let mut bytes = good.clone();
            bytes[0x5_0000..0x5_0200].fill(0);
            bytes[0x5_0000..0x5_0000 + stream.len()].copy_from_slice(stream);
            put(&mut bytes, L2, 8, 1 << 62 | 0x5_0000, true);
            cases.push(q(24, format!("{kind} stream: {what}"), bytes, Unreadable));
        }
    }
    for entry in [COPIED | 0x4_0000, 0x4_0000] {
        let changes = [(24, 8, 1 << 30), (36, 4, 2), (L1 + 8, 8, entry)];
        cases.push(q(
            23,
            format!("L1[1] = {entry:#x}, the first one's table"),
            with(&changes),
            Damaged,
        ));
    }
    cases.push(q(25, "2,048 entries of one compressed cluster", bomb(), Damaged));
    cases.push(q(
        31,
        "8 EiB of which nothing is there",
        with(&[(24, 8, 1 << 62)]),
        Refused,
    ));
    cases
}

/// Every entry of the L2 table is the same compressed cluster of zeroes.
fn bomb() -> Vec<u8> {
    let mut bytes = sample("qcow2");
    let zeroes = deflate(&[0; 0x1_0000]);
    bytes[0x5_0000..0x5_0000 + zeroes.len()].copy_from_slice(&zeroes);
    put(&mut bytes, 24, 8, 8192 << 16, true);
    for n in 0..8192 {
        put(&mut bytes, L2 + n * 8, 8, 1 << 62 | 0x5_0000, true);
    }
    bytes
}

/// Raw deflate of 65,536 zeroes, by a stored block repeated: a fixed block of one zero and matches of 258.
fn deflate(zeroes: &[u8]) -> Vec<u8> {
    let mut bits: Vec<bool> = vec![true, true, false];
    let mut code = |value: u32, len: u32| (0..len).rev().for_each(|n| bits.push(value >> n & 1 == 1));
    code(0x30, 8);
    for _ in 0..(zeroes.len() - 1) / 258 {
        code(0b1100_0101, 8);
        code(0, 5);
    }
    for _ in 0..(zeroes.len() - 1) % 258 {
        code(0x30, 8);
    }
    code(0, 7);
    bits.chunks(8)
        .map(|c| {
            c.iter()
                .enumerate()
                .fold(0, |byte, (n, bit)| byte | u8::from(*bit) << n)
        })
        .collect()
}

fn bitmaps() -> Vec<Case> {
    [
        (0, 32, 0x6_0000),
        (65_536, 1 << 22, 0x6_0000),
        (HUGE, 32, 0x6_0000),
        (1, (64 << 20) + 1, 0x6_0000),
        (1, u64::MAX, 0x6_0000),
        (1, 0, 0x6_0000),
        (1, 32, 0x6_0200),
        (1, 32, 1 << 40),
        (1, 32, u64::MAX - 511),
        (1, 32, 0x6_0000),
    ]
    .into_iter()
    .map(|(count, size, at): (u64, u64, u64)| {
        let data = [
            &(count as u32).to_be_bytes()[..],
            &[0; 4],
            &size.to_be_bytes(),
            &at.to_be_bytes(),
        ]
        .concat();
        let mut bytes = extension(&[(BITMAPS, 24, &data)]);
        put(&mut bytes, 88, 8, 1, true);
        q(
            27,
            format!("{count:#x} bitmaps, directory of {size:#x} bytes at {at:#x}"),
            bytes,
            Damaged,
        )
    })
    .collect()
}

/// Bitmaps of 256 GiB in units of 512 bytes, all with one table, whose entries all name one cluster; refcounts say so.
fn shared_bits() -> Vec<u8> {
    const COUNT: u64 = 100;
    let (directory, table, bits) = (0x7_0000, 0x8_0000, 0x9_0000);
    let mut bytes = sample_with("qcow2", &[("refcount_bits", "64")]);
    bytes.resize(0xa_0000, 0);
    bytes[112..4096].fill(0);
    for (at, width, value) in [
        (24, 8, 256 << 30),
        (36, 4, 512),
        (88, 8, 1),
        (112, 4, u64::from(BITMAPS)),
        (116, 4, 24),
        (120, 4, COUNT),
        (128, 8, COUNT * 32),
        (136, 8, directory as u64),
        (BLOCK + 7 * 8, 8, 1),
        (BLOCK + 8 * 8, 8, COUNT),
        (BLOCK + 9 * 8, 8, COUNT * 1024),
    ] {
        put(&mut bytes, at, width, value, true);
    }
    for number in 0..COUNT as i64 {
        let entry = directory + 32 * number;
        put(&mut bytes, entry, 8, table as u64, true);
        put(&mut bytes, entry + 8, 4, 1024, true);
        put(&mut bytes, entry + 12, 4, 2, true);
        put(&mut bytes, entry + 16, 4, 0x0109_0003, true);
        let name = entry as usize + 24;
        bytes[name..name + 3].copy_from_slice(format!("{number:03}").as_bytes());
    }
    for number in 0..1024 {
        put(&mut bytes, table + 8 * number, 8, bits as u64, true);
    }
    bytes[bits as usize..].fill(0xaa);
    bytes
}

fn cuts() -> Vec<Case> {
    let good = sample("qcow2");
    let ends = (0..=1024).step_by(16).chain([511, 513, 1023]);
    ends.map(|end| q(30, format!("cut at {end}"), good[..end].to_vec(), Refused))
        .chain(
            (0x1_0000..good.len() - 0x1_0000)
                .step_by(0x8000)
                .map(|end| q(30, format!("cut at {end:#x}"), good[..end].to_vec(), Damaged)),
        )
        .collect()
}
