//! What create options do, and opening with a header of its own.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use e2e::tools::{arg, have, ok};
use tempfile::tempdir;
use vdisk_engine::crypto::luks::{KdfCost, KeyWork, measure_argon2};
use vdisk_engine::crypto::{Argon2Variant, Secret, legacy_qcow_cipher};
use vdisk_engine::env::Secrets;
use vdisk_engine::formats::MeasureSpec;
use vdisk_engine::gate::{Gate, Node, Reference};
use vdisk_engine::image::{NothingBelow, Preallocation, Resize};
use vdisk_engine::options::Options;
use vdisk_engine::storage::{Fault, FaultyStorage, MemoryStorage};
use vdisk_engine::{Error, ErrorKind, Image, Limits, OpenEnv, Result, StorageRef, formats};

use super::support::{One, create, create_new, create_on, file, open, open_on, pattern, read_all};

/// Opens files beside each other.
struct Folder<'a>(&'a Path);

impl Gate for Folder<'_> {
    fn open(&self, reference: &Reference<'_>) -> Result<Node> {
        Ok(Node::new(file(&self.0.join(reference.name)), "raw"))
    }
    fn create(&self, _: &Reference<'_>) -> Result<StorageRef> {
        Err(Error::denied("nothing is created here"))
    }
}

fn open_detached(folder: &Path) -> Result<Box<dyn Image>> {
    let (limits, secrets, gate) = (Limits::default(), One(b"letmein".to_vec()), Folder(folder));
    let env = OpenEnv::closed(&limits)
        .with_secrets(&secrets)
        .with_gate(&gate)
        .writable();
    let options = Options::new().with("key-secret", "s").with("header", "header");
    formats::by_name("luks")?.open(file(&folder.join("data")), &options, &env)
}

#[test]
fn a_detached_header_opens_the_data_as_qemu_reads_it() {
    if !have(&["qemu-img"]) {
        return;
    }
    let dir = tempdir().unwrap();
    let (header, data) = (dir.path().join("header"), dir.path().join("data"));
    create(&header, 0, Options::new().with("detached-header", "on"), "letmein").unwrap();
    std::fs::write(&data, vec![0; 1 << 20]).unwrap();
    let image = open_detached(dir.path()).unwrap();
    assert_eq!(image.virtual_size(), 1 << 20);
    let bytes = pattern(1 << 20, 5);
    image.write(0, &bytes, &NothingBelow).unwrap();
    image.close().unwrap();
    drop(image);
    let raw = dir.path().join("raw");
    let source = format!(
        "driver=luks,key-secret=s,file.filename={},header.driver=file,header.filename={}",
        arg(&data),
        arg(&header)
    );
    let secret = ["--object", "secret,id=s,data=letmein"];
    ok(
        "qemu-img",
        &[
            &["convert"],
            &secret[..],
            &["--image-opts", &source, "-O", "raw", arg(&raw)],
        ]
        .concat(),
    );
    assert!(std::fs::read(raw).unwrap() == bytes);
    assert_eq!(
        open(&header, "letmein").err().unwrap().kind(),
        ErrorKind::InvalidArgument
    );
}

#[test]
fn a_detached_luks2_header_opens_too() {
    let dir = tempdir().unwrap();
    let options = Options::new()
        .with("detached-header", "on")
        .with("version", "2")
        .with("pbkdf", "pbkdf2");
    create(&dir.path().join("header"), 0, options, "letmein").unwrap();
    std::fs::write(dir.path().join("data"), vec![0; 1 << 20]).unwrap();
    let image = open_detached(dir.path()).unwrap();
    image.write(0, &pattern(1 << 20, 6), &NothingBelow).unwrap();
    assert!(read_all(open_detached(dir.path()).unwrap().as_ref()) == pattern(1 << 20, 6));
}

#[test]
fn the_gate_decides_on_a_detached_header() {
    let dir = tempdir().unwrap();
    create(
        &dir.path().join("header"),
        0,
        Options::new().with("detached-header", "on"),
        "letmein",
    )
    .unwrap();
    std::fs::write(dir.path().join("data"), [0; 512]).unwrap();
    let (limits, secrets) = (Limits::default(), One(b"letmein".to_vec()));
    let env = OpenEnv::closed(&limits).with_secrets(&secrets);
    let options = Options::new().with("key-secret", "s").with("header", "header");
    let found = formats::by_name("luks")
        .unwrap()
        .open(file(&dir.path().join("data")), &options, &env);
    assert_eq!(found.err().unwrap().kind(), ErrorKind::Denied);
}

#[test]
fn full_preallocation_reads_as_zeroes() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("full.luks");
    create(&path, 1 << 20, Options::new().with("preallocation", "full"), "letmein").unwrap();
    assert!(
        read_all(open(&path, "letmein").unwrap().as_ref())
            .iter()
            .all(|byte| *byte == 0)
    );
}

/// What is written in parts of the last sector stands beside zeroes, not beside what zeroes decrypt to.
#[test]
fn a_disk_that_ends_inside_a_sector_reads_as_zeroes_behind_its_end() {
    let dir = tempdir().unwrap();
    for (number, (sector, more)) in [
        ("1024", Options::new()),
        ("2048", Options::new()),
        ("4096", Options::new()),
        ("4096", Options::new().with("preallocation", "falloc")),
        ("4096", Options::new().with("preallocation", "full")),
    ]
    .into_iter()
    .enumerate()
    {
        let path = dir.path().join(number.to_string());
        let options = more.with("version", "2").with("pbkdf", "pbkdf2");
        let options = options.with("sector-size", sector);
        let size = (1 << 20) + 512;
        create(&path, size, options.clone(), "letmein").unwrap();
        let image = open(&path, "letmein").unwrap();
        let data = pattern(size as usize, 4);
        image.write(0, &data, &NothingBelow).unwrap();
        let read = read_all(image.as_ref());
        assert_eq!(read.len() % sector.parse::<usize>().unwrap(), 0);
        assert!(
            read.starts_with(&data) && read[data.len()..].iter().all(|byte| *byte == 0),
            "{sector}"
        );
        let asked = MeasureSpec {
            virtual_size: size,
            data: &[],
            options: &options,
            backing: false,
        };
        let measured = formats::by_name("luks").unwrap().measure(&asked).unwrap();
        assert_eq!(measured.required, std::fs::metadata(&path).unwrap().len(), "{sector}");
    }
}

/// QEMU stores the hash that libvirt names for every IV generator; it means nothing to plain and plain64.
#[test]
fn a_hash_beside_an_iv_generator_without_one_is_stored_and_means_nothing() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("hash.luks");
    let options = Options::new()
        .with("ivgen-alg", "plain64")
        .with("ivgen-hash-alg", "sha256");
    let at_once = options.clone().with("iter-time", "0");
    create_on(create_new(&path), 1 << 20, at_once, "letmein").unwrap();
    let image = open(&path, "letmein").unwrap();
    image.write(0, &pattern(1 << 20, 8), &NothingBelow).unwrap();
    let specific = image.info().unwrap().specific.unwrap();
    assert_eq!(specific["ivgen-alg"], "plain64");
    assert!(!specific.contains_key("ivgen-hash-alg"));
    drop(image);
    let mut bytes = std::fs::read(&path).unwrap();
    assert!(bytes[40..].starts_with(b"xts-plain64:sha256\0"));
    // Without the hash it is the same volume.
    bytes[40..72].fill(0);
    bytes[40..51].copy_from_slice(b"xts-plain64");
    std::fs::write(&path, bytes).unwrap();
    assert!(read_all(open(&path, "letmein").unwrap().as_ref()) == pattern(1 << 20, 8));
    let two = dir.path().join("two.luks");
    let options = options.with("version", "2").with("pbkdf", "pbkdf2");
    create(&two, 1 << 20, options, "letmein").unwrap();
    open(&two, "letmein").unwrap();
}

#[test]
fn growth_that_finds_no_space_leaves_the_volume_as_it_was() {
    let memory = Arc::new(MemoryStorage::empty());
    let options = Options::new().with("iterations", "1000").with("cipher-alg", "aes-128");
    create_on(memory.clone(), 1 << 16, options, "letmein").unwrap();
    let storage = Arc::new(FaultyStorage::new(memory.contents()));
    let image = open_on(storage.clone(), b"letmein").unwrap();
    let full = Resize {
        virtual_size: 1 << 20,
        preallocation: Preallocation::Full,
        ..Resize::default()
    };
    // After the new length, the first zeroes.
    storage.plan(1, Fault::FailOnce(std::io::ErrorKind::StorageFull));
    assert_eq!(image.resize(&full).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(image.virtual_size(), 1 << 16);
    assert!(storage.contents() == memory.contents());
    let metadata = Resize {
        preallocation: Preallocation::Metadata,
        ..full
    };
    assert_eq!(image.resize(&metadata).unwrap_err().kind(), ErrorKind::Unsupported);
    image.resize(&full).unwrap();
    let mut grown = vec![1; (1 << 20) - (1 << 16)];
    image.read(1 << 16, &mut grown).unwrap();
    assert!(grown.iter().all(|byte| *byte == 0));
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let dir = tempdir().unwrap();
    for (number, options) in [
        "cipher-alg=aes-512",
        "cipher-alg=cast5-128",
        "cipher-mode=gcm",
        "ivgen-alg=random",
        "ivgen-alg=essiv,ivgen-hash-alg=sha1",
        "ivgen-alg=plain64,ivgen-hash-alg=md6",
        "ivgen-alg=benbi,ivgen-hash-alg=sha256",
        "hash-alg=md5",
        "hash-alg=wp256",
        "iterations=4294967296",
        "iterations=4294967295",
        "version=3",
        "sector-size=4096",
        "version=2,sector-size=100",
        "version=2,pbkdf-memory=4T",
        "version=2,pbkdf=pbkdf2,pbkdf-memory=1M",
        "pbkdf=argon2id",
        "colour=red",
    ]
    .iter()
    .enumerate()
    {
        let mut set = Options::new();
        options
            .split(',')
            .filter_map(|pair| pair.split_once('='))
            .for_each(|(name, value)| set.set(name, value));
        let storage = create_new(&dir.path().join(number.to_string()));
        let found = create_on(storage, 1 << 20, set, "letmein")
            .err()
            .map(|error| error.kind());
        use ErrorKind::{InvalidArgument, LimitExceeded, Unsupported};
        assert!(
            matches!(found, Some(InvalidArgument | Unsupported | LimitExceeded)),
            "{options}: {found:?}"
        );
    }
}

#[test]
fn iter_time_takes_about_that_time() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("time.luks");
    create_on(
        create_new(&path),
        1 << 20,
        Options::new().with("iter-time", "200"),
        "letmein",
    )
    .unwrap();
    let image = open(&path, "letmein").unwrap();
    let iterations = image.key_slots().unwrap().list().unwrap()[0].iterations;
    let (limits, secrets) = (Limits::default(), One(Vec::new()));
    let elapsed = || secrets.elapsed();
    let work = KeyWork {
        elapsed: &elapsed,
        ..KeyWork::within(&limits)
    };
    let start = secrets.elapsed().unwrap();
    let hash = vdisk_engine::crypto::HashAlgorithm::Sha256;
    vdisk_engine::crypto::pbkdf2(hash, b"x", &[0; 32], iterations, &|| false, &mut [0; 64]).unwrap();
    let took = secrets.elapsed().unwrap() - start;
    // Other work on the machine may slow either measurement down.
    assert!(
        iterations > 1000 && took > Duration::from_millis(20) && took < Duration::from_secs(4),
        "{took:?}"
    );
    let time = Duration::from_millis(20);
    match measure_argon2(Argon2Variant::Argon2id, 1024, 1, time, &work).unwrap() {
        KdfCost::Argon2(_, cost) => assert!(cost.time >= 4 && cost.memory_kib == 1024),
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_a_clock_a_time_is_refused() {
    let limits = Limits::default();
    let work = KeyWork::within(&limits);
    assert!((work.elapsed)().is_none());
    let four = measure_argon2(Argon2Variant::Argon2i, 1024, 1, Duration::from_secs(9), &work).unwrap();
    assert!(matches!(four, KdfCost::Argon2(_, cost) if cost.time == 4));
}

#[test]
fn the_legacy_cipher_decrypts_what_qemu_put_into_a_qcow2() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = tempdir().unwrap();
    let path = dir.path().join("aes.qcow2");
    let secret = ["--object", "secret,id=s,data=letmein"];
    let options = "encrypt.format=aes,encrypt.key-secret=s";
    ok(
        "qemu-img",
        &[
            &["create", "-q", "-f", "qcow2"],
            &secret[..],
            &["-o", options, arg(&path), "1M"],
        ]
        .concat(),
    );
    let target = format!(
        "driver=qcow2,encrypt.key-secret=s,file.driver=file,file.filename={}",
        arg(&path)
    );
    ok(
        "qemu-io",
        &[&secret[..], &["--image-opts", &target, "-c", "write -P 7 65536 65536"]].concat(),
    );
    let cipher = legacy_qcow_cipher(&Secret::new(b"letmein".to_vec())).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let holds = |cluster: &[u8]| {
        let mut data = cluster.to_vec();
        data.len() == 65536 && cipher.decrypt(65536, &mut data).is_ok() && data.iter().all(|byte| *byte == 7)
    };
    assert!(bytes.chunks(65536).any(holds));
}
