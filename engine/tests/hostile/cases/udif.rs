//! 41: Apple's disk images (`dmg`).

use super::rows::{case, of, row};
use super::{Case, Verdict, Verdict::*};
use crate::inputs::dmg;
use crate::samples::sample;

const CHUNK: usize = 40;
const TABLE: usize = 204;
const ZLIB: u32 = 0x8000_0005;
const BZIP2: u32 = 0x8000_0006;
const LZFSE: u32 = 0x8000_0007;
const LZMA: u32 = 0x8000_0008;
const ADC: u32 = 0x8000_0004;
const RAW: u32 = 1;
const ZERO: u32 = 0;
const END: u32 = 0xffff_ffff;

pub fn cases() -> Vec<Case> {
    let good = sample("dmg");
    let mut cases = of(
        "dmg",
        true,
        &good,
        &[
            row(41, "sector count", 492 - 512, 8, &[1 << 63, u64::MAX, 1 << 56], Refused),
            row(
                41,
                "property list offset",
                216 - 512,
                8,
                &[1 << 63, u64::MAX, 1 << 40],
                Refused,
            ),
            row(
                41,
                "property list length",
                224 - 512,
                8,
                &[1 << 63, u64::MAX, 1 << 40],
                Refused,
            ),
            row(41, "data fork offset", 24 - 512, 8, &[1 << 63, u64::MAX], Refused),
            row(41, "segments", 60 - 512, 4, &[2, 0xffff_ffff], Refused),
            row(41, "magic", -512, 4, &[0, 0xffff_ffff], Refused),
        ],
    );
    cases.extend(lists());
    cases.extend(chunks());
    cases
}

/// A trailer behind data and a property list.
fn image(data: &[u8], xml: &[u8]) -> Vec<u8> {
    dmg(data, xml, 256)
}

fn list(blobs: &[String]) -> Vec<u8> {
    let items: String = blobs
        .iter()
        .map(|b| format!("<dict><key>Data</key><data>{b}</data></dict>"))
        .collect();
    format!(
        "<plist version=\"1.0\"><dict><key>resource-fork</key><dict><key>blkx</key><array>{items}</array></dict></dict></plist>"
    )
    .into_bytes()
}

fn lists() -> Vec<Case> {
    let laughs = "<!DOCTYPE x [<!ENTITY a \"aaaaaaaaaa\"><!ENTITY b \"&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;\"><!ENTITY c \
                  \"&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;\">]><plist>&c;&c;&c;</plist>";
    let outside = "<!DOCTYPE x [<!ENTITY a SYSTEM \"file:///etc/passwd\">]><plist>&a;</plist>";
    let deep = format!("<plist>{}{}</plist>", "<dict>".repeat(20_000), "</dict>".repeat(20_000));
    // A reader that looks for the end of each tag anew, or compares each attribute with all others, takes minutes for these.
    let unclosed = format!("{}{}", "<a ".repeat(600_000), "/>");
    let attributes: String = (0..60_000).map(|n| format!(" xmlns:a{n}='{n}'")).collect();
    let (text, bytes) = (b"<plist><dict></dict></plist>".to_vec(), vec![0xff; 600]);
    [
        ("entities of entities", laughs.as_bytes().to_vec()),
        ("an entity from a file", outside.as_bytes().to_vec()),
        ("20,000 levels", deep.into_bytes()),
        ("600,000 tags with one end", unclosed.into_bytes()),
        ("60,000 attributes", format!("<plist{attributes}/>").into_bytes()),
        ("no resource fork", text),
        ("no text", bytes),
        ("no base64", list(&["!!!!".to_owned()])),
        (
            "a table that is base64 of base64",
            list(&["ZFdSdWRXUnVkV1J1".to_owned()]),
        ),
        ("a table of nothing", list(&[String::new()])),
    ]
    .into_iter()
    .map(|(what, xml)| {
        case(
            41,
            "dmg",
            format!("property list: {what}"),
            image(&[5; 512], &xml),
            Refused,
        )
    })
    // What no chunk describes reads as zeroes.
    .chain([case(
        41,
        "dmg",
        "property list: no block table",
        image(&[5; 512], &list(&[])),
        Good,
    )])
    .collect()
}

/// kind, first sector, sectors, offset, length
type Chunk = (u32, u64, u64, u64, u64);

fn table(chunks: &[Chunk], claimed: u32) -> String {
    let mut blob = vec![0u8; TABLE];
    blob[..4].copy_from_slice(b"mish");
    blob[7] = 1;
    blob[16..24].copy_from_slice(&256u64.to_be_bytes());
    blob[200..204].copy_from_slice(&claimed.to_be_bytes());
    for (kind, first, sectors, offset, len) in chunks {
        let mut raw = [0; CHUNK];
        raw[..4].copy_from_slice(&kind.to_be_bytes());
        for (place, number) in [first, sectors, offset, len].into_iter().enumerate() {
            raw[8 + place * 8..16 + place * 8].copy_from_slice(&number.to_be_bytes());
        }
        blob.extend(raw);
    }
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(blob)
}

fn chunks() -> Vec<Case> {
    let end = (END, 256, 0, 0, 0);
    let mut lists: Vec<(String, Vec<Chunk>, Verdict)> = vec![
        ("sectors 2^63".into(), vec![(RAW, 0, 1 << 63, 0, 512)], Refused),
        (
            "a zero chunk of 2^62 sectors".into(),
            vec![(ZERO, 0, 1 << 62, 0, 0)],
            Refused,
        ),
        ("first sector 2^63".into(), vec![(RAW, 1 << 63, 1, 0, 512)], Refused),
        (
            "overlapping".into(),
            vec![(RAW, 0, 2, 0, 1024), (RAW, 1, 2, 0, 1024)],
            Refused,
        ),
        (
            "twice the same".into(),
            vec![(RAW, 0, 1, 0, 512), (RAW, 0, 1, 0, 512)],
            Refused,
        ),
        ("raw and too short".into(), vec![(RAW, 0, 256, 0, 512)], Unreadable),
        ("of unknown kind".into(), vec![(0x1234, 0, 256, 0, 512)], Unreadable),
        (
            "unknown compression".into(),
            vec![(0x8000_00ff, 0, 256, 0, 512)],
            Unreadable,
        ),
    ];
    for len in [1 << 63, u64::MAX, 1 << 40, (64 << 20) + 1] {
        lists.push((
            format!("of {len:#x} stored bytes"),
            vec![(ZLIB, 0, 256, 0, len)],
            Refused,
        ));
        lists.push((format!("stored at {len:#x}"), vec![(ZLIB, 0, 256, len, 512)], Refused));
    }
    for (name, kind) in [
        ("zlib", ZLIB),
        ("bzip2", BZIP2),
        ("LZFSE", LZFSE),
        ("LZMA", LZMA),
        ("ADC", ADC),
    ] {
        lists.push((format!("{name} of noise"), vec![(kind, 0, 256, 0, 512)], Unreadable));
        lists.push((format!("{name} of nothing"), vec![(kind, 0, 256, 0, 0)], Unreadable));
        lists.push((
            format!("{name} of 2^40 sectors"),
            vec![(kind, 0, 1 << 40, 0, 512)],
            Unreadable,
        ));
    }
    let mut cases: Vec<_> = lists
        .into_iter()
        .map(|(what, mut chunks, verdict)| {
            chunks.push(end);
            let xml = list(&[table(&chunks, chunks.len() as u32)]);
            case(41, "dmg", format!("chunk {what}"), image(&[0x77; 512], &xml), verdict)
        })
        .collect();
    for claimed in [2, 1 << 20, u32::MAX] {
        let xml = list(&[table(&[end], claimed)]);
        cases.push(case(
            41,
            "dmg",
            format!("{claimed:#x} chunks in a table of one"),
            image(&[7; 512], &xml),
            Refused,
        ));
    }
    cases
}
