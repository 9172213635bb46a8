//! dmg against qemu-img, dmg2img and the corpus.

use std::io::Write as _;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use e2e::tools::{arg, have, ok};
use proptest::prelude::*;
use tempfile::TempDir;
use vdisk_engine::image::{NothingBelow, Repair};
use vdisk_engine::storage::MemoryStorage;
use vdisk_engine::{Control, ErrorKind};

use crate::support::*;

fn filled(data: &[u8], subformat: &str) -> Vec<u8> {
    let storage = created("dmg", data.len() as u64, &[("subformat", subformat)]);
    bulk_fill("dmg", storage.clone(), data);
    storage.contents()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_flipped_bytes_make_it_panic(flips in flips(), ulfo in any::<bool>()) {
        let valid = filled(&pattern(300 << 10), if ulfo { "ULFO" } else { "UDZO" });
        never_panics("dmg", &valid, valid.len(), &flips);
    }

    #[test]
    fn no_flipped_bytes_of_the_trailer_make_it_panic(flips in flips()) {
        let mut valid = filled(&pattern(64 << 10), "UDZO");
        valid.rotate_right(512);
        let mut flipped = valid.clone();
        for (at, value, _) in &flips {
            flipped[at % 512] = *value;
        }
        flipped.rotate_left(512);
        never_panics("dmg", &flipped, 1, &[]);
    }
}

#[test]
fn the_corpus_reads_as_its_manifest_says() {
    corpus_matches(&["dmg"], "dmg");
}

#[test]
fn the_checksums_of_the_corpus_are_right() {
    let Some(samples) = e2e::corpus::samples(&["dmg"]) else {
        return;
    };
    for sample in samples.iter().filter(|s| s.virtual_size().is_some()) {
        let image = open_ro(file(&sample.path, false), "dmg").unwrap();
        let report = image.check(Repair::No, &Control::default()).unwrap();
        assert_eq!(
            (report.corruptions, report.check_errors),
            (0, 0),
            "{}: {:?}",
            sample.name(),
            report.messages
        );
    }
}

#[test]
fn a_trailer_is_found_where_something_was_added_behind_it() {
    let data = pattern(100 << 10);
    let valid = filled(&data, "UDZO");
    let found = |bytes: Vec<u8>| {
        let storage = MemoryStorage::new("m", bytes);
        vdisk_engine::formats::detect(&storage).unwrap()[0].0.name()
    };
    for more in [0, 1, 100, 512] {
        let bytes = [valid.clone(), vec![0; more]].concat();
        assert_eq!(found(bytes.clone()), "dmg", "{more}");
        matches_model(
            open_ro(Arc::new(MemoryStorage::new("m", bytes)), "dmg")
                .unwrap()
                .as_ref(),
            &data,
        );
    }
    assert_eq!(found([vec![0; 4096], b"koly".to_vec(), vec![7; 600]].concat()), "raw");
}

#[test]
fn an_encrypted_image_is_refused() {
    let Some(samples) = e2e::corpus::samples(&["enc-dmg"]) else {
        return;
    };
    let found = vdisk_engine::formats::detect(file(&samples[0].path, false).as_ref()).unwrap();
    assert_eq!(found[0].0.name(), "dmg");
    let error = open_ro(file(&samples[0].path, false), "dmg").err().unwrap();
    assert_eq!(error.kind(), vdisk_engine::ErrorKind::Unsupported);
}

#[test]
fn peers_read_what_we_write() {
    if !have(&["qemu-img", "dmg2img"]) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let (path, raw, out) = (
        dir.path().join("a.dmg"),
        dir.path().join("a.raw"),
        dir.path().join("out.raw"),
    );
    for size in [0, 512, (5 << 20) + 512] {
        let mut data = pattern(size);
        if size > 3 << 20 {
            data[1 << 20..2 << 20].fill(0);
        }
        std::fs::write(&raw, &data).unwrap();
        std::fs::write(&path, filled(&data, "UDZO")).unwrap();
        ok(
            "qemu-img",
            &["compare", "-f", "raw", "-F", "dmg", arg(&raw), arg(&path)],
        );
        if size > 512 {
            ok("dmg2img", &["-s", arg(&path), arg(&out)]);
            assert!(std::fs::read(&out).unwrap() == data, "dmg2img, {size} bytes");
        }
    }
}

#[test]
fn what_we_write_has_right_checksums() {
    for subformat in ["UDZO", "ULFO"] {
        let bytes = filled(&pattern((3 << 20) + 512), subformat);
        let image = open_ro(Arc::new(MemoryStorage::new("m", bytes.clone())), "dmg").unwrap();
        let report = image.check(Repair::No, &Control::default()).unwrap();
        assert_eq!(
            (report.corruptions, report.check_errors),
            (0, 0),
            "{:?}",
            report.messages
        );
        let mut bytes = bytes;
        bytes[5000] ^= 1;
        let image = open_ro(Arc::new(MemoryStorage::new("m", bytes)), "dmg").unwrap();
        let report = image.check(Repair::No, &Control::default()).unwrap();
        assert!(report.corruptions + report.check_errors > 0);
    }
}

#[test]
fn an_existing_image_is_not_opened_for_writing() {
    let bytes = filled(&pattern(1 << 20), "UDZO");
    assert!(open_rw(Arc::new(MemoryStorage::new("m", bytes)), "dmg").is_err());
    let image = open_rw(created("dmg", 1 << 20, &[]), "dmg").unwrap();
    assert!(image.write(0, &[1; 512], &NothingBelow).is_err());
}

/// The image with every chunk made one that is ignored.
fn ignoring_all(image: &[u8]) -> Vec<u8> {
    let koly = image.len() - 512;
    let (start, len) = (number_at(image, koly + 216), number_at(image, koly + 224));
    let plist = String::from_utf8(image[start..start + len].to_vec()).unwrap();
    let (head, rest) = plist.split_once("<data>\n").unwrap();
    let (data, tail) = rest.split_once("\n</data>").unwrap();
    let mut table = BASE64.decode(data.replace('\n', "")).unwrap();
    for chunk in table[204..].chunks_mut(40).filter(|c| c[0] != 0xff) {
        chunk[..4].copy_from_slice(&2u32.to_be_bytes());
    }
    let encoded = BASE64.encode(&table);
    let lines: Vec<_> = encoded.as_bytes().chunks(76).map(String::from_utf8_lossy).collect();
    let patched = format!("{head}<data>\n{}\n</data>{tail}", lines.join("\n"));
    assert_eq!(patched.len(), len);
    [&image[..start], patched.as_bytes(), &image[start + len..]].concat()
}

fn number_at(bytes: &[u8], at: usize) -> usize {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
}

#[test]
fn ignored_chunks_do_not_make_an_image_new() {
    for subformat in ["UDZO", "ULFO"] {
        let damaged = ignoring_all(&filled(&pattern(3 << 20), subformat));
        let storage = Arc::new(MemoryStorage::new("d.dmg", damaged.clone()));
        assert!(open_rw(storage.clone(), "dmg").is_err(), "{subformat}");
        assert!(storage.contents() == damaged, "{subformat}");
        let image = open_ro(storage, "dmg").unwrap();
        let mut bytes = vec![1; 3 << 20];
        image.read(0, &mut bytes).unwrap();
        assert!(bytes.iter().all(|b| *b == 0), "{subformat}");
    }
}

#[test]
fn a_new_image_that_gets_nothing_stays_as_it_is() {
    let storage = created("dmg", 3 << 20, &[]);
    let before = storage.contents();
    open_rw(storage.clone(), "dmg").unwrap().close().unwrap();
    assert!(storage.contents() == before);
    bulk_fill("dmg", storage.clone(), &pattern(3 << 20));
    assert!(storage.contents() != before);
}

/// An image of one chunk: bytes stored in some compression.
fn one_chunk(kind: u32, stored: &[u8], len: u64) -> Arc<MemoryStorage> {
    let mut table = b"mish".to_vec();
    table.extend(1u32.to_be_bytes());
    table.extend([0u64.to_be_bytes(), (len / 512).to_be_bytes(), 0u64.to_be_bytes()].concat());
    table.resize(200, 0);
    table.extend(1u32.to_be_bytes());
    table.extend([kind.to_be_bytes(), [0; 4]].concat());
    table.extend([0, len / 512, 0, stored.len() as u64].map(u64::to_be_bytes).concat());
    let base64 = BASE64.encode(table);
    let xml = format!(
        "<plist><dict><key>resource-fork</key><dict><key>blkx</key><array><dict><key>Data</key><data>{base64}</data>\
         </dict></array></dict></dict></plist>"
    );
    let mut koly = b"koly".to_vec();
    koly.extend([4u32.to_be_bytes(), 512u32.to_be_bytes()].concat());
    koly.resize(216, 0);
    koly.extend([(stored.len() as u64).to_be_bytes(), (xml.len() as u64).to_be_bytes()].concat());
    koly.resize(492, 0);
    koly.extend((len / 512).to_be_bytes());
    koly.resize(512, 0);
    Arc::new(MemoryStorage::new("m", [stored, xml.as_bytes(), &koly].concat()))
}

#[test]
fn a_trailer_that_claims_another_size_than_the_chunks_have_is_damage() {
    let sized = |sectors: u64| {
        let mut bytes = one_chunk(1, &[7; 4096], 4096).contents();
        let at = bytes.len() - 20;
        bytes[at..at + 8].copy_from_slice(&sectors.to_be_bytes());
        Arc::new(MemoryStorage::new("m", bytes))
    };
    let error = open_ro(sized(7), "dmg").err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    for (sectors, size, corruptions) in [(0, 4096, 0), (8, 4096, 0), (9, 4608, 1)] {
        let image = open_ro(sized(sectors), "dmg").unwrap();
        assert_eq!(image.virtual_size(), size);
        let report = image.check(Repair::No, &Control::default()).unwrap();
        assert_eq!(report.corruptions, corruptions, "{sectors}: {report:?}");
    }
}

/// Every compression of `data`, by chunk type.
fn packed(data: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    zlib.write_all(data).unwrap();
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(data).unwrap();
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 0);
    xz.write_all(data).unwrap();
    let mut lzfse = Vec::new();
    lzfse_rust::encode_bytes(data, &mut lzfse).unwrap();
    vec![
        (0x8000_0005, zlib.finish().unwrap()),
        (0x8000_0006, bzip2.finish().unwrap()),
        (0x8000_0007, lzfse),
        (0x8000_0008, xz.finish().unwrap()),
    ]
}

#[test]
fn chunks_larger_than_any_buffer_are_streamed() {
    let mut data = vec![0; 20 << 20];
    for (n, block) in data.chunks_mut(1 << 20).enumerate() {
        block[n * 7..n * 7 + 3].fill(n as u8 + 1);
    }
    for (kind, stored) in packed(&data) {
        let image = open_ro(one_chunk(kind, &stored, data.len() as u64), "dmg").unwrap();
        let mut seen = vec![0; 3 << 20];
        for at in [0, 3 << 20, 12 << 20, 17 << 20, 5] {
            image.read(at, &mut seen).unwrap();
            assert!(
                seen == data[at as usize..at as usize + seen.len()],
                "{kind:#x} at {at:#x}"
            );
        }
    }
}

#[test]
fn a_chunk_that_inflates_to_another_size_is_an_error() {
    let data = pattern(64 << 10);
    for (kind, stored) in packed(&data) {
        for len in [32 << 10, 128 << 10] {
            let image = open_ro(one_chunk(kind, &stored, len), "dmg").unwrap();
            let mut whole = vec![0; len as usize];
            assert!(image.read(0, &mut whole).is_err(), "{kind:#x} to {len}");
            assert!(image.read(512, &mut whole[..512]).is_err(), "{kind:#x} part of {len}");
        }
        let image = open_ro(one_chunk(kind, &stored[..stored.len() / 2], 64 << 10), "dmg").unwrap();
        assert!(image.read(0, &mut vec![0; 64 << 10]).is_err(), "{kind:#x} cut");
    }
}

#[test]
fn an_unknown_chunk_is_an_error_when_it_is_read() {
    let image = open_ro(one_chunk(0x8000_0009, &[1, 2], 4096), "dmg").unwrap();
    let error = image.read(0, &mut [0; 512]).unwrap_err();
    assert_eq!(error.kind(), vdisk_engine::ErrorKind::Unsupported);
}
