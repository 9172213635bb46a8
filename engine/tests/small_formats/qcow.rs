//! qcow (version 1) against qemu-img and the corpus.

use std::sync::Arc;

use e2e::tools::{arg, have, ok, run};
use proptest::prelude::*;
use tempfile::TempDir;
use vdisk_engine::image::{ExtentKind, NothingBelow, Repair};
use vdisk_engine::storage::MemoryStorage;
use vdisk_engine::{Control, ErrorKind};

use crate::support::{self, *};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_image_behaves_as_a_byte_array(ops in ops(200 << 10)) {
        behaves_as_bytes("qcow", created("qcow", 200 << 10, &[]), &ops);
    }

    #[test]
    fn no_flipped_bytes_make_it_panic(flips in flips()) {
        let storage = created("qcow", 4 << 20, &[]);
        let image = open_rw(storage.clone(), "qcow").unwrap();
        image.write(5000, &[9; 20_000], &NothingBelow).unwrap();
        image.write_compressed(1 << 20, &[8; 4096]).unwrap();
        image.close().unwrap();
        never_panics("qcow", &storage.contents(), 48 + 16, &flips);
    }
}

#[test]
fn created_files_are_those_of_qemu_img() {
    if !have(&["qemu-img"]) {
        return;
    }
    let dir = TempDir::new().unwrap();
    for (size, backing) in [
        (512, None),
        (10 << 20, None),
        ((3 << 30) + 512, None),
        (5 << 20, Some("base.raw")),
    ] {
        std::fs::write(dir.path().join("base.raw"), [0; 512]).unwrap();
        let theirs = dir.path().join("theirs.qcow");
        let size_text = format!("{size}");
        let mut args = vec!["create", "-q", "-f", "qcow"];
        if let Some(name) = backing {
            args.extend(["-b", name, "-F", "raw"]);
        }
        args.extend([arg(&theirs), &size_text]);
        ok("qemu-img", &args);
        let ours = Arc::new(MemoryStorage::empty());
        create_on(ours.clone(), "qcow", size, &[], backing.map(|b| (b, "raw")));
        assert_eq!(std::fs::read(&theirs).unwrap(), ours.contents(), "{size} {backing:?}");
    }
}

#[test]
fn qemu_reads_the_compressed_clusters_we_write() {
    if !have(&["qemu-img"]) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let (path, raw) = (dir.path().join("a.qcow"), dir.path().join("a.raw"));
    let data = pattern((3 << 20) + 512);
    std::fs::write(&raw, &data).unwrap();
    create_on(file(&path, true), "qcow", data.len() as u64, &[], None);
    bulk_fill("qcow", file(&path, true), &data);
    ok(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "qcow", arg(&raw), arg(&path)],
    );
    assert!(std::fs::metadata(&path).unwrap().len() < data.len() as u64 / 2);
}

#[test]
fn we_read_and_overwrite_the_compressed_clusters_of_qemu() {
    if !have(&["qemu-img"]) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let (path, raw) = (dir.path().join("a.qcow"), dir.path().join("a.raw"));
    let mut data = pattern(2 << 20);
    std::fs::write(&raw, &data).unwrap();
    // qemu-img reports an error at the very end, after it wrote everything.
    run(
        "qemu-img",
        &["convert", "-c", "-f", "raw", "-O", "qcow", arg(&raw), arg(&path)],
    );
    let chain = support::chain(&[(&path, "qcow")], true);
    assert!(content(&chain) == data);
    let compressed = chain.extent(200_704, 4096).unwrap();
    assert_eq!(compressed.kind, ExtentKind::Compressed);
    chain.write(200_000, &[5; 10_000]).unwrap();
    chain.top().close().unwrap();
    data[200_000..210_000].fill(5);
    assert!(content(&chain) == data);
    drop(chain);
    std::fs::write(&raw, &data).unwrap();
    ok(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "qcow", arg(&raw), arg(&path)],
    );
}

#[test]
fn copy_on_write_takes_the_rest_from_below_and_emptying_shows_it_again() {
    if !have(&["qemu-img"]) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let (base, top) = (dir.path().join("base.raw"), dir.path().join("top.qcow"));
    let mut model = pattern(1 << 20);
    std::fs::write(&base, &model).unwrap();
    create_on(file(&top, true), "qcow", 1 << 20, &[], Some((arg(&base), "raw")));
    let chain = support::chain(&[(&top, "qcow"), (&base, "raw")], true);
    chain.write(70_001, &[7; 90_000]).unwrap();
    chain.write_zeroes(300_000, 200_000, true).unwrap();
    chain.top().close().unwrap();
    model[70_001..160_001].fill(7);
    model[300_000..500_000].fill(0);
    assert!(content(&chain) == model);
    let flat = dir.path().join("flat.raw");
    ok(
        "qemu-img",
        &["convert", "-U", "-f", "qcow", "-O", "raw", arg(&top), arg(&flat)],
    );
    assert!(std::fs::read(&flat).unwrap() == model);
    chain.top().make_empty().unwrap();
    assert!(content(&chain) == std::fs::read(&base).unwrap());
}

#[test]
fn a_crash_at_any_change_keeps_what_was_flushed() {
    let fresh = created("qcow", 64 << 10, &[]).contents();
    survives_crashes("qcow", fresh, &crash_script(4096), |_| ());
}

#[test]
fn the_corpus_reads_as_its_manifest_says() {
    corpus_matches(&["qcow"], "qcow");
}

/// Secrets by id: all are the same.
struct Passphrase;

impl vdisk_engine::env::Secrets for Passphrase {
    fn get(&self, _id: &str) -> vdisk_engine::Result<zeroize::Zeroizing<Vec<u8>>> {
        Ok(b"letmein".to_vec().into())
    }
}

fn open_encrypted(path: &std::path::Path, key: bool) -> vdisk_engine::Result<Box<dyn vdisk_engine::Image>> {
    let limits = vdisk_engine::Limits::default();
    let env = vdisk_engine::OpenEnv::closed(&limits)
        .with_secrets(&Passphrase)
        .writable();
    let options = vdisk_engine::storage::FileOptions::write();
    let storage = vdisk_engine::storage::FileStorage::open(path, options)?;
    let with = match key {
        true => vdisk_engine::options::Options::new().with("encrypt.key-secret", "s"),
        false => vdisk_engine::options::Options::new(),
    };
    vdisk_engine::formats::by_name("qcow")?.open(std::sync::Arc::new(storage), &with, &env)
}

#[test]
fn encrypted_images_go_both_ways_with_qemu() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("aes.qcow");
    let secret = ["--object", "secret,id=s,data=letmein"];
    let options = "encrypt.format=aes,encrypt.key-secret=s";
    let image = format!("driver=qcow,encrypt.key-secret=s,file.filename={}", arg(&path));
    ok(
        "qemu-img",
        &[
            &["create", "-q", "-f", "qcow"],
            &secret[..],
            &["-o", options, arg(&path), "1M"],
        ]
        .concat(),
    );
    let writes = ["-c", "write -P 1 0 100000", "-c", "write -c -P 2 200k 4k"];
    ok("qemu-io", &[&secret[..], &["--image-opts", &image], &writes].concat());
    let ours = open_encrypted(&path, true).unwrap();
    let mut model = vec![0; 1 << 20];
    model[..100_000].fill(1);
    model[200 << 10..204 << 10].fill(2);
    let mut seen = vec![0; 1 << 20];
    ours.read(0, &mut seen).unwrap();
    assert!(seen == model);
    for (at, len, byte) in [(99_990, 100, 3), (300_001, 9000, 4), (204_900, 5, 5)] {
        ours.write(at as u64, &vec![byte; len], &NothingBelow).unwrap();
        model[at..at + len].fill(byte);
    }
    ours.write_zeroes(1000, 2000, true, &NothingBelow).unwrap();
    model[1000..3000].fill(0);
    assert_eq!(
        ours.write_compressed(0, &[1; 4096]).unwrap_err().kind(),
        ErrorKind::Unsupported
    );
    ours.close().unwrap();
    drop(ours);
    let raw = dir.path().join("read.raw");
    ok(
        "qemu-img",
        &[
            &["convert"],
            &secret[..],
            &["--image-opts", &image, "-O", "raw", arg(&raw)],
        ]
        .concat(),
    );
    assert!(std::fs::read(raw).unwrap() == model);
    let locked = open_encrypted(&path, false).unwrap();
    assert!(locked.info().unwrap().encrypted);
    let error = locked.read(0, &mut [0; 512]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongKey);
    assert!(error.to_string().contains("encrypt.key-secret"), "{error}");
    assert!(locked.write(0, &[0; 512], &NothingBelow).is_err());
}

/// Where the first L2 table is: both headers have the place of the L1 table at offset 40.
fn first_table(format: &str, bytes: &[u8]) -> usize {
    let number = |at: usize| {
        let raw = bytes[at..at + 8].try_into().unwrap();
        if format == "qed" {
            u64::from_le_bytes(raw)
        } else {
            u64::from_be_bytes(raw)
        }
    };
    number(number(40) as usize) as usize
}

/// Two clusters whose L2 entries both name the first one's place.
fn two_clusters_in_one_place(format: &str, unit: usize) -> Arc<MemoryStorage> {
    let storage = created(format, 1 << 20, &[]);
    let image = open_rw(storage.clone(), format).unwrap();
    image.write(0, &vec![0x11; unit], &NothingBelow).unwrap();
    image.write(unit as u64, &vec![0x22; unit], &NothingBelow).unwrap();
    image.close().unwrap();
    let mut bytes = storage.contents();
    let table = first_table(format, &bytes);
    bytes.copy_within(table..table + 8, table + 8);
    Arc::new(MemoryStorage::new("image", bytes))
}

#[test]
fn no_write_changes_two_places() {
    for (format, unit) in [("qcow", 4096), ("qed", 65536)] {
        let storage = two_clusters_in_one_place(format, unit);
        let before = storage.contents();
        let image = open_rw(storage.clone(), format).unwrap();
        let mut seen = [0; 1];
        image.read(unit as u64, &mut seen).unwrap();
        assert_eq!(seen, [0x11], "{format}: the entries do not share a place");
        let report = image.check(Repair::No, &Control::default()).unwrap();
        assert_eq!(report.corruptions, 1, "{format}: {:?}", report.messages);
        for error in [
            image.write(0, &[9; 512], &NothingBelow).unwrap_err(),
            image.write_zeroes(unit as u64, 512, false, &NothingBelow).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{format}: {error}");
        }
        drop(image);
        assert!(storage.contents() == before, "{format}");
    }
}

#[test]
fn check_finds_places_over_each_other_and_outside() {
    let storage = created("qcow", 1 << 20, &[]);
    let image = open_rw(storage.clone(), "qcow").unwrap();
    image.write(0, &[1; 20_000], &NothingBelow).unwrap();
    for n in 0..9 {
        image
            .write_compressed((100 << 10) + n * 4096, &[n as u8; 4096])
            .unwrap();
    }
    image.close().unwrap();
    let report = image.check(Repair::No, &Control::default()).unwrap();
    assert_eq!(report.corruptions, 0, "{:?}", report.messages);
    assert_eq!(
        (report.allocated_clusters, report.compressed_clusters),
        (Some(14), Some(9))
    );
    let sound = storage.contents();
    let compressed = |offset: u64| (1u64 << 63 | 100 << (63 - 12) | offset).to_be_bytes();
    let table = first_table("qcow", &sound);
    let over = table as u64 - 512;
    for (entry, word) in [
        (over.to_be_bytes(), "over something else"),
        ((1u64 << 40).to_be_bytes(), "lies outside"),
        ((over + 1).to_be_bytes(), "not aligned"),
        (compressed(over), "over something else"),
    ] {
        let mut bytes = sound.clone();
        bytes[table..table + 8].copy_from_slice(&entry);
        let image = open_ro(Arc::new(MemoryStorage::new("image", bytes)), "qcow").unwrap();
        let report = image.check(Repair::No, &Control::default()).unwrap();
        let found = report.messages.join("\n");
        assert!(report.corruptions > 0 && found.contains(word), "{word}: {found}");
    }
}
