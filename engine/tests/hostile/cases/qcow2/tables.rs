//! Tables that lie over each other or beyond the file.

use super::super::rows::put;
use super::super::{Case, Verdict::*};
use super::{HUGE, L2, q, with};
use crate::samples::sample_with;

/// 17 to 20: widths of refcounts, snapshots.
pub fn tables() -> Vec<Case> {
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
        ("size 2^53", vec![(36, 4, 16), (48, 8, 1 << 53)], Damaged),
        ("size 2^62", vec![(36, 4, 16), (48, 8, 1 << 62)], Damaged),
        ("size 2^63-512", vec![(36, 4, 16), (48, 8, (1 << 63) - 512)], Damaged),
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

pub fn subclusters() -> Vec<Case> {
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
