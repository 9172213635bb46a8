//! What is encoded comes back through two decoders that know nothing of each other.

use flate2::{Decompress, FlushDecompress, Status};
use libdeflater::Decompressor;
use proptest::prelude::*;

use super::{Encoder, MAX_INPUT};
use crate::ErrorKind;

/// Numbers without order, always the same ones (xorshift).
pub struct Numbers(pub u64);

impl Numbers {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.below(256) as u8).collect()
    }
}

/// Counts that give the deepest of trees.
pub fn fibonacci(len: usize) -> Vec<u32> {
    std::iter::successors(Some((1, 1)), |(a, b)| Some((*b, a + b)))
        .map(|(a, _)| a)
        .take(len)
        .collect()
}

/// Encodes and decodes; tells the compressed size.
fn round_trip(encoder: &mut Encoder, input: &[u8]) -> usize {
    let mut out = vec![7];
    encoder.zlib(input, &mut out).unwrap();
    assert_eq!(out[0], 7, "what was there stays");
    let packed = &out[1..];
    let mut back = vec![0; input.len() + 1];
    let len = Decompressor::new().zlib_decompress(packed, &mut back).unwrap();
    assert!(back[..len] == *input, "libdeflate");
    let mut back = vec![0; input.len() + 1];
    let mut decoder = Decompress::new(true);
    let end = decoder.decompress(packed, &mut back, FlushDecompress::Finish).unwrap();
    assert_eq!(end, Status::StreamEnd);
    assert_eq!(decoder.total_in(), packed.len() as u64, "nothing behind the end");
    assert!(back[..decoder.total_out() as usize] == *input, "zlib-rs");
    assert_eq!(packed[..2], [0x78, 0x01]);
    packed.len()
}

#[test]
fn short_inputs_come_back() {
    let mut encoder = Encoder::default();
    let noise = Numbers(5).bytes(600);
    for len in 0..=600 {
        round_trip(&mut encoder, &vec![0; len]);
        round_trip(&mut encoder, &noise[..len]);
        round_trip(
            &mut encoder,
            &(0..len).map(|i| ((i * i) >> 3) as u8).collect::<Vec<_>>(),
        );
    }
    assert!(round_trip(&mut encoder, b"") <= 8);
}

#[test]
fn periods_come_back_small() {
    let (mut encoder, mut numbers) = (Encoder::default(), Numbers(1));
    for period in (1..=40)
        .chain(255..=260)
        .chain([4095, 4096, 4097])
        .chain(32_766..=32_770)
    {
        let unit = numbers.bytes(period);
        for len in [4096, 32_769, 65_535, MAX_INPUT] {
            let input: Vec<u8> = unit.iter().copied().cycle().take(len).collect();
            let size = round_trip(&mut encoder, &input);
            // A match has at most 258 bytes and takes less than four; nothing is known farther away than 32,768.
            let bound = if period > 32_768 { len } else { period.min(len) };
            assert!(size <= bound + len / 64 + 600, "{period} of {len}: {size}");
        }
    }
}

#[test]
fn noise_is_stored() {
    let (mut encoder, mut numbers) = (Encoder::default(), Numbers(2));
    for len in [1, 100, 5000, 65_534, 65_535, MAX_INPUT] {
        // Header and sum, and five bytes for each stored block (RFC 1951, section 3.2.4).
        assert!(round_trip(&mut encoder, &numbers.bytes(len)) <= len + 6 + 10);
    }
}

#[test]
fn text_and_programs_come_back() {
    let mut encoder = Encoder::default();
    let text: Vec<u8> = (0..20_000u32)
        .flat_map(|n| format!("line {} of {n}\n", n / 7).into_bytes())
        .collect();
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let step = (program.len() / MAX_INPUT / 100).max(1);
    let grains = text.chunks(MAX_INPUT).chain(program.chunks(MAX_INPUT).step_by(step));
    let (mut before, mut after) = (0, 0);
    for grain in grains {
        before += grain.len();
        after += round_trip(&mut encoder, grain);
    }
    assert!(after < before * 3 / 4, "{before} to {after}");
}

#[test]
fn the_farthest_and_longest_matches_come_back() {
    let (mut encoder, mut numbers) = (Encoder::default(), Numbers(8));
    let noise = numbers.bytes(MAX_INPUT);
    for distance in [1, 2, 3, 8191, 8192, 8193, 32_766, 32_767, 32_768, 32_769] {
        for len in [3, 4, 7, 8, 9, 257, 258, 259, 516, 517] {
            for end in [MAX_INPUT, 65_000, 40_000] {
                let mut input = noise[..end].to_vec();
                for at in end - len..end {
                    input[at] = input[at - distance];
                }
                round_trip(&mut encoder, &input);
            }
        }
    }
    // Noise is small only where it comes again, and here it does as far back as a match may reach.
    let half = &noise[..32_768];
    assert!(round_trip(&mut encoder, &[half, half].concat()) < 36_000);
}

/// Literals that occur as often as Fibonacci's numbers say, in no order.
#[test]
fn the_longest_codes_of_literals_come_back() {
    let mut encoder = Encoder::default();
    for symbols in [15, 20, 22] {
        let counts = fibonacci(symbols);
        let mut input: Vec<u8> = (0u8..)
            .zip(&counts)
            .flat_map(|(byte, n)| vec![byte; *n as usize])
            .collect();
        let mut numbers = Numbers(6);
        for last in (1..input.len()).rev() {
            input.swap(last, numbers.below(last as u64 + 1) as usize);
        }
        for part in input.chunks(MAX_INPUT).chain(input.chunks(4096)) {
            round_trip(&mut encoder, part);
        }
    }
}

/// Matches whose distances, and lengths, occur as often as Fibonacci's numbers say.
#[test]
fn the_longest_codes_of_matches_come_back() {
    let mut encoder = Encoder::default();
    let counts = fibonacci(15);
    for (lengths, distances) in [(true, false), (false, true), (true, true)] {
        let mut numbers = Numbers(7);
        let mut input = numbers.bytes(33_000);
        let mut kinds: Vec<usize> = (0..15).flat_map(|n| vec![n; counts[n] as usize]).collect();
        for last in (1..kinds.len()).rev() {
            kinds.swap(last, numbers.below(last as u64 + 1) as usize);
        }
        for kind in kinds {
            let len = if lengths { 4 + kind } else { 8 };
            let distance = if distances { (1 << kind) + len } else { 20_000 };
            for _ in 0..len {
                input.push(input[input.len() - distance]);
            }
            input.push(numbers.below(256) as u8);
        }
        for part in input.rchunks(MAX_INPUT) {
            round_trip(&mut encoder, part);
        }
    }
}

#[test]
fn what_comes_out_depends_on_the_input_alone() {
    let text: Vec<u8> = (0..30_000u32)
        .flat_map(|i| (i / 7).to_string().into_bytes())
        .take(60_000)
        .collect();
    let (mut first, mut later) = (Vec::new(), Vec::new());
    Encoder::default().zlib(&text, &mut first).unwrap();
    let mut encoder = Encoder::default();
    round_trip(&mut encoder, &Numbers(3).bytes(MAX_INPUT));
    round_trip(&mut encoder, &text[..50_000]);
    encoder.zlib(&text, &mut later).unwrap();
    assert!(first == later);
}

#[test]
fn longer_inputs_are_refused() {
    let mut out = vec![1, 2];
    let error = Encoder::default().zlib(&[0; MAX_INPUT + 1], &mut out).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    assert_eq!(out, [1, 2]);
}

/// A piece of an input: noise of so many different bytes, a run, a copy from a distance back.
#[derive(Debug, Clone)]
enum Piece {
    Noise { seed: u64, kinds: u64, len: usize },
    Run { byte: u8, len: usize },
    Copy { distance: usize, len: usize },
}

fn lengths() -> impl Strategy<Value = usize> {
    prop_oneof![1..20usize, 1..600usize, 1..9000usize]
}

fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    let noise = (1..u64::MAX, 1..=256u64, lengths()).prop_map(|(seed, kinds, len)| Piece::Noise { seed, kinds, len });
    let run = (any::<u8>(), lengths()).prop_map(|(byte, len)| Piece::Run { byte, len });
    let distance = prop_oneof![1..10usize, 1..300usize, 1..MAX_INPUT, 32_760..32_776usize];
    let copy = (distance, lengths()).prop_map(|(distance, len)| Piece::Copy { distance, len });
    prop::collection::vec(prop_oneof![2 => noise, 1 => run, 4 => copy], 0..40)
}

fn input_of(pieces: &[Piece]) -> Vec<u8> {
    let mut input = Vec::new();
    for piece in pieces {
        match *piece {
            Piece::Noise { seed, kinds, len } => {
                let mut numbers = Numbers(seed);
                input.extend((0..len).map(|_| numbers.below(kinds) as u8));
            }
            Piece::Run { byte, len } => input.resize(input.len() + len, byte),
            Piece::Copy { distance, len } if distance <= input.len() => {
                (0..len).for_each(|_| input.push(input[input.len() - distance]));
            }
            Piece::Copy { .. } => {}
        }
    }
    input.truncate(MAX_INPUT);
    input
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mixtures_come_back(pieces in pieces()) {
        round_trip(&mut Encoder::default(), &input_of(&pieces));
    }
}
