//! 35: VHD (`vpc`). The footer stands twice; values go into both unless a case is about their difference.

use super::rows::{case, of_sample, put, row};
use super::{Case, Verdict::*};
use crate::samples::{sample, sample_with};

const HUGE: u64 = 0xffff_ffff;

pub fn cases() -> Vec<Case> {
    let mut cases = of_sample(
        "vpc",
        true,
        &[
            row(
                35,
                "block_size",
                544,
                4,
                &[0, 128, 0x1234_5678, 0x8000_0000, HUGE],
                Refused,
            ),
            row(35, "max_table_entries", 540, 4, &[0, HUGE, 1 << 28], Refused),
            row(
                35,
                "table_offset",
                528,
                8,
                &[u64::MAX, 1 << 63, 1 << 40, u64::MAX - 511],
                Refused,
            ),
            row(35, "header cookie", 512, 8, &[0, u64::MAX], Refused),
            row(35, "header version", 536, 4, &[0, 0x2_0000, HUGE], Refused),
            row(35, "table entry", 1536, 4, &[0x7fff_ffff, HUGE - 1, 0, 1], Damaged),
        ],
    );
    cases.extend(footers());
    cases.extend(fixed());
    cases.extend(sums());
    cases
}

/// Values in both footers of a dynamic disk.
fn footers() -> Vec<Case> {
    let rows: &[(&str, usize, usize, &[u64])] = &[
        (
            "data_offset",
            16,
            8,
            &[u64::MAX - 1, 0, 1 << 63, 1 << 40, u64::MAX - 511],
        ),
        ("type", 60, 4, &[0, 1, 4, 5, 6, HUGE]),
        ("version", 12, 4, &[0, 0x2_0000, HUGE]),
        ("current_size", 48, 8, &[u64::MAX, 1 << 63, 1 << 50]),
    ];
    let mut cases = Vec::new();
    for (field, at, width, values) in rows {
        for value in *values {
            let mut bytes = sample("vpc");
            put(&mut bytes, *at as i64, *width, *value, true);
            put(&mut bytes, *at as i64 - 512, *width, *value, true);
            cases.push(case(35, "vpc", format!("{field} = {value:#x}"), bytes, Refused));
        }
    }
    cases
}

/// Values in the footer of a fixed disk, made by a program whose sizes count rather than its geometry.
fn fixed() -> Vec<Case> {
    let good = sample_with("vpc", &[("subformat", "fixed")]);
    let rows: &[(&str, i64, usize, &[u64])] = &[
        ("current_size", 48 - 512, 8, &[u64::MAX, 1 << 63, 1 << 40, 1 << 30]),
        ("type", 60 - 512, 4, &[0, 4, 5, HUGE]),
    ];
    let mut cases = Vec::new();
    for (field, at, width, values) in rows {
        for value in *values {
            let mut bytes = good.clone();
            let creator = bytes.len() - 512 + 28;
            bytes[creator..creator + 4].copy_from_slice(b"win ");
            put(&mut bytes, *at, *width, *value, true);
            cases.push(case(35, "vpc", format!("fixed, {field} = {value:#x}"), bytes, Refused));
        }
    }
    cases
}

/// Wrong sums, and footers that differ.
fn sums() -> Vec<Case> {
    let raw = |what: &str, bytes: Vec<u8>, verdict| Case {
        number: 35,
        what: what.to_owned(),
        format: "vpc",
        file: bytes.into(),
        verdict,
    };
    let with = |places: &[i64]| {
        let mut bytes = sample("vpc");
        for at in places {
            let at = usize::try_from(*at).unwrap_or_else(|_| bytes.len() - at.unsigned_abs() as usize);
            bytes[at] ^= 0x55;
        }
        bytes
    };
    let mut front_only = sample("vpc");
    front_only.truncate(front_only.len() - 512);
    let mut no_footer = front_only.clone();
    no_footer[..512].fill(0);
    vec![
        raw("both footer sums wrong", with(&[64, 64 - 512]), Damaged),
        raw("header sum wrong", with(&[512 + 36]), Refused),
        raw("footers differ", with(&[70]), Damaged),
        raw("only the footer in front", front_only, Damaged),
        raw("no footer at all", no_footer, Refused),
    ]
}
