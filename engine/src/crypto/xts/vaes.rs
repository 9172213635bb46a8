//! AES by instructions that work on two blocks at once (VAES), on processors that have them.
//!
//! Sixteen blocks go through the rounds side by side; their tweaks become those of the next sixteen by one multiplication each, which
//! nothing waits for. No memory is addressed by key or data.

use std::arch::x86_64::{
    __m128i, __m256i, _mm_aesimc_si128, _mm_aeskeygenassist_si128, _mm_cvtsi128_si32, _mm_set_epi32,
    _mm256_aesdec_epi128, _mm256_aesdeclast_epi128, _mm256_aesenc_epi128, _mm256_aesenclast_epi128,
    _mm256_broadcastsi128_si256, _mm256_clmulepi64_epi128, _mm256_set_epi64x, _mm256_slli_si256, _mm256_srli_si256,
    _mm256_xor_si256,
};

use zerocopy::transmute;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::{Block16, DataCipher, times_alpha};

/// Most round keys of any key length (FIPS 197, 5).
const MOST_KEYS: usize = 15;
/// Pairs of blocks that are worked on together: as many as there are registers for.
const PAIRS: usize = 8;
const PAIR: usize = 32;
const STRETCH: usize = PAIRS * PAIR;

/// An AES key, for processors that were found to have the instructions.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(super) struct Vaes {
    encrypt: [[u8; 16]; MOST_KEYS],
    decrypt: [[u8; 16]; MOST_KEYS],
    rounds: usize,
}

impl Vaes {
    /// `None` when the processor lacks the instructions, or for a key that is not 16, 24 or 32 bytes.
    pub(super) fn new(key: &[u8]) -> Option<Self> {
        let found = is_x86_feature_detected!("aes")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("vaes")
            && is_x86_feature_detected!("vpclmulqdq");
        if !found || !matches!(key.len(), 16 | 24 | 32) {
            return None;
        }
        #[expect(unsafe_code, reason = "instructions that not every processor has")]
        // SAFETY: the processor has them.
        Some(unsafe { schedule(key) })
    }
}

impl DataCipher for Vaes {
    fn encrypt(&self, starts: &[Block16], sector_len: usize, data: &mut [u8]) {
        #[expect(unsafe_code, reason = "instructions that not every processor has")]
        // SAFETY: there is no such value where the processor lacks them.
        unsafe {
            sectors::<true>(&self.encrypt[..=self.rounds], starts, sector_len, data);
        }
    }

    fn decrypt(&self, starts: &[Block16], sector_len: usize, data: &mut [u8]) {
        #[expect(unsafe_code, reason = "instructions that not every processor has")]
        // SAFETY: there is no such value where the processor lacks them.
        unsafe {
            sectors::<false>(&self.decrypt[..=self.rounds], starts, sector_len, data);
        }
    }
}

/// Key expansion (FIPS 197, 5.2), and the keys of the equivalent inverse cipher (5.3.5).
#[target_feature(enable = "aes")]
fn schedule(key: &[u8]) -> Vaes {
    let length = key.len() / 4;
    let rounds = length + 6;
    let mut words = [0_u32; 4 * MOST_KEYS];
    for (word, bytes) in words.iter_mut().zip(key.as_chunks().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    let mut constant = 1;
    for i in length..4 * (rounds + 1) {
        let mut word = words[i - 1];
        if i % length == 0 {
            word = substituted(word.rotate_right(8)) ^ constant;
            constant = (constant << 1) ^ ((constant >> 7) * 0x11b);
        } else if length > 6 && i % length == 4 {
            word = substituted(word);
        }
        words[i] = words[i - length] ^ word;
    }
    let encrypt: [[u8; 16]; MOST_KEYS] = transmute!(words.map(u32::to_le_bytes));
    words.zeroize();
    let mut decrypt = encrypt;
    decrypt[..=rounds].reverse();
    for key in &mut decrypt[1..rounds] {
        let mixed = _mm_aesimc_si128(transmute!(*key));
        *key = transmute!(mixed);
    }
    Vaes {
        encrypt,
        decrypt,
        rounds,
    }
}

/// The four bytes of a word, each replaced by the S-box.
#[target_feature(enable = "aes")]
fn substituted(word: u32) -> u32 {
    let assisted = _mm_aeskeygenassist_si128::<0>(_mm_set_epi32(0, 0, word.cast_signed(), 0));
    _mm_cvtsi128_si32(assisted).cast_unsigned()
}

#[target_feature(enable = "aes,avx2,vaes,vpclmulqdq")]
fn sectors<const ENCRYPT: bool>(keys: &[[u8; 16]], starts: &[Block16], sector_len: usize, data: &mut [u8]) {
    let mut wide = [_mm256_set_epi64x(0, 0, 0, 0); MOST_KEYS];
    for (wide, key) in wide.iter_mut().zip(keys) {
        let key: __m128i = transmute!(*key);
        *wide = _mm256_broadcastsi128_si256(key);
    }
    let wide = &wide[..keys.len()];
    for (sector, start) in data.chunks_mut(sector_len).zip(starts) {
        let mut tweaks = first_tweaks(u128::from_le_bytes(start.0));
        let (stretches, rest) = sector.as_chunks_mut::<STRETCH>();
        for stretch in stretches {
            apply::<ENCRYPT>(wide, &tweaks, stretch);
            for tweak in &mut tweaks {
                *tweak = times_alpha_16(*tweak);
            }
        }
        if !rest.is_empty() {
            let mut padded = [0; STRETCH];
            padded[..rest.len()].copy_from_slice(rest);
            apply::<ENCRYPT>(wide, &tweaks, &mut padded);
            rest.copy_from_slice(&padded[..rest.len()]);
        }
    }
}

#[target_feature(enable = "aes,avx2,vaes")]
fn apply<const ENCRYPT: bool>(keys: &[__m256i], tweaks: &[__m256i; PAIRS], data: &mut [u8; STRETCH]) {
    let [first, keys @ .., last] = keys else { return };
    let (pairs, _) = data.as_chunks_mut::<PAIR>();
    let mut states = [*first; PAIRS];
    for ((state, pair), tweak) in states.iter_mut().zip(&*pairs).zip(tweaks) {
        *state = _mm256_xor_si256(*state, _mm256_xor_si256(transmute!(*pair), *tweak));
    }
    for key in keys {
        for state in &mut states {
            *state = match ENCRYPT {
                true => _mm256_aesenc_epi128(*state, *key),
                false => _mm256_aesdec_epi128(*state, *key),
            };
        }
    }
    for ((state, pair), tweak) in states.iter().zip(pairs).zip(tweaks) {
        let state = match ENCRYPT {
            true => _mm256_aesenclast_epi128(*state, *last),
            false => _mm256_aesdeclast_epi128(*state, *last),
        };
        *pair = transmute!(_mm256_xor_si256(state, *tweak));
    }
}

/// The tweaks of the first sixteen blocks of a sector.
#[target_feature(enable = "avx2,vpclmulqdq")]
fn first_tweaks(start: u128) -> [__m256i; PAIRS] {
    let mut tweaks = [_mm256_set_epi64x(0, 0, 0, 0); PAIRS];
    let (near, far) = tweaks.split_at_mut(PAIRS / 2);
    let mut now = start;
    for (near, far) in near.iter_mut().zip(far) {
        let next = times_alpha(now);
        *near = pair(now, next);
        *far = times_alpha_8(*near);
        now = times_alpha(next);
    }
    tweaks
}

/// Two blocks in one register. (A `transmute` becomes moves of single bytes.)
#[target_feature(enable = "avx2")]
fn pair(first: u128, second: u128) -> __m256i {
    let [a, b] = halves(first);
    let [c, d] = halves(second);
    _mm256_set_epi64x(d, c, b, a)
}

fn halves(block: u128) -> [i64; 2] {
    [block as i64, (block >> 64) as i64]
}

/// Times alpha to the eighth: the byte that falls out comes back times x^7 + x^2 + x + 1.
#[target_feature(enable = "avx2,vpclmulqdq")]
fn times_alpha_8(tweaks: __m256i) -> __m256i {
    returned(_mm256_slli_si256::<1>(tweaks), _mm256_srli_si256::<15>(tweaks))
}

/// Times alpha to the sixteenth, as with one byte.
#[target_feature(enable = "avx2,vpclmulqdq")]
fn times_alpha_16(tweaks: __m256i) -> __m256i {
    returned(_mm256_slli_si256::<2>(tweaks), _mm256_srli_si256::<14>(tweaks))
}

#[target_feature(enable = "avx2,vpclmulqdq")]
fn returned(shifted: __m256i, fallen: __m256i) -> __m256i {
    let polynomial = _mm256_set_epi64x(0, 0x87, 0, 0x87);
    _mm256_xor_si256(shifted, _mm256_clmulepi64_epi128::<0>(fallen, polynomial))
}
