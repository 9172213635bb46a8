//! Damaged and malicious LUKS1 headers: each is refused before anything is derived from it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vdisk_engine::image::{NothingBelow, Repair};
use vdisk_engine::options::Options;
use vdisk_engine::storage::MemoryStorage;
use vdisk_engine::{Control, ErrorKind, Limits};

use super::support::{create_on, metadata, open_on, read_all};

fn valid() -> Vec<u8> {
    let memory = Arc::new(MemoryStorage::empty());
    create_on(
        memory.clone(),
        1 << 20,
        Options::new().with("iterations", "1000"),
        "letmein",
    )
    .unwrap();
    memory.contents()
}

/// Offset and bytes of a change, and what it must give. Offsets are those of the specification's figure 1.
fn cases() -> Vec<(&'static str, usize, Vec<u8>, ErrorKind)> {
    use ErrorKind::{Corrupt, LimitExceeded, NotThisFormat, Unsupported};
    let word = |value: u32| value.to_be_bytes().to_vec();
    let text = |text: &str| {
        let mut field = vec![0; 32];
        field[..text.len()].copy_from_slice(text.as_bytes());
        field
    };
    let slot = |number: usize| 208 + 48 * number;
    vec![
        ("magic", 5, vec![0xbf], NotThisFormat),
        ("version 0", 6, vec![0, 0], Unsupported),
        ("version 3", 6, vec![0, 3], Unsupported),
        ("cipher name without NUL", 8, vec![b'a'; 32], Corrupt),
        ("cipher mode without NUL", 40, vec![b'a'; 32], Corrupt),
        ("hash without NUL", 72, vec![b'a'; 32], Corrupt),
        ("UUID without NUL", 168, vec![b'a'; 40], Corrupt),
        ("cipher_null", 8, text("cipher_null"), Unsupported),
        ("escape sequence as cipher", 8, text("\u{1b}[2J"), Corrupt),
        ("mode without IV", 40, text("xts"), Unsupported),
        ("unknown hash", 72, text("md5"), Unsupported),
        ("payload in the header", 104, word(1), Corrupt),
        ("payload past the end", 104, word(u32::MAX), Corrupt),
        ("no key bytes", 108, word(0), Unsupported),
        ("odd key bytes", 108, word(513), Unsupported),
        ("all key bytes", 108, word(u32::MAX), Unsupported),
        ("no iterations of the digest", 164, word(0), Corrupt),
        ("endless iterations of the digest", 164, word(u32::MAX), LimitExceeded),
        ("slot state 1", slot(0), word(1), Corrupt),
        ("slot without iterations", slot(0) + 4, word(0), Corrupt),
        (
            "endless iterations of a slot",
            slot(0) + 4,
            word(u32::MAX),
            LimitExceeded,
        ),
        ("slot in the header", slot(0) + 40, word(0), Corrupt),
        ("slot in the header's last sector", slot(0) + 40, word(1), Corrupt),
        ("slot in the payload", slot(7) + 40, word(4039), Corrupt),
        ("slot far away", slot(7) + 40, word(u32::MAX), Corrupt),
        ("slots at one place", slot(3) + 40, word(8), Corrupt),
        ("slots that overlap", slot(3) + 40, word(500), Corrupt),
        ("one stripe", slot(0) + 44, word(1), Corrupt),
        ("stripes of an empty slot", slot(5) + 44, word(3999), Corrupt),
    ]
}

#[test]
fn every_bad_field_has_its_error_at_once() {
    let (good, limits) = (valid(), Limits::default());
    for (name, offset, bytes, kind) in cases() {
        let mut image = good.clone();
        image[offset..offset + bytes.len()].copy_from_slice(&bytes);
        let start = Instant::now();
        let found = open_on(Arc::new(MemoryStorage::new("bad", image.clone())), b"letmein");
        assert_eq!(found.err().map(|e| e.kind()), Some(kind), "{name}");
        let found = metadata(Arc::new(MemoryStorage::new("bad", image)), &limits);
        assert_eq!(found.err().map(|e| e.kind()), Some(kind), "{name}, metadata");
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{name} took {:?}",
            start.elapsed()
        );
    }
}

#[test]
fn a_header_cut_anywhere_is_refused() {
    let (good, limits) = (valid(), Limits::default());
    for len in (0..600).chain((600..2_068_480).step_by(60_000)) {
        let image = Arc::new(MemoryStorage::new("cut", good[..len].to_vec()));
        let kind = metadata(image, &limits).err().map(|e| e.kind());
        assert!(
            matches!(kind, Some(ErrorKind::NotThisFormat | ErrorKind::Corrupt)),
            "{len}: {kind:?}"
        );
    }
}

#[test]
fn wrong_key_and_damaged_slot_and_damaged_digest_sound_alike() {
    let good = valid();
    let mut slot = good.clone();
    slot[5000] ^= 1;
    let mut digest = good.clone();
    digest[112] ^= 1;
    let message = |image: Vec<u8>, key: &[u8]| {
        let error = open_on(Arc::new(MemoryStorage::new("x", image)), key).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::WrongKey);
        error.to_string()
    };
    let wrong = message(good.clone(), b"wrong");
    assert_eq!(message(slot, b"letmein"), wrong);
    assert_eq!(message(digest, b"letmein"), wrong);
    assert_eq!(message(good, b""), wrong);
}

#[test]
fn a_volume_without_its_key_shows_metadata_and_no_data() {
    let image = metadata(Arc::new(MemoryStorage::new("x", valid())), &Limits::default()).unwrap();
    assert!(image.info().unwrap().encrypted);
    assert_eq!(image.read(0, &mut [0; 512]).unwrap_err().kind(), ErrorKind::WrongKey);
}

/// LUKS1 does not say how long its payload is: what is left of it can be read, and nothing behind it.
#[test]
fn a_file_that_ends_inside_a_sector_reads_as_if_zeroes_followed() {
    let good = valid();
    let payload = good.len() - (1 << 20);
    let cut = |len: usize| Arc::new(MemoryStorage::new("cut", good[..len].to_vec()));
    let storage = cut(payload + 1000);
    let image = open_on(storage.clone(), b"letmein").unwrap();
    let mut padded = good[..payload + 1000].to_vec();
    padded.resize(payload + 1024, 0);
    let whole = open_on(Arc::new(MemoryStorage::new("whole", padded)), b"letmein").unwrap();
    assert_eq!(image.virtual_size(), 1024);
    assert!(read_all(image.as_ref()) == read_all(whole.as_ref()));
    assert_eq!(image.check(Repair::No, &Control::default()).unwrap().corruptions, 0);
    let error = image.read(1024, &mut [0; 512]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    for image in [&image, &whole] {
        image.write(900, &[7; 100], &NothingBelow).unwrap();
    }
    assert_eq!(storage.contents().len(), payload + 1024);
    assert!(read_all(image.as_ref()) == read_all(whole.as_ref()));
    let error = open_on(cut(payload - 1), b"letmein").err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
}
