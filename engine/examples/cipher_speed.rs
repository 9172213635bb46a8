//! How fast the sector ciphers are on this machine: MB/s of one thread, by the length of a request.

use std::time::{Duration, Instant};

use vdisk_engine::Result;
use vdisk_engine::crypto::{CipherSpec, SectorCipher};

const CIPHERS: &[(&str, &str, usize)] = &[
    ("aes", "xts-plain64", 64),
    ("aes", "xts-plain64", 32),
    ("aes", "cbc-essiv:sha256", 32),
    ("aes", "ctr-plain64", 32),
    ("serpent", "xts-plain64", 64),
    ("twofish", "xts-plain64", 64),
    ("cast5", "cbc-plain64", 16),
];

fn main() -> Result<()> {
    println!("{:<28} {:>8} {:>9} {:>9}", "cipher", "request", "encrypt", "decrypt");
    for (family, mode, key_len) in CIPHERS {
        let spec = CipherSpec::parse(family, mode, *key_len)?;
        let key: Vec<u8> = (0..*key_len).map(|n| n as u8).collect();
        let cipher = SectorCipher::new(spec, &key, 512)?;
        for len in [512, 4096, 64 << 10, 1 << 20] {
            let mut data = vec![0x5a; len];
            let encrypt = speed(len, || cipher.encrypt(0, &mut data))?;
            let decrypt = speed(len, || cipher.decrypt(0, &mut data))?;
            println!(
                "{:<28} {len:>8} {encrypt:>9.0} {decrypt:>9.0}",
                format!("{}-{mode}", spec.algorithm().name())
            );
        }
    }
    Ok(())
}

fn speed(len: usize, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let (start, mut bytes) = (Instant::now(), 0_usize);
    while start.elapsed() < Duration::from_millis(200) {
        for _ in 0..(1_usize << 18).div_ceil(len) {
            work()?;
            bytes += len;
        }
    }
    Ok(bytes as f64 / start.elapsed().as_secs_f64() / 1e6)
}
