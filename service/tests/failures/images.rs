//! The contents that the verbs work on.

use crate::common::sample;

/// Bytes of every image: small, so that a case takes a fraction of a second.
pub const SIZE: usize = 512 << 10;

/// What the base holds.
pub fn base() -> Vec<u8> {
    sample(SIZE, 1)
}

/// What another base holds.
pub fn other() -> Vec<u8> {
    sample(SIZE, 2)
}

/// What the overlay on the base shows.
pub fn changed() -> Vec<u8> {
    let mut bytes = base();
    bytes[SIZE / 4..SIZE / 2].copy_from_slice(&sample(SIZE / 4, 77));
    bytes[SIZE / 2..SIZE * 5 / 8].fill(0);
    bytes
}

/// As long as this.
pub fn sized(mut bytes: Vec<u8>, size: usize) -> Vec<u8> {
    bytes.resize(size, 0);
    bytes
}

/// A qcow2 file with a cluster behind its end counted although nobody uses it.
pub fn leaking(mut file: Vec<u8>) -> Vec<u8> {
    let number = |file: &[u8], at: usize| u64::from_be_bytes(file[at..at + 8].try_into().unwrap()) as usize;
    let cluster = 1 << u32::from_be_bytes(file[20..24].try_into().unwrap());
    let table = number(&file, 48);
    let block = number(&file, table);
    let end = file.len().next_multiple_of(cluster);
    file.resize(end + cluster, 0);
    file[block + 2 * (end / cluster) + 1] = 1;
    file
}
