//! Finding zeroes at memory speed.

use std::ops::Range;

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // Blocks of a size that the compiler turns into vector code; real data differs early, so look at the first bytes first.
    if bytes.first().is_some_and(|b| *b != 0) {
        return false;
    }
    let mut blocks = bytes.chunks_exact(64);
    blocks.by_ref().all(|block| block.iter().fold(0, |all, b| all | b) == 0)
        && blocks.remainder().iter().all(|b| *b == 0)
}

/// The ranges of `bytes` that hold data, in whole blocks of `block` bytes; zero gaps shorter than `gap` do not split a range.
pub fn data_ranges(bytes: &[u8], block: usize, gap: usize) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (i, part) in bytes.chunks(block).enumerate() {
        if is_zero(part) {
            continue;
        }
        let start = i * block;
        let end = start + part.len();
        match ranges.last_mut() {
            Some(last) if start - last.end < gap => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_bit_anywhere_is_seen() {
        for len in [1, 63, 64, 65, 4096, 5000] {
            assert!(is_zero(&vec![0; len]));
            for at in [0, len / 2, len - 1] {
                let mut bytes = vec![0; len];
                bytes[at] = 0x80;
                assert!(!is_zero(&bytes), "{len} {at}");
            }
        }
    }

    #[test]
    fn short_gaps_do_not_split() {
        let mut bytes = vec![0; 40];
        bytes[0] = 1;
        bytes[8] = 1;
        bytes[30] = 1;
        assert_eq!(data_ranges(&bytes, 4, 4), [0..4, 8..12, 28..32]);
        assert_eq!(data_ranges(&bytes, 4, 8), [0..12, 28..32]);
        assert_eq!(data_ranges(&[0; 40], 4, 4), []);
    }
}
