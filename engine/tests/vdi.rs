//! VDI against qemu-img, qemu-io and the corpus.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::sync::Arc;

use e2e::tools::{arg, have, ok};
use sha2::{Digest, Sha256};
use vdisk_engine::env::{CreateSpec, NoSecrets};
use vdisk_engine::gate::DenyAll;
use vdisk_engine::image::{ExtentKind, NothingBelow, Repair, Resize};
use vdisk_engine::options::Options;
use vdisk_engine::storage::{FileOptions, FileStorage};
use vdisk_engine::{Control, CreateEnv, Image, Limits, OpenEnv, formats};

fn create(path: &Path, size: u64, options: Options) {
    let storage = Arc::new(FileStorage::create_new(path, FileOptions::write()).unwrap());
    let counter = std::cell::Cell::new(1u8);
    let random = |bytes: &mut [u8]| {
        bytes
            .iter_mut()
            .for_each(|b| *b = counter.replace(counter.get().wrapping_mul(7).wrapping_add(3)))
    };
    let env = CreateEnv {
        gate: &DenyAll,
        limits: &Limits::default(),
        secrets: &NoSecrets,
        random: &random,
        now: 0,
    };
    let spec = CreateSpec {
        virtual_size: size,
        options,
        backing: None,
    };
    formats::by_name("vdi").unwrap().create(storage, &spec, &env).unwrap();
}

fn open(path: &Path, writable: bool) -> Box<dyn Image> {
    let options = if writable {
        FileOptions::write()
    } else {
        FileOptions::read()
    };
    let storage = Arc::new(FileStorage::open(path, options).unwrap());
    let limits = Limits::default();
    let mut env = OpenEnv::closed(&limits);
    env.writable = writable;
    formats::by_name("vdi")
        .unwrap()
        .open(storage, &Options::new(), &env)
        .unwrap()
}

fn contents(image: &dyn Image) -> Vec<u8> {
    let mut buf = vec![0; image.virtual_size() as usize];
    image.read(0, &mut buf).unwrap();
    buf
}

#[test]
fn new_images_have_the_header_fields_of_qemu_img() {
    if !have(&["qemu-img"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (number, (size, fixed)) in [
        (10 << 20, "off"),
        (2_560_000, "on"),
        (512, "off"),
        (0, "off"),
        (1000, "off"),
    ]
    .into_iter()
    .enumerate()
    {
        let (ours, theirs) = (
            dir.path().join(format!("o{number}")),
            dir.path().join(format!("t{number}")),
        );
        create(&ours, size, Options::new().with("static", fixed));
        let option = format!("static={fixed}");
        ok(
            "qemu-img",
            &["create", "-f", "vdi", "-o", &option, arg(&theirs), &size.to_string()],
        );
        let (mut a, mut b) = (std::fs::read(&ours).unwrap(), std::fs::read(&theirs).unwrap());
        for bytes in [&mut a, &mut b] {
            bytes[..64].fill(0); // text
            bytes[0x188..0x1a8].fill(0); // identities
        }
        assert!(a == b, "size {size} static {fixed}");
    }
}

#[test]
fn qemu_reads_what_we_write() {
    if !have(&["qemu-img"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (path, raw) = (dir.path().join("a.vdi"), dir.path().join("a.raw"));
    create(&path, (7 << 20) + 512, Options::new());
    let image = open(&path, true);
    for (offset, len, byte) in [(5 << 20, 3000, 1), (100, 2 << 20, 2), (7 << 20, 512, 3)] {
        image.write(offset, &vec![byte; len], &NothingBelow).unwrap();
    }
    image.write_zeroes(1 << 20, 4096, true, &NothingBelow).unwrap();
    image
        .resize(&Resize {
            virtual_size: 200 << 20,
            ..Resize::default()
        })
        .unwrap();
    image.close().unwrap();
    std::fs::write(&raw, contents(image.as_ref())).unwrap();
    drop(image);
    ok("qemu-img", &["check", "-f", "vdi", arg(&path)]);
    ok(
        "qemu-img",
        &["compare", "-f", "vdi", "-F", "raw", arg(&path), arg(&raw)],
    );
}

#[test]
fn we_read_what_qemu_writes() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (path, raw) = (dir.path().join("a.vdi"), dir.path().join("a.raw"));
    ok("qemu-img", &["create", "-f", "vdi", arg(&path), "20M"]);
    let io = [
        "-c",
        "write -P 1 3M 70k",
        "-c",
        "write -P 2 19M 1M",
        "-c",
        "write -P 3 0 512",
        "-c",
        "write -z 9M 2M",
    ];
    ok("qemu-io", &[&["-f", "vdi"][..], &io, &[arg(&path)]].concat());
    ok(
        "qemu-img",
        &["convert", "-f", "vdi", "-O", "raw", arg(&path), arg(&raw)],
    );
    let image = open(&path, false);
    assert!(contents(image.as_ref()) == std::fs::read(&raw).unwrap());
    let report = image.check(Repair::No, &Control::default()).unwrap();
    assert_eq!((report.corruptions, report.leaks), (0, 0));
}

#[test]
fn extents_are_those_of_qemu_img_map() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.vdi");
    ok("qemu-img", &["create", "-f", "vdi", arg(&path), "20M"]);
    let io = [
        "-c",
        "write -P 1 3M 1M",
        "-c",
        "write -P 2 2M 1M",
        "-c",
        "write -P 3 19M 1M",
    ];
    ok("qemu-io", &[&["-f", "vdi"][..], &io, &[arg(&path)]].concat());
    let map: serde_json::Value =
        serde_json::from_str(&ok("qemu-img", &["map", "--output=json", "-f", "vdi", arg(&path)])).unwrap();
    let image = open(&path, false);
    for theirs in map.as_array().unwrap() {
        let (start, len) = (theirs["start"].as_u64().unwrap(), theirs["length"].as_u64().unwrap());
        let ours = image.extent(start, image.virtual_size() - start).unwrap();
        assert_eq!(ours.len, len, "{theirs}");
        match ours.kind {
            ExtentKind::Data { at, direct: true } => assert_eq!(at.map(|p| p.offset), theirs["offset"].as_u64()),
            ExtentKind::Zero { at: None } => assert_eq!(theirs["data"], false),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn corpus_images_have_the_content_of_the_manifest() {
    let Some(samples) = e2e::corpus::samples(&["vdi"]) else {
        return;
    };
    assert!(!samples.is_empty());
    for sample in samples {
        let image = open(&sample.path, false);
        let digest: String = Sha256::digest(contents(image.as_ref()))
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        assert_eq!(Some(digest.as_str()), sample.content_sha256(), "{}", sample.name());
    }
}

#[test]
fn growing_a_virtualbox_layout_uses_the_room_before_the_data() {
    let Some(samples) = e2e::corpus::samples(&["vdi"]) else {
        return;
    };
    let Some(sample) = samples.iter().find(|s| s.name().ends_with("hoho-os.vdi")) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.vdi");
    std::fs::copy(&sample.path, &path).unwrap();
    let before = contents(open(&path, false).as_ref());
    let image = open(&path, true);
    image
        .resize(&Resize {
            virtual_size: 64 << 20,
            ..Resize::default()
        })
        .unwrap();
    image.close().unwrap();
    assert!(contents(image.as_ref())[..before.len()] == before);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 3 << 20);
}
