//! Persistent bitmaps.

use super::super::rows::put;
use super::super::{Case, Verdict::*};
use super::header::{BITMAPS, extension};
use super::{BLOCK, HUGE, q};
use crate::samples::sample_with;

pub fn bitmaps() -> Vec<Case> {
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
pub fn shared_bits() -> Vec<u8> {
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
