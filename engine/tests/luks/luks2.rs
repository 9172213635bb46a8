//! LUKS2 with cryptsetup.

use std::path::Path;
use std::sync::Arc;

use e2e::tools::{arg, have, ok, run};
use tempfile::tempdir;
use vdisk_engine::crypto::luks::{EraseKeys, KdfCost, NewKey};
use vdisk_engine::crypto::{Argon2Cost, Argon2Variant};
use vdisk_engine::image::NothingBelow;
use vdisk_engine::options::Options;
use vdisk_engine::storage::MemoryStorage;
use vdisk_engine::{Control, ErrorKind, Limits, image::Repair};

use super::support::{create, file, key_env, metadata, open, open_on, pattern, read_all};

const SIZE: u64 = 1 << 20;

fn luks2(pbkdf: &str) -> Options {
    Options::new().with("version", "2").with("pbkdf", pbkdf)
}

fn cheap_argon2(pbkdf: &str) -> Options {
    luks2(pbkdf).with("pbkdf-memory", "1M").with("pbkdf-parallel", "2")
}

fn cryptsetup_opens(path: &Path, passphrase: &str) -> bool {
    let key = path.with_extension("key");
    std::fs::write(&key, passphrase).unwrap();
    let out = run(
        "cryptsetup",
        &["open", "--test-passphrase", "--key-file", arg(&key), arg(path)],
    );
    let code = out.status.code();
    assert!(matches!(code, Some(0 | 2)), "{}", String::from_utf8_lossy(&out.stderr));
    code == Some(0)
}

#[test]
fn cryptsetup_opens_and_dumps_what_we_create() {
    if !have(&["cryptsetup"]) {
        return;
    }
    let dir = tempdir().unwrap();
    for (pbkdf, more) in [
        ("pbkdf2", Options::new().with("hash-alg", "sha512")),
        ("argon2i", Options::new().with("sector-size", "4096")),
        (
            "argon2id",
            Options::new().with("cipher-alg", "aes-128").with("sector-size", "2048"),
        ),
        (
            "pbkdf2",
            Options::new().with("cipher-mode", "cbc").with("ivgen-alg", "essiv"),
        ),
    ] {
        let path = dir.path().join("ours.luks");
        let mut options = if pbkdf == "pbkdf2" {
            luks2(pbkdf)
        } else {
            cheap_argon2(pbkdf)
        };
        more.iter().for_each(|(name, value)| options.set(name, value));
        let count = if pbkdf == "pbkdf2" { "1000" } else { "4" };
        let storage = super::support::create_new(&path);
        super::support::create_on(storage, SIZE, options.with("iterations", count), "letmein").unwrap();
        assert!(
            cryptsetup_opens(&path, "letmein") && !cryptsetup_opens(&path, "wrong"),
            "{pbkdf}"
        );
        let dump = ok("cryptsetup", &["luksDump", arg(&path)]);
        assert!(
            dump.contains("Version:       \t2") && dump.contains(&format!("PBKDF:      {pbkdf}\n")),
            "{dump}"
        );
        let image = open(&path, "letmein").unwrap();
        let data = pattern(SIZE as usize, 3);
        image.write(0, &data, &NothingBelow).unwrap();
        image.write(777, &[1; 9000], &NothingBelow).unwrap();
        let mut expected = data;
        expected[777..9777].fill(1);
        assert!(read_all(open(&path, "letmein").unwrap().as_ref()) == expected);
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn keys_go_both_ways_with_cryptsetup() {
    if !have(&["cryptsetup"]) {
        return;
    }
    let dir = tempdir().unwrap();
    let (path, first, second) = (
        dir.path().join("c.luks"),
        dir.path().join("first"),
        dir.path().join("second"),
    );
    std::fs::write(&first, "first").unwrap();
    std::fs::write(&second, "second").unwrap();
    std::fs::write(&path, vec![0; 20 << 20]).unwrap();
    let argon2 = [
        "--pbkdf",
        "argon2id",
        "--pbkdf-memory",
        "1024",
        "--pbkdf-force-iterations",
        "4",
    ];
    let format = [
        "luksFormat",
        "--type",
        "luks2",
        "-q",
        "--sector-size",
        "4096",
        arg(&path),
        arg(&first),
    ];
    ok("cryptsetup", &[&format[..], &argon2].concat());
    let pbkdf2 = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];
    ok(
        "cryptsetup",
        &[
            &["luksAddKey", "--key-file", arg(&first), arg(&path), arg(&second)][..],
            &pbkdf2,
        ]
        .concat(),
    );
    assert!(open(&path, "first").is_ok() && open(&path, "second").is_ok());

    let limits = Limits::default();
    let image = metadata(file(&path), &limits).unwrap();
    let (slots, env) = (image.key_slots().unwrap(), key_env(&limits));
    let argon2 = KdfCost::Argon2(
        Argon2Variant::Argon2id,
        Argon2Cost {
            time: 4,
            memory_kib: 1024,
            lanes: 4,
        },
    );
    let third = NewKey {
        passphrase: b"third",
        slot: None,
        cost: argon2,
        overwrite: false,
    };
    assert_eq!(slots.add(b"second", &third, &env).unwrap(), 2);
    assert!(cryptsetup_opens(&path, "third") && cryptsetup_opens(&path, "first"));
    let fourth = NewKey {
        passphrase: b"fourth",
        cost: KdfCost::Iterations(5),
        ..third
    };
    assert_eq!(slots.change(b"first", &fourth, &env).unwrap(), 3);
    // As the slot that opened the volume.
    let made = slots.list().unwrap().into_iter().find(|slot| slot.number == 3).unwrap();
    assert_eq!((made.kdf, made.iterations, made.memory_kib), ("argon2id", 5, 1024));
    let timed = NewKey {
        passphrase: b"timed",
        cost: KdfCost::Time(std::time::Duration::from_millis(1)),
        ..third
    };
    let timed = slots.add(b"fourth", &timed, &env).unwrap();
    let made = slots
        .list()
        .unwrap()
        .into_iter()
        .find(|slot| slot.number == timed)
        .unwrap();
    assert_eq!((made.kdf, made.memory_kib), ("argon2id", 1024));
    assert_eq!(slots.erase(EraseKeys::Slot(timed), false, &env).unwrap(), [timed]);
    assert!(!cryptsetup_opens(&path, "first") && cryptsetup_opens(&path, "fourth"));
    assert_eq!(slots.erase(EraseKeys::Matching(b"third"), false, &env).unwrap(), [2]);
    assert!(!cryptsetup_opens(&path, "third") && cryptsetup_opens(&path, "second"));
    assert_eq!(slots.erase(EraseKeys::Slot(1), false, &env).unwrap(), [1]);
    assert_eq!(
        slots.erase(EraseKeys::Slot(3), false, &env).unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );
    ok("cryptsetup", &["luksDump", arg(&path)]);
    ok(
        "cryptsetup",
        &[
            "luksChangeKey",
            "--key-file",
            &{
                std::fs::write(&first, "fourth").unwrap();
                arg(&first).to_owned()
            },
            "--pbkdf",
            "pbkdf2",
            "--pbkdf-force-iterations",
            "1000",
            arg(&path),
            arg(&second),
        ],
    );
    assert!(open(&path, "second").is_ok());
}

#[test]
fn either_header_copy_alone_opens_the_volume_and_check_says_so() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("two.luks");
    create(&path, SIZE, luks2("pbkdf2"), "letmein").unwrap();
    let good = std::fs::read(&path).unwrap();
    for (at, name) in [
        (0, "first"),
        (5000, "first"),
        (0x4000, "second"),
        (0x4000 + 5000, "second"),
    ] {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        let storage = Arc::new(MemoryStorage::new("two", bytes));
        let image = open_on(storage.clone(), b"letmein").unwrap();
        let report = image.check(Repair::No, &Control::default()).unwrap();
        assert_eq!(report.corruptions, 1, "{at:#x}");
        assert!(report.messages[0].contains(name), "{:?}", report.messages);
    }
    let mut bytes = good;
    bytes[0] ^= 1;
    bytes[0x4000] ^= 1;
    assert!(open_on(Arc::new(MemoryStorage::new("none", bytes)), b"letmein").is_err());
}

#[test]
fn a_key_change_mends_a_damaged_copy() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("mend.luks");
    create(&path, SIZE, luks2("pbkdf2"), "letmein").unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4100] ^= 1;
    let storage = Arc::new(MemoryStorage::new("mend", bytes));
    let limits = Limits::default();
    let image = metadata(storage.clone(), &limits).unwrap();
    let new = NewKey {
        passphrase: b"new",
        slot: None,
        cost: KdfCost::Iterations(1000),
        overwrite: false,
    };
    image
        .key_slots()
        .unwrap()
        .add(b"letmein", &new, &key_env(&limits))
        .unwrap();
    let image = open_on(storage, b"new").unwrap();
    assert_eq!(image.check(Repair::No, &Control::default()).unwrap().corruptions, 0);
}

#[test]
fn a_header_that_lost_its_magic_is_still_luks_and_a_second_one_below_other_content_is_not() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("lost.luks");
    create(&path, SIZE, luks2("pbkdf2"), "letmein").unwrap();
    let good = std::fs::read(&path).unwrap();
    let detected = |bytes: Vec<u8>| {
        let found = vdisk_engine::formats::detect(&MemoryStorage::new("lost", bytes)).unwrap();
        found.first().map(|(driver, _)| driver.name())
    };
    let (mut lost, mut reused) = (good.clone(), good.clone());
    lost[..6].fill(0);
    reused[..4096].fill(0);
    assert_eq!(detected(good), Some("luks"));
    assert_eq!(detected(lost.clone()), Some("luks"));
    assert!(open_on(Arc::new(MemoryStorage::new("lost", lost)), b"letmein").is_ok());
    assert_eq!(detected(reused), Some("raw"));
}
