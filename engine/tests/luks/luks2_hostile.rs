//! Damaged and malicious LUKS2 headers, with right checksums.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use vdisk_engine::options::Options;
use vdisk_engine::storage::MemoryStorage;
use vdisk_engine::{ErrorKind, Limits};

use super::support::{create_on, metadata, open_on};

const COPY: usize = 0x4000;

pub fn valid() -> Vec<u8> {
    let memory = Arc::new(MemoryStorage::empty());
    let options = Options::new()
        .with("version", "2")
        .with("pbkdf", "pbkdf2")
        .with("iterations", "1000");
    create_on(memory.clone(), 1 << 20, options, "letmein").unwrap();
    memory.contents()
}

/// Puts a text in place of the JSON of both copies and mends their checksums.
pub fn with_text(image: &[u8], text: &[u8]) -> Vec<u8> {
    let mut image = image.to_vec();
    for copy in [0, COPY] {
        image[copy + 4096..copy + COPY].fill(0);
        image[copy + 4096..copy + 4096 + text.len()].copy_from_slice(text);
        image[copy + 448..copy + 512].fill(0);
        let sum = Sha256::digest(&image[copy..copy + COPY]);
        image[copy + 448..copy + 480].copy_from_slice(&sum);
    }
    image
}

pub fn json_of(image: &[u8]) -> Value {
    let text: Vec<_> = image[4096..COPY]
        .iter()
        .copied()
        .take_while(|byte| *byte != 0)
        .collect();
    serde_json::from_slice(&text).unwrap()
}

fn refusal(image: Vec<u8>) -> Option<ErrorKind> {
    let start = Instant::now();
    let opened = open_on(Arc::new(MemoryStorage::new("bad", image.clone())), b"letmein").err();
    let shown = metadata(Arc::new(MemoryStorage::new("bad", image)), &Limits::default()).err();
    assert!(start.elapsed() < Duration::from_secs(3), "took {:?}", start.elapsed());
    let (opened, shown) = (opened.map(|e| e.kind()), shown.map(|e| e.kind()));
    // A slot that we cannot use is no reason to hide the header.
    assert!(shown == opened || (opened, shown) == (Some(ErrorKind::Unsupported), None));
    opened
}

#[test]
fn every_bad_member_has_its_error_at_once() {
    use ErrorKind::{Corrupt, LimitExceeded, Unsupported};
    let good = valid();
    let argon2 = |memory: u64, time: u64| json!({"type": "argon2id", "time": time, "memory": memory, "cpus": 1, "salt": "AAAAAAAAAAA="});
    for (path, value, kind) in [
        ("/keyslots/0/area/offset", json!("0"), Corrupt),
        ("/keyslots/0/area/offset", json!("16777216"), Corrupt),
        ("/keyslots/0/area/offset", json!("18446744073709551615"), Corrupt),
        ("/keyslots/0/area/offset", json!(32768), Corrupt),
        ("/keyslots/0/area/size", json!("512"), Corrupt),
        ("/keyslots/0/area/encryption", json!("cipher_null-ecb"), Unsupported),
        ("/keyslots/0/area/key_size", json!(4_294_967_295_u32), Unsupported),
        ("/keyslots/0/key_size", json!(0), Corrupt),
        ("/keyslots/0/key_size", json!(4_294_967_295_u32), Corrupt),
        ("/keyslots/0/af/stripes", json!(1), Corrupt),
        ("/keyslots/0/af/hash", json!("md5"), Unsupported),
        ("/keyslots/0/kdf/iterations", json!(0), Corrupt),
        ("/keyslots/0/kdf/iterations", json!(4_294_967_295_u32), LimitExceeded),
        ("/keyslots/0/kdf", argon2(4_294_967_295, 4), LimitExceeded),
        ("/keyslots/0/kdf", argon2(1 << 20, 4_294_967_295), LimitExceeded),
        ("/keyslots/0/kdf/type", json!("scrypt"), Unsupported),
        ("/keyslots/0/kdf/salt", json!("*"), Corrupt),
        ("/digests/0/iterations", json!(4_294_967_295_u32), LimitExceeded),
        ("/digests/0/digest", json!(""), Corrupt),
        ("/digests/0/keyslots", json!(["00"]), Corrupt),
        ("/digests/0/segments", json!([]), Corrupt),
        ("/segments/0/encryption", json!("cipher_null-ecb"), Unsupported),
        ("/segments/0/offset", json!("4096"), Corrupt),
        ("/segments/0/offset", json!("16777217"), Corrupt),
        ("/segments/0/offset", json!("9223372036854775808"), Corrupt),
        ("/segments/0/size", json!("1099511627776"), Corrupt),
        ("/segments/0/sector_size", json!(0), Corrupt),
        ("/segments/0/sector_size", json!(8192), Corrupt),
        ("/segments/0/iv_tweak", json!("18446744073709551615"), Corrupt),
        ("/segments/0/type", json!("linear"), Unsupported),
        ("/segments/0/integrity", json!({"type": "hmac(sha256)"}), Unsupported),
        ("/segments", json!({}), Unsupported),
        ("/segments/1", json!({"type": "crypt"}), Unsupported),
        (
            "/config/requirements",
            json!({"mandatory": ["online-reencrypt-v2"]}),
            Unsupported,
        ),
        (
            "/config/requirements",
            json!({"mandatory": ["something-new"]}),
            Unsupported,
        ),
        ("/config/requirements", json!(["something-new"]), Corrupt),
        ("/config/requirements", json!({"mandatory": "something-new"}), Corrupt),
        ("/config/requirements", json!({"mandatory": [1]}), Corrupt),
        ("/digests/0/type", json!("something-new"), Unsupported),
        ("/config/json_size", json!("4096"), Corrupt),
        ("/config/keyslots_size", json!("18446744073709547520"), Corrupt),
        ("/tokens", json!([]), Corrupt),
    ] {
        let mut json = json_of(&good);
        let (parent, name) = path.rsplit_once('/').unwrap();
        json.pointer_mut(parent).unwrap()[name] = value.clone();
        let image = with_text(&good, json.to_string().as_bytes());
        assert_eq!(refusal(image), Some(kind), "{path} = {value}");
    }
}

#[test]
fn overlapping_slots_are_refused() {
    let good = valid();
    let mut json = json_of(&good);
    let mut second = json["keyslots"]["0"].clone();
    second["area"]["offset"] = json!("65536");
    json["keyslots"]["1"] = second;
    assert_eq!(
        refusal(with_text(&good, json.to_string().as_bytes())),
        Some(ErrorKind::Corrupt)
    );
}

#[test]
fn forged_texts_are_refused() {
    let good = valid();
    let text = json_of(&good).to_string();
    let twice = text.replacen("\"tokens\":{}", "\"tokens\":{},\"tokens\":{}", 1);
    assert_ne!(twice, text);
    let deep = format!("{{\"a\":{}1{}}}", "[".repeat(5000), "]".repeat(5000));
    for forged in [twice.as_bytes(), deep.as_bytes(), b"{}", b"[]", b"", b"\xff{}"] {
        assert_eq!(refusal(with_text(&good, forged)), Some(ErrorKind::Corrupt));
    }
    assert_eq!(refusal(with_text(&good, text.as_bytes())), None);
}

#[test]
fn binary_headers_that_lie_are_refused() {
    let good = valid();
    let both = |at: usize, bytes: &[u8]| {
        let mut image = good.clone();
        for copy in [0, COPY] {
            image[copy + at..copy + at + bytes.len()].copy_from_slice(bytes);
        }
        image
    };
    for (name, at, bytes) in [
        ("size 0", 8, 0_u64.to_be_bytes()),
        ("size of everything", 8, u64::MAX.to_be_bytes()),
        ("odd size", 8, 0x5000_u64.to_be_bytes()),
        ("offset", 256, 512_u64.to_be_bytes()),
        ("checksum", 448, [1; 8]),
    ] {
        assert_eq!(refusal(both(at, &bytes)), Some(ErrorKind::Corrupt), "{name}");
    }
    for len in (0..600).chain((600..0x9000).step_by(500)) {
        let kind = refusal(good[..len].to_vec());
        assert!(
            matches!(kind, Some(ErrorKind::Corrupt | ErrorKind::NotThisFormat)),
            "{len}: {kind:?}"
        );
    }
}

/// All of them at once: each is told from the others. Only a damaged slot cannot be told from a wrong passphrase, by anybody.
#[test]
fn each_damage_has_its_own_words_at_once() {
    let good = valid();
    let changed = |path: &str, value: Value| {
        let mut json = json_of(&good);
        *json.pointer_mut(path).unwrap() = value;
        with_text(&good, json.to_string().as_bytes())
    };
    let flip = |places: &[usize]| {
        let mut image = good.clone();
        places.iter().for_each(|at| image[*at] ^= 1);
        image
    };
    let sized = changed("/segments/0/size", json!("1048576"));
    let endless = json!(4_294_967_295_u32);
    let argon2 = json!({"type": "argon2id", "time": 4, "memory": endless, "cpus": 1, "salt": "AAAAAAAAAAA="});
    let area: usize = json_of(&good)["keyslots"]["0"]["area"]["offset"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    let cases = [
        ("wrong key", sized.clone(), "no", ErrorKind::WrongKey),
        ("damaged slot", flip(&[area + 5000]), "letmein", ErrorKind::WrongKey),
        (
            "damaged copies",
            flip(&[4100, COPY + 4100]),
            "letmein",
            ErrorKind::Corrupt,
        ),
        (
            "truncated payload",
            sized[..sized.len() - 512].to_vec(),
            "letmein",
            ErrorKind::Corrupt,
        ),
        (
            "iterations",
            changed("/keyslots/0/kdf/iterations", endless),
            "letmein",
            ErrorKind::LimitExceeded,
        ),
        (
            "Argon2 memory",
            changed("/keyslots/0/kdf", argon2),
            "letmein",
            ErrorKind::LimitExceeded,
        ),
    ];
    let mut told = std::collections::BTreeSet::new();
    for (name, image, key, kind) in cases {
        let start = Instant::now();
        let error = open_on(Arc::new(MemoryStorage::new("bad", image)), key.as_bytes())
            .err()
            .unwrap();
        assert_eq!(error.kind(), kind, "{name}: {error}");
        assert!(
            start.elapsed() < Duration::from_secs(3),
            "{name} took {:?}",
            start.elapsed()
        );
        assert!(
            told.insert(error.what().to_owned()) || name == "damaged slot",
            "{name}: {error} again"
        );
    }
    let one_copy = flip(&[4100]);
    assert!(open_on(Arc::new(MemoryStorage::new("one", one_copy)), b"letmein").is_ok());
}
