//! Checksums put right, so that what stands behind them is reached.

use sha2::{Digest, Sha256};
use vdisk_engine::Storage;
use vdisk_engine::storage::read_vec;

/// Puts the checksums of an image right where its format has any.
pub fn seal(format: &str, file: &dyn Storage) {
    match format {
        "vpc" => vpc(file),
        "vhdx" => vhdx(file),
        "luks" => luks2(file),
        "parallels" => parallels(file),
        _ => {}
    }
}

/// Replaces `width` bytes at `at + place` of a structure by what `sum` makes of the structure without them.
fn put(file: &dyn Storage, at: u64, len: usize, place: usize, sum: impl Fn(&[u8]) -> Vec<u8>, width: usize) {
    let Ok(mut bytes) = read_vec(file, at, len) else { return };
    bytes[place..place + width].fill(0);
    let sum = sum(&bytes);
    let _ = file.write_at(at + place as u64, &sum);
}

fn vpc_sum(bytes: &[u8]) -> Vec<u8> {
    let total: u32 = bytes.iter().map(|b| u32::from(*b)).sum();
    (!total).to_be_bytes().to_vec()
}

/// The footer, its copy at the start and the dynamic header that they name.
pub fn vpc(file: &dyn Storage) {
    let end = file.len().unwrap_or(0);
    for at in [Some(0), end.checked_sub(512)].into_iter().flatten() {
        let Ok(footer) = read_vec(file, at, 512) else { continue };
        if !footer.starts_with(b"conectix") {
            continue;
        }
        let header = footer[16..].first_chunk().map_or(u64::MAX, |b| u64::from_be_bytes(*b));
        if read_vec(file, header, 8).is_ok_and(|m| m == b"cxsparse") {
            put(file, header, 1024, 36, vpc_sum, 4);
        }
        put(file, at, 512, 64, vpc_sum, 4);
    }
}

fn crc(bytes: &[u8]) -> Vec<u8> {
    crc32c::crc32c(bytes).to_le_bytes().to_vec()
}

/// Headers, region tables and the entries of the log.
pub fn vhdx(file: &dyn Storage) {
    for (at, len) in [(64, 4), (128, 4), (192, 64), (256, 64)] {
        put(file, at << 10, len << 10, 4, crc, 4);
    }
    for header in [64 << 10, 128 << 10] {
        let Ok(fields) = read_vec(file, header + 68, 12) else {
            continue;
        };
        let length = u64::from(u32::from_le_bytes([fields[0], fields[1], fields[2], fields[3]]));
        let offset = fields[4..].first_chunk().map_or(u64::MAX, |b| u64::from_le_bytes(*b));
        for page in 0..(length / 4096).min(64) {
            if let Some(at) = offset.checked_add(page * 4096) {
                log_entry(file, at);
            }
        }
    }
}

fn log_entry(file: &dyn Storage, at: u64) {
    let Ok(head) = read_vec(file, at, 12) else { return };
    if head.starts_with(b"loge") {
        let len = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
        if (64..1 << 20).contains(&len) {
            put(file, at, len, 4, crc, 4);
        }
    }
}

/// Both copies of the header, with SHA-256.
pub fn luks2(file: &dyn Storage) {
    let Ok(head) = read_vec(file, 0, 16) else { return };
    let size = head[8..].first_chunk().map_or(0, |b| u64::from_be_bytes(*b));
    if head[6..8] != [0, 2] || !(0x4000..=0x40_0000).contains(&size) {
        return;
    }
    let sum = |bytes: &[u8]| {
        let mut sum = Sha256::digest(bytes).to_vec();
        sum.resize(64, 0);
        sum
    };
    put(file, 0, size as usize, 448, sum, 64);
    put(file, size, size as usize, 448, sum, 64);
}

/// The format extension's MD5.
fn parallels(file: &dyn Storage) {
    use md5::{Digest as _, Md5};
    let Ok(head) = read_vec(file, 0, 64) else { return };
    let cluster = u64::from(u32::from_le_bytes([head[28], head[29], head[30], head[31]])) * 512;
    let sector = head[56..].first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
    let Some(at) = sector.checked_mul(512).filter(|at| *at > 0) else {
        return;
    };
    if (512..=1 << 20).contains(&cluster)
        && let Ok(body) = read_vec(file, at.saturating_add(24), cluster as usize - 24)
    {
        let _ = file.write_at(at + 8, &Md5::digest(&body));
    }
}
