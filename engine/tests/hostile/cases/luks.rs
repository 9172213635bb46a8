//! 42: LUKS1 fields and LUKS2 texts.

use super::rows::{case, of_sample, row};
use super::{Case, Verdict::*};
use crate::samples::sample_with;

const HUGE: u64 = 0xffff_ffff;
const COPY: usize = 0x4000;

pub fn cases() -> Vec<Case> {
    let mut cases = of_sample(
        "luks",
        true,
        &[
            row(42, "magic", 0, 4, &[0, HUGE], Refused),
            row(42, "version", 6, 2, &[0, 2, 3, 0xffff], Refused),
            row(42, "cipher, no text", 8, 8, &[u64::MAX, 0x1b5b_324a_0000_0000], Refused),
            row(42, "payload", 104, 4, &[0, 1, 7, HUGE], Refused),
            row(42, "key bytes", 108, 4, &[0, 1, 513, 1 << 20, HUGE], Refused),
            row(42, "iterations of the digest", 164, 4, &[0, HUGE], Refused),
            row(42, "iterations of a slot", 212, 4, &[0, HUGE], Refused),
            row(42, "slot state", 208, 4, &[0, 1, HUGE], Refused),
            row(42, "slot place", 248, 4, &[0, 1, HUGE, 1 << 30], Refused),
            row(42, "stripes", 252, 4, &[0, 1, 3999, HUGE], Refused),
            row(42, "second slot's state", 256, 4, &[1, HUGE], Refused),
            row(42, "second slot's place", 256 + 40, 4, &[0, 8, HUGE], Refused),
            row(42, "second slot's stripes", 256 + 44, 4, &[0, 1, HUGE], Refused),
        ],
    );
    for (field, at, text) in [
        ("cipher", 8, "cipher_null"),
        ("cipher", 8, "rot13"),
        ("mode", 40, "ecb"),
        ("mode", 40, "xts"),
        ("mode", 40, "plain64-xts"),
        ("hash", 72, "md5"),
        ("hash", 72, "crc32"),
    ] {
        let mut bytes = crate::samples::sample("luks");
        bytes[at..at + 32].fill(0);
        bytes[at..at + text.len()].copy_from_slice(text.as_bytes());
        cases.push(case(42, "luks", format!("{field} {text}"), bytes, Refused));
    }
    for (field, at, len) in [("cipher", 8, 32), ("mode", 40, 32), ("hash", 72, 32), ("UUID", 168, 40)] {
        let mut bytes = crate::samples::sample("luks");
        bytes[at..at + len].fill(b'a');
        cases.push(case(42, "luks", format!("{field} without NUL"), bytes, Refused));
    }
    cases.extend(second_version());
    cases
}

/// Replaces the JSON of both copies.
fn with_text(image: &[u8], text: &str) -> Vec<u8> {
    let mut image = image.to_vec();
    for copy in [0, COPY] {
        let area = &mut image[copy + 4096..copy + COPY];
        area.fill(0);
        let len = text.len().min(area.len());
        area[..len].copy_from_slice(&text.as_bytes()[..len]);
    }
    image
}

fn second_version() -> Vec<Case> {
    let options = [("version", "2"), ("pbkdf", "pbkdf2"), ("iterations", "1000")];
    let good = sample_with("luks", &options);
    let end = good[4096..].iter().position(|b| *b == 0).unwrap();
    let text = String::from_utf8(good[4096..4096 + end].to_vec()).unwrap();
    let mut cases = Vec::new();
    let mut add = |what: &str, text: &str| {
        cases.push(case(
            42,
            "luks",
            format!("LUKS2: {what}"),
            with_text(&good, text),
            Refused,
        ));
    };
    for (what, from, to) in [
        ("a key twice", "\"keyslots\":", "\"keyslots\":{},\"keyslots\":"),
        (
            "a segment in the header",
            "\"segments\":{\"0\":{",
            "\"segments\":{\"0\":{\"offset\":\"0\",",
        ),
        ("no iterations", "\"iterations\":1000", "\"iterations\":0"),
        ("endless iterations", "\"iterations\":1000", "\"iterations\":4294967295"),
        ("negative iterations", "\"iterations\":1000", "\"iterations\":-1"),
        ("fractional iterations", "\"iterations\":1000", "\"iterations\":1e3"),
        ("unknown derivation", "\"pbkdf2\"", "\"pbkdf3\""),
        ("ECB", "\"aes-xts-plain64\"", "\"aes-ecb\""),
        ("null cipher", "\"aes-xts-plain64\"", "\"cipher_null-ecb\""),
        ("one stripe", "\"stripes\":4000", "\"stripes\":1"),
        ("endless stripes", "\"stripes\":4000", "\"stripes\":4294967295"),
        ("unknown type of slot", "\"type\":\"luks2\"", "\"type\":\"luks9\""),
        ("no object", "{", "["),
    ] {
        assert!(text.contains(from), "{what}: {from} is not in {text}");
        add(what, &text.replace(from, to));
    }
    let memory = text.replace(
        "\"type\":\"pbkdf2\"",
        "\"type\":\"argon2id\",\"time\":4,\"memory\":4294967295,\"cpus\":4",
    );
    add("4 TiB for argon2", &memory);
    add("depth of 5,000", &format!("{}{}", "[".repeat(5000), "]".repeat(5000)));
    add("no text", "");
    add("an area without NUL", &"x".repeat(COPY));
    add("numbers as names", &text.replace("\"0\":", "\"00\":"));
    for size in [0u64, 1, 0x3fff, 0x4001, 0x800_0000, 1 << 63, u64::MAX] {
        let mut bytes = good.clone();
        bytes[8..16].copy_from_slice(&size.to_be_bytes());
        bytes[COPY + 8..COPY + 16].copy_from_slice(&size.to_be_bytes());
        cases.push(case(
            42,
            "luks",
            format!("LUKS2: header of {size:#x} bytes"),
            bytes,
            Refused,
        ));
    }
    cases
}
