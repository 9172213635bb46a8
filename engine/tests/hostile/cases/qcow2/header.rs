//! Header extensions, names, feature bits and data files.

use super::super::rows::put;
use super::super::{Case, Verdict::*};
use super::{HUGE, q, with};
use crate::samples::sample;

pub const DATA_FILE: u32 = 0x4441_5441;
pub const FORMAT: u32 = 0xe279_2aca;
pub const NAMES: u32 = 0x6803_f857;
pub const BITMAPS: u32 = 0x2385_2875;
pub const LUKS: u32 = 0x0537_be77;

/// Extensions behind the header in place of the feature names: kind, length, data.
pub fn extension(list: &[(u32, u32, &[u8])]) -> Vec<u8> {
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

pub fn extensions() -> Vec<Case> {
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

pub fn backing() -> Vec<Case> {
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

pub fn features() -> Vec<Case> {
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

pub fn data_files() -> Vec<Case> {
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
