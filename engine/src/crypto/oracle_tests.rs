//! Our modes against the crates that do one sector after another, and the limits of key derivation.

use aes::cipher::{BlockModeEncrypt, KeyInit, KeyIvInit, StreamCipher};
use proptest::prelude::*;

use super::*;
use crate::ErrorKind;

fn key(len: usize) -> Vec<u8> {
    (0..len).map(|n| u8::try_from(n * 37 % 251).unwrap()).collect()
}

fn text(len: usize) -> Vec<u8> {
    (0..len).map(|n| u8::try_from(n * n % 241).unwrap()).collect()
}

fn cipher(family: &str, mode: &str, key_len: usize, sector_size: u32) -> SectorCipher {
    SectorCipher::new(
        CipherSpec::parse(family, mode, key_len).unwrap(),
        &key(key_len),
        sector_size,
    )
    .unwrap()
}

/// Encrypts with us and with the oracle, compares, and decrypts again.
fn agree(ours: &SectorCipher, offset: u64, len: usize, oracle: impl Fn(u64, &mut [u8])) {
    let mut expected = text(len);
    for (sector, number) in expected.chunks_mut(ours.sector_size()).zip(0_u64..) {
        oracle((offset + number * ours.sector_size() as u64) / 512, sector);
    }
    let mut data = text(len);
    ours.encrypt(offset, &mut data).unwrap();
    assert_eq!(data, expected, "{ours:?} at {offset:#x}");
    ours.decrypt(offset, &mut data).unwrap();
    assert_eq!(data, text(len), "{ours:?} at {offset:#x}");
}

/// `xts-mode` over any of the ciphers.
macro_rules! xts_oracle {
    ($cipher:ty, $key_len:expr) => {{
        let key = key($key_len);
        let (first, second) = key.split_at($key_len / 2);
        let first = <$cipher>::new_from_slice(first).unwrap();
        let xts = xts_mode::Xts128::new(first, <$cipher>::new_from_slice(second).unwrap());
        move |sector: u64, data: &mut [u8]| xts.encrypt_sector(data, xts_mode::get_tweak_default(sector.into()))
    }};
}

#[test]
fn xts_of_every_cipher_agrees_with_xts_mode() {
    let at = 3 << 40;
    agree(
        &cipher("aes", "xts-plain64", 32, 512),
        at,
        70 * 512,
        xts_oracle!(aes::Aes128, 32),
    );
    agree(
        &cipher("aes", "xts-plain64", 48, 512),
        at,
        70 * 512,
        xts_oracle!(aes::Aes192, 48),
    );
    agree(
        &cipher("aes", "xts-plain64", 64, 512),
        at,
        70 * 512,
        xts_oracle!(aes::Aes256, 64),
    );
    agree(
        &cipher("serpent", "xts-plain64", 64, 512),
        at,
        5 * 512,
        xts_oracle!(serpent::Serpent, 64),
    );
    agree(
        &cipher("twofish", "xts-plain64", 48, 512),
        at,
        5 * 512,
        xts_oracle!(::twofish::Twofish, 48),
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn aes_xts_agrees_at_every_length_and_sector_size(sectors in 1_usize..140, first in any::<u32>(), shift in 0_u32..4) {
        let size = 512_u32 << shift;
        let offset = u64::from(first) * u64::from(size);
        agree(&cipher("aes", "xts-plain64", 64, size), offset, sectors * size as usize, xts_oracle!(aes::Aes256, 64));
    }
}

#[test]
fn cbc_agrees_with_the_cbc_crate_over_many_sectors() {
    let oracle = |sector: u64, data: &mut [u8]| {
        let iv = u128::from(sector).to_le_bytes();
        let mut cbc = cbc::Encryptor::<aes::Aes256>::new_from_slices(&key(32), &iv).unwrap();
        cbc.encrypt_blocks(aes::Block::slice_as_chunks_mut(data).0);
    };
    for (size, sectors) in [(512, 1), (512, 63), (512, 64), (512, 65), (4096, 3), (1024, 130)] {
        let ours = cipher("aes", "cbc-plain64", 32, size);
        agree(&ours, u64::from(size) << 33, sectors * size as usize, oracle);
    }
}

#[test]
fn cast5_takes_the_first_half_of_the_iv() {
    let oracle = |sector: u64, data: &mut [u8]| {
        let mut cbc = cbc::Encryptor::<cast5::Cast5>::new_from_slices(&key(16), &sector.to_le_bytes()).unwrap();
        cbc.encrypt_blocks(aes::cipher::Array::slice_as_chunks_mut(data).0);
    };
    agree(&cipher("cast5", "cbc-plain64", 16, 512), 77 * 512, 9 * 512, oracle);
}

#[test]
fn ctr_agrees_with_the_ctr_crate() {
    let oracle = |sector: u64, data: &mut [u8]| {
        let iv = u128::from(sector).to_le_bytes();
        ctr::Ctr128BE::<aes::Aes256>::new_from_slices(&key(32), &iv)
            .unwrap()
            .apply_keystream(data);
    };
    for size in [512, 4096] {
        agree(
            &cipher("aes", "ctr-plain64", 32, size),
            u64::from(size) * 0xffff_ffff,
            67 * size as usize,
            oracle,
        );
    }
}

#[test]
fn plain_forgets_the_high_half_of_the_sector_number() {
    let (plain, plain64) = (
        cipher("aes", "cbc-plain", 32, 512),
        cipher("aes", "cbc-plain64", 32, 512),
    );
    let run = |with: &SectorCipher, offset| {
        let mut data = text(512);
        with.encrypt(offset, &mut data).unwrap();
        data
    };
    let far = (1_u64 << 32) * 512;
    assert_eq!(run(&plain, far + 512), run(&plain, 512));
    assert_eq!(run(&plain, 512), run(&plain64, 512));
    assert_ne!(run(&plain, far + 512), run(&plain64, far + 512));
}

#[test]
fn what_is_not_whole_sectors_is_refused() {
    let ours = cipher("aes", "xts-plain64", 64, 4096);
    assert!(ours.encrypt(511, &mut [0; 4096]).is_err());
    assert!(ours.decrypt(4096, &mut [0; 512]).is_err());
    assert!(ours.decrypt(4096, &mut []).is_ok());
}

#[test]
fn pbkdf2_agrees_with_its_crate_across_strides() {
    let ours = |hash| {
        let mut out = [0; 50];
        pbkdf2(hash, b"pass", b"salt", 40_000, &|| false, &mut out).unwrap();
        out
    };
    let mut expected = [0; 50];
    ::pbkdf2::pbkdf2_hmac::<sha2::Sha512>(b"pass", b"salt", 40_000, &mut expected);
    assert_eq!(ours(HashAlgorithm::Sha512), expected);
    ::pbkdf2::pbkdf2_hmac::<sha2::Sha256>(b"pass", b"salt", 40_000, &mut expected);
    assert_eq!(ours(HashAlgorithm::Sha256), expected);
}

#[test]
fn an_endless_pbkdf2_ends_when_cancelled() {
    let asked = std::sync::atomic::AtomicU32::new(0);
    let cancel = || asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) > 3;
    let done = pbkdf2(HashAlgorithm::Sha1, b"pass", b"salt", u32::MAX, &cancel, &mut [0; 50]);
    assert_eq!(done.unwrap_err().kind(), ErrorKind::Cancelled);
}

#[test]
fn absurd_argon2_costs_are_refused_before_any_memory_is_taken() {
    let limit = Argon2Limit {
        memory_kib: 1 << 20,
        work_kib: 1 << 24,
    };
    let run = |time, memory_kib, lanes| {
        let cost = Argon2Cost {
            time,
            memory_kib,
            lanes,
        };
        argon2(
            Argon2Variant::Argon2id,
            b"pass",
            b"saltsalt",
            cost,
            &limit,
            &|| false,
            &mut [0; 32],
        )
        .unwrap_err()
        .kind()
    };
    assert_eq!(run(4, u32::MAX, 4), ErrorKind::LimitExceeded);
    assert_eq!(run(u32::MAX, 1024, 4), ErrorKind::LimitExceeded);
    assert_eq!(run(1, 1024, u32::MAX), ErrorKind::InvalidArgument);
    assert_eq!(run(0, 1024, 1), ErrorKind::InvalidArgument);
    assert_eq!(run(1, 1024, 0), ErrorKind::InvalidArgument);
}

#[test]
fn a_split_key_is_merged_again_and_one_bad_byte_loses_it() {
    for (hash, len, stripes) in [
        (HashAlgorithm::Sha1, 64, 4000),
        (HashAlgorithm::Sha256, 33, 7),
        (HashAlgorithm::Sha512, 16, 1),
    ] {
        let random = zeroize::Zeroizing::new(text((stripes as usize - 1) * len));
        let mut split = af_split(hash, &key(len), stripes, random).unwrap();
        assert_eq!(*af_merge(hash, &split, stripes).unwrap(), key(len));
        split[0] ^= 1;
        assert_ne!(*af_merge(hash, &split, stripes).unwrap(), key(len));
    }
}

#[test]
fn stripes_that_do_not_divide_are_refused() {
    assert!(af_merge(HashAlgorithm::Sha1, &[0; 10], 3).is_err());
    assert!(af_merge(HashAlgorithm::Sha1, &[0; 10], 0).is_err());
    assert!(af_merge(HashAlgorithm::Sha1, &[], 1).is_err());
    assert!(af_split(HashAlgorithm::Sha1, &[1; 4], 3, vec![0; 9].into()).is_err());
}
