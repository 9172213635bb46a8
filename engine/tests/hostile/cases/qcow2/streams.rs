//! Compressed clusters.

use super::super::rows::put;
use super::super::{Case, Verdict::*};
use super::{COPIED, L1, L2, q, with};
use crate::samples::{sample, sample_with};

/// 24 and 25: compressed clusters whose stream is not what it must be.
pub fn streams() -> Vec<Case> {
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
