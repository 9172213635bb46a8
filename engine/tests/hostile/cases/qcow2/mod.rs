//! 1 to 31: qcow2. The sample has clusters of 64 KiB: header 0, refcount table 1, block 2, L1 3, L2 4, data 5 and 6.

mod bitmaps;
mod header;
mod rows;
mod streams;
mod tables;

use super::rows::{case, of_sample, put};
use super::{Case, Verdict, Verdict::*};
use crate::samples::sample;

const HUGE: u64 = 0xffff_ffff;
const COPIED: u64 = 1 << 63;
const L1: i64 = 0x3_0000;
const L2: i64 = 0x4_0000;
const BLOCK: i64 = 0x2_0000;

pub fn cases() -> Vec<Case> {
    let mut cases = of_sample("qcow2", true, rows::ROWS);
    cases.extend(header::extensions());
    cases.extend(header::backing());
    cases.extend(header::features());
    cases.extend(header::data_files());
    cases.extend(tables::tables());
    cases.extend(streams::streams());
    cases.extend(bitmaps::bitmaps());
    cases.push(q(
        27,
        "100 bitmaps of 64 MiB that share one cluster of bits",
        bitmaps::shared_bits(),
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
