//! 32 qcow, 33 qed, 34 vdi, 38 parallels, 39 bochs, 40 cloop.

use super::rows::{case, of_sample, put, row};
use super::{Case, Verdict::*};
use crate::samples::sample;

pub fn cases() -> Vec<Case> {
    [qcow(), qed(), vdi(), parallels(), bochs(), cloop()]
        .into_iter()
        .flatten()
        .collect()
}

const HUGE: u64 = 0xffff_ffff;

fn qcow() -> Vec<Case> {
    let mut cases = of_sample(
        "qcow",
        true,
        &[
            row(32, "version", 4, 4, &[0, 2, 3, HUGE], Refused),
            row(32, "cluster_bits", 32, 1, &[0, 8, 17, 31, 63, 255], Refused),
            row(32, "l2_bits", 33, 1, &[0, 5, 14, 27, 64, 255], Refused),
            row(
                32,
                "size",
                24,
                8,
                &[0xeeee_eeee_eeee_eeee, i64::MAX as u64, u64::MAX, 1 << 56],
                Refused,
            ),
            row(32, "encryption", 36, 4, &[2, HUGE], Refused),
            row(32, "L1 offset", 40, 8, &[1 << 63, u64::MAX, 1 << 40], Refused),
            row(32, "L1 entry", 48, 8, &[1 << 40, u64::MAX >> 1, 0x1001], Damaged),
        ],
    );
    for len in [1024, 0x7fff_ffff, HUGE] {
        let mut bytes = sample("qcow");
        put(&mut bytes, 8, 8, 48, true);
        put(&mut bytes, 16, 4, len, true);
        cases.push(case(
            32,
            "qcow",
            format!("backing name of {len:#x} bytes"),
            bytes,
            Refused,
        ));
    }
    cases
}

fn qed() -> Vec<Case> {
    let mut cases = of_sample(
        "qed",
        false,
        &[
            row(33, "cluster_size", 4, 4, &[0, 1, 3, 2048, 1 << 27, HUGE], Refused),
            row(33, "table_size", 8, 4, &[0, 3, 17, 32, HUGE], Refused),
            row(33, "header_size", 12, 4, &[0, 1 << 20, HUGE], Refused),
            row(33, "features", 16, 8, &[8, 1 << 32, 1 << 63], Refused),
            row(33, "l1_table_offset", 40, 8, &[1, 0x1_0200, 1 << 63, u64::MAX], Refused),
            row(33, "image_size", 48, 8, &[1, 511, u64::MAX, i64::MAX as u64], Refused),
            row(33, "features: NEED_CHECK", 16, 8, &[2], ReadOnly),
            row(
                33,
                "L1 entry",
                0x1_0000,
                8,
                &[0x1_0000, 1 << 40, 0x5_0200, u64::MAX],
                Damaged,
            ),
        ],
    );
    for (offset, len) in [(HUGE, 8), (64, HUGE), (HUGE, HUGE), (64, 1 << 20)] {
        let mut bytes = sample("qed");
        put(&mut bytes, 16, 8, 1, false);
        put(&mut bytes, 56, 4, offset, false);
        put(&mut bytes, 60, 4, len, false);
        let what = format!("backing name at {offset:#x} of {len:#x} bytes");
        cases.push(case(33, "qed", what, bytes, Refused));
    }
    let mut cut = sample("qed");
    cut.truncate(512);
    cases.push(case(33, "qed", "truncated to 512 bytes", cut, Refused));
    cases
}

fn vdi() -> Vec<Case> {
    let mut cases = of_sample(
        "vdi",
        false,
        &[
            row(34, "signature", 64, 4, &[0, HUGE], Refused),
            row(34, "version", 68, 4, &[0, 0x1_0000, 0x2_0001, HUGE], Refused),
            row(
                34,
                "block_size",
                0x178,
                4,
                &[0, 1, (1 << 20) + 1, 1 << 31, HUGE],
                Refused,
            ),
            row(34, "blocks_in_image", 0x180, 4, &[0, 0x1fff_ff80, HUGE], Refused),
            row(
                34,
                "disk_size",
                0x170,
                8,
                &[(1 << 20) + 512, 1 << 40, i64::MAX as u64, u64::MAX],
                Refused,
            ),
            row(34, "offset_bmap", 0x154, 4, &[0, 3, HUGE, HUGE - 511], Refused),
            row(34, "offset_data", 0x158, 4, &[3, 0x200, HUGE], Refused),
            row(34, "offset_data", 0x158, 4, &[HUGE - 511], Damaged),
            row(34, "sector_size", 0x168, 4, &[0, 1, 513, 4096, HUGE], Refused),
            row(34, "uuid_link", 0x1a8, 8, &[1, u64::MAX], Refused),
            row(34, "uuid_parent", 0x1b8, 8, &[1, u64::MAX], Refused),
            row(34, "bmap[0]", 0x200, 4, &[0x7fff_ffff, 5], Damaged),
        ],
    );
    let mut twice = two_blocks();
    put(&mut twice, 0x204, 4, 0, false);
    cases.push(case(34, "vdi", "two equal map entries", twice, Damaged));
    cases
}

/// A VDI image with two blocks of data.
fn two_blocks() -> Vec<u8> {
    let mut bytes = sample("vdi");
    put(&mut bytes, 0x170, 8, 2 << 20, false);
    put(&mut bytes, 0x180, 4, 2, false);
    put(&mut bytes, 0x184, 4, 2, false);
    put(&mut bytes, 0x204, 4, 1, false);
    bytes.extend(vec![0; 1 << 20]);
    bytes
}

fn parallels() -> Vec<Case> {
    let mut cases = of_sample(
        "parallels",
        false,
        &[
            row(38, "magic", 0, 8, &[0, u64::MAX], Refused),
            row(38, "version", 16, 4, &[0, 1, 3, HUGE], Refused),
            row(38, "tracks", 28, 4, &[0, 0x7fff_ffff, HUGE], Refused),
            row(38, "bat_entries", 32, 4, &[0x1fff_ffff, 0x3fff_ffff, HUGE], Refused),
            row(38, "nb_sectors", 36, 8, &[1 << 63, u64::MAX, 1 << 55], Refused),
            row(38, "data_off", 48, 4, &[HUGE], Damaged),
            row(38, "inuse", 44, 4, &[0x746F_6E59], ReadOnly),
            // Opening for writing drops the extension without a look.
            row(38, "ext_off", 56, 8, &[1 << 40, u64::MAX, 1], Unreadable),
            row(38, "bat[0]", 64, 4, &[HUGE, 0x7fff_ffff], Damaged),
        ],
    );
    let mut bytes = sample("parallels");
    let second = bytes[64..68].to_vec();
    put(&mut bytes, 36, 8, 4096, false);
    put(&mut bytes, 32, 4, 2, false);
    bytes[68..72].copy_from_slice(&second);
    cases.push(case(38, "parallels", "two equal entries", bytes, Damaged));
    cases
}

fn bochs() -> Vec<Case> {
    of_sample(
        "bochs",
        false,
        &[
            row(39, "magic", 0, 8, &[0], Refused),
            row(39, "version", 64, 4, &[0, 0x3_0000, HUGE], Refused),
            row(39, "header size", 68, 4, &[0, 1, HUGE], Refused),
            row(39, "catalog", 72, 4, &[0, (1 << 20) + 1, 0x4000_0000, HUGE], Refused),
            row(39, "bitmap", 76, 4, &[HUGE, 0x8000_0000], Unreadable),
            row(39, "extent", 80, 4, &[0, 511, 0x80_0200, 1 << 31, HUGE], Refused),
            row(39, "disk size", 88, 8, &[1 << 63, u64::MAX, 1 << 62], Refused),
            row(39, "catalog entry", 512, 4, &[0x7fff_ffff, HUGE - 1], Unreadable),
            row(39, "second catalog entry (the first's)", 516, 4, &[0], ReadOnly),
        ],
    )
}

fn cloop() -> Vec<Case> {
    of_sample(
        "cloop",
        true,
        &[
            row(
                40,
                "block_size",
                128,
                4,
                &[0, 1, 513, 0xffff_fe00, HUGE, 1 << 27],
                Refused,
            ),
            row(40, "n_blocks", 132, 4, &[HUGE, 0x03ff_fffe, 0x1fff_ffff], Refused),
            row(
                40,
                "offsets[0]",
                136,
                8,
                &[1 << 40, u64::MAX, 1 << 63, 0, 100],
                Unreadable,
            ),
            row(
                40,
                "offsets[1]",
                144,
                8,
                &[0, 1, 1 << 40, u64::MAX, 1 << 63],
                Unreadable,
            ),
        ],
    )
}
