//! 37: VMDK: descriptors, sparse headers, streams.

use super::rows::{case, of, of_sample, row};
use super::{Case, Verdict::*};
use crate::samples::{sample, sample_with};

const HUGE: u64 = 0xffff_ffff;

pub fn cases() -> Vec<Case> {
    let mut cases = of_sample(
        "vmdk",
        false,
        &[
            row(37, "version", 4, 4, &[0, 4, 9, HUGE], Refused),
            row(37, "granularity", 20, 8, &[0, 3, 1 << 40, u64::MAX], Refused),
            row(37, "entries a table", 44, 4, &[0, 513, 1 << 29, HUGE], Refused),
            row(37, "capacity", 12, 8, &[1 << 63, u64::MAX, 1 << 53, 1 << 45], Refused),
            row(37, "descriptor offset", 28, 8, &[1 << 40, u64::MAX], Refused),
            row(37, "descriptor size", 36, 8, &[2049, 1 << 40, u64::MAX], Refused),
            row(
                37,
                "grain directory",
                56,
                8,
                &[0, u64::MAX - 1, u64::MAX, 1 << 40],
                Refused,
            ),
            row(37, "overhead", 64, 8, &[u64::MAX, 1 << 63], Refused),
            row(37, "newline test", 73, 4, &[0, HUGE], Refused),
        ],
    );
    cases.extend(descriptors());
    cases.extend(tables());
    let stream = sample_with("vmdk", &[("subformat", "streamOptimized")]);
    let footer = 1024;
    cases.extend(of(
        "vmdk",
        false,
        &stream,
        &[
            row(
                37,
                "stream: marker's sector",
                0x1_0000,
                8,
                &[1, 1 << 40, u64::MAX],
                Unreadable,
            ),
            row(
                37,
                "stream: marker's size",
                0x1_0008,
                4,
                &[0, 5, 1 << 20, HUGE],
                Unreadable,
            ),
            row(37, "stream: deflate", 0x1_000c, 8, &[0, u64::MAX], Unreadable),
            row(37, "stream: footer's magic", -footer, 4, &[0, HUGE], Refused),
            row(
                37,
                "stream: footer's capacity",
                12 - footer,
                8,
                &[0, 1, 1 << 63, u64::MAX],
                Refused,
            ),
            row(
                37,
                "stream: footer's granularity",
                20 - footer,
                8,
                &[0, 3, u64::MAX],
                Refused,
            ),
            row(
                37,
                "stream: footer's directory",
                56 - footer,
                8,
                &[0, 1 << 40, u64::MAX, u64::MAX - 1],
                Refused,
            ),
            row(37, "stream: compression", 77, 2, &[2, 0xffff], Refused),
        ],
    ));
    for end in [512, 1024, 1536] {
        let cut = stream[..stream.len() - end].to_vec();
        cases.push(case(
            37,
            "vmdk",
            format!("stream without its last {end} bytes"),
            cut,
            Refused,
        ));
    }
    cases
}

/// Directories and tables of a sparse extent that name each other's places. Both directories have one entry.
fn tables() -> Vec<Case> {
    let good = sample("vmdk");
    let word = |at: usize| u32::from_le_bytes(good[at..at + 4].try_into().unwrap());
    let (redundant, directory) = (word(48), word(56));
    let of = |directory: u32| (directory as usize * 512, word(directory as usize * 512));
    let ((twins_at, twin), (tables_at, table)) = (of(redundant), of(directory));
    let mut cases = Vec::new();
    let mut add = |what: String, at: usize, sector: u32, verdict| {
        let mut bytes = good.clone();
        bytes[at..at + 4].copy_from_slice(&sector.to_le_bytes());
        cases.push(case(37, "vmdk", what, bytes, verdict));
    };
    for sector in [1, 20, redundant, directory, table - 1, table + 3, 1 << 24, u32::MAX] {
        add(
            format!("redundant table at sector {sector}"),
            twins_at,
            sector,
            ReadOnly,
        );
    }
    add("table over the redundant one".to_owned(), tables_at, twin + 3, Damaged);
    let first = table as usize * 512;
    let second = word(first + 4);
    add("a grain named twice".to_owned(), first, second, Damaged);
    cases
}

const TEXT: &str = "# Disk DescriptorFile\nversion=1\nCID=0000abcd\nparentCID=ffffffff\ncreateType=\"custom\"\n\
                    # Extent description\nRW 128 FLAT \"f\" 0\n";

fn descriptors() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |what: &str, text: Vec<u8>| {
        cases.push(case(37, "vmdk", format!("descriptor: {what}"), text, Unreadable));
    };
    for kind in ["FLAT", "VMFS", "SPARSE", "VMFSSPARSE", "SESPARSE"] {
        for name in [
            "/etc/passwd",
            "../../x",
            "/dev/zero",
            "/proc/self/mem",
            "json:{}",
            "nbd://127.0.0.1/",
            "\u{202e}x",
            "",
        ] {
            let offset = if kind == "FLAT" { " 0" } else { "" };
            let line = format!("RW 128 {kind} \"{name}\"{offset}\n");
            add(
                line.trim_end(),
                TEXT.replace("RW 128 FLAT \"f\" 0\n", &line).into_bytes(),
            );
        }
    }
    for size in [
        "0",
        "-1",
        "9223372036854775807",
        "9223372036854775808",
        "18446744073709551616",
        "x",
        "",
    ] {
        add(
            &format!("extent of {size} sectors"),
            TEXT.replace("RW 128", &format!("RW {size}")).into_bytes(),
        );
    }
    for offset in ["-1", "18014398509481984", "18446744073709551615", "x"] {
        add(
            &format!("extent at {offset}"),
            TEXT.replace("\"f\" 0", &format!("\"f\" {offset}")).into_bytes(),
        );
    }
    let line = "RW 128 FLAT \"f\" 0\n";
    for (what, from, to) in [
        ("no extent", line, String::new()),
        (
            "80,000 extents of zeroes",
            line,
            format!("{}{line}", "RW 1 ZERO\n".repeat(80_000)),
        ),
        (
            "30,000 settings",
            line,
            format!("{line}{}", "ddb.adapterType = \"ide\"\n".repeat(30_000)),
        ),
        ("20,000 extents", line, line.repeat(20_000)),
        (
            "sectors that wrap",
            line,
            "RW 18014398509481983 FLAT \"f\" 0\n".repeat(3),
        ),
        ("no createType", "createType=\"custom\"\n", String::new()),
        ("createType of 70 characters", "custom", "x".repeat(70)),
        (
            "createType twice",
            "createType=\"custom\"\n",
            "createType=\"custom\"\n".repeat(2),
        ),
        ("a device", "custom", "fullDevice".to_owned()),
        ("NUL inside", "version=1", "version=1\0".to_owned()),
        ("no version", "version=1\n", String::new()),
        ("version 99", "version=1", "version=99".to_owned()),
        ("no CID", "CID=0000abcd\n", String::new()),
        (
            "parent without its name",
            "parentCID=ffffffff",
            "parentCID=0000abcd".to_owned(),
        ),
    ] {
        add(what, TEXT.replace(from, &to).into_bytes());
    }
    cases.push(case(
        37,
        "vmdk",
        "descriptor: ZERO alone",
        TEXT.replace(line, "RW 128 ZERO\n").into_bytes(),
        Good,
    ));
    let mut add = |what: &str, text: Vec<u8>| {
        cases.push(case(37, "vmdk", format!("descriptor: {what}"), text, Unreadable));
    };
    let mut binary = TEXT.as_bytes().to_vec();
    binary.extend([0xff, 0xfe, 0, 1, 2]);
    add("binary behind the text", binary);
    let mut huge = TEXT.as_bytes().to_vec();
    huge.resize((1 << 20) + 1, b'\n');
    add("1 MiB and one byte", huge);
    cases
}
