//! Damaged and hostile encryption headers: each its own error, at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vdisk_engine::options::Options;
use vdisk_engine::storage::MemoryStorage;
use vdisk_engine::{ErrorKind, Limits, OpenEnv, formats};

use crate::support::{Files, Passphrase, encrypted};

/// Where the extension's place and length stand in an image without a layer below.
const PLACE: usize = 120;
const LEN: usize = 128;

fn sample(format: &'static str) -> Vec<u8> {
    let created = encrypted(format)
        .into_iter()
        .fold(Options::new(), |o, (name, value)| o.with(name, value));
    let storage = Arc::new(MemoryStorage::empty());
    Files::default().create_on(storage.clone(), 1 << 20, created, None);
    storage.contents()
}

fn header_at(bytes: &[u8]) -> usize {
    u64::from_be_bytes(bytes[PLACE..PLACE + 8].try_into().unwrap()) as usize
}

/// What opening with the passphrase, without it, and for metadata alone say; all must be quick.
fn kinds(bytes: &[u8]) -> [Option<ErrorKind>; 3] {
    let limits = Limits::untrusted();
    let start = Instant::now();
    let open = |with: &Options, metadata: bool| {
        let env = OpenEnv::closed(&limits).with_secrets(&Passphrase);
        let env = if metadata { env.metadata_only() } else { env };
        let storage = Arc::new(MemoryStorage::new("hostile", bytes.to_vec()));
        let opened = formats::by_name("qcow2").unwrap().open(storage, with, &env);
        opened.err().map(|e| e.kind())
    };
    let key = Options::new().with("encrypt.key-secret", "s");
    let all = [
        open(&key, false),
        open(&Options::new(), false),
        open(&Options::new(), true),
    ];
    let took = start.elapsed();
    assert!(took < Duration::from_secs(3), "took {took:?}");
    all
}

#[test]
fn a_luks_header_that_is_not_where_it_must_be_is_refused() {
    let good = sample("luks");
    assert_eq!(kinds(&good), [None; 3]);
    let end = good.len() as u64;
    let cases: [(&str, usize, u64); 8] = [
        ("at 0", PLACE, 0),
        ("not aligned", PLACE, 0x4_0200),
        ("at the end", PLACE, end),
        ("far behind the end", PLACE, 1 << 62),
        ("wraps around", PLACE, u64::MAX - 65_535),
        ("longer than the file", LEN, end),
        ("endless", LEN, u64::MAX),
        ("over the refcount table, which is no LUKS header", PLACE, 65_536),
    ];
    for (what, field, value) in cases {
        let mut bytes = good.clone();
        bytes[field..field + 8].copy_from_slice(&value.to_be_bytes());
        for kind in kinds(&bytes) {
            let kind = kind.unwrap_or_else(|| panic!("{what}: was opened"));
            assert!(
                matches!(kind, ErrorKind::Corrupt | ErrorKind::NotThisFormat),
                "{what}: {kind:?}"
            );
        }
    }
}

#[test]
fn method_and_extension_must_agree() {
    let mut bytes = sample("luks");
    bytes[35] = 1;
    assert_eq!(kinds(&bytes), [Some(ErrorKind::Corrupt); 3], "AES with a LUKS header");
    bytes[35] = 0;
    assert_eq!(
        kinds(&bytes),
        [Some(ErrorKind::Corrupt); 3],
        "no encryption with a LUKS header"
    );
    bytes[35] = 3;
    assert_eq!(kinds(&bytes), [Some(ErrorKind::Unsupported); 3], "an unknown method");
    let mut bytes = sample("aes");
    bytes[35] = 2;
    assert_eq!(kinds(&bytes), [Some(ErrorKind::Corrupt); 3], "LUKS without a header");
}

#[test]
fn what_is_wrong_inside_the_header_has_its_error() {
    let good = sample("luks");
    let start = header_at(&good);
    // Offsets from the LUKS1 specification, figure 1.
    let cases: [(&str, usize, &[u8], ErrorKind); 8] = [
        ("LUKS2", 6, &[0, 2], ErrorKind::Corrupt),
        ("version 3", 6, &[0, 3], ErrorKind::Unsupported),
        ("an unknown cipher", 8, b"rot13\0", ErrorKind::Unsupported),
        ("a cipher name without an end", 8, &[b'a'; 32], ErrorKind::Corrupt),
        ("an unknown hash", 72, b"crc32\0\0", ErrorKind::Unsupported),
        ("a key of 4 GiB", 108, &[0xff; 4], ErrorKind::Unsupported),
        (
            "digest iterations without end",
            164,
            &[0xff; 4],
            ErrorKind::LimitExceeded,
        ),
        ("slot iterations without end", 212, &[0xff; 4], ErrorKind::LimitExceeded),
    ];
    for (what, at, value, expected) in cases {
        let mut bytes = good.clone();
        bytes[start + at..start + at + value.len()].copy_from_slice(value);
        for kind in kinds(&bytes) {
            assert_eq!(kind, Some(expected), "{what}");
        }
    }
}

#[test]
fn key_material_outside_of_the_header_is_refused() {
    let good = sample("luks");
    let mut bytes = good.clone();
    // The header's own length ends inside the first slot.
    bytes[LEN..LEN + 8].copy_from_slice(&8192u64.to_be_bytes());
    assert!(
        matches!(kinds(&bytes)[0], Some(ErrorKind::Corrupt | ErrorKind::InvalidArgument)),
        "{:?}",
        kinds(&bytes)
    );
    // Damaged key material: nothing tells it from a wrong passphrase.
    let mut bytes = good;
    let material = header_at(&bytes) + 4096;
    bytes[material..material + 512].fill(0xee);
    assert_eq!(kinds(&bytes), [Some(ErrorKind::WrongKey), None, None]);
}

#[test]
fn an_image_cut_anywhere_does_not_panic() {
    let good = sample("luks");
    for len in (0..good.len()).step_by(4096).chain(0..600) {
        kinds(&good[..len]);
    }
}
