//! Prefix codes.

use super::huffman::{MAX_BITS, MAX_CL_BITS, code_lengths, codes};
use super::tests::{Numbers, fibonacci};

/// Kraft's sum of a code, in units of its longest.
fn kraft(lens: &[u8], longest: usize) -> u32 {
    lens.iter()
        .filter(|l| **l != 0)
        .map(|l| 1 << (longest - usize::from(*l)))
        .sum()
}

fn alphabets() -> Vec<Vec<u32>> {
    let mut numbers = Numbers(4);
    let mut cases = vec![vec![0; 30], vec![5, 0], vec![0, 9, 0], vec![1; 286], fibonacci(23)];
    for _ in 0..500 {
        let shift = numbers.below(16);
        let count = |n: &mut Numbers| ((n.below(1 << 16)) >> n.below(shift + 1)) as u32 / 3;
        cases.push((0..286).map(|_| count(&mut numbers)).collect());
    }
    cases
}

#[test]
fn code_lengths_are_complete_and_no_longer_than_allowed() {
    for counts in alphabets() {
        for longest in [9, MAX_BITS] {
            let mut lens = vec![0; counts.len()];
            code_lengths(&counts, longest, &mut lens);
            assert_eq!(kraft(&lens, longest), 1 << longest, "{counts:?}");
            assert!(counts.iter().zip(&lens).all(|(&c, &l)| c == 0 || l != 0));
        }
    }
    let counts = fibonacci(19);
    let mut lens = [0; 19];
    code_lengths(&counts, MAX_CL_BITS, &mut lens);
    assert_eq!(kraft(&lens, MAX_CL_BITS), 1 << MAX_CL_BITS);
}

#[test]
fn a_code_that_fits_is_optimal() {
    // With counts of powers of two an optimal code spends their logarithms.
    let counts: Vec<u32> = (0..13).map(|n| 1 << n).chain([1]).collect();
    let mut lens = vec![0; counts.len()];
    code_lengths(&counts, MAX_BITS, &mut lens);
    let expected: Vec<u8> = (0..13).map(|n| 13 - n).chain([13]).collect();
    assert_eq!(lens, expected);
}

#[test]
fn codes_are_those_of_the_specification() {
    // The example of RFC 1951, section 3.2.2: A to H.
    let lens = [3, 3, 3, 3, 3, 2, 4, 4];
    let mut made = [0; 8];
    codes(&lens, &mut made);
    let forward = |(code, len): (&u16, &u8)| code.reverse_bits() >> (16 - u32::from(*len));
    let read: Vec<u16> = made.iter().zip(&lens).map(forward).collect();
    assert_eq!(read, [0b010, 0b011, 0b100, 0b101, 0b110, 0b00, 0b1110, 0b1111]);
}
