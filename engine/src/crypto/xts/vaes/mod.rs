//! AES by instructions that work on several blocks at once (VAES), on processors that have them.

mod registers;

use std::arch::x86_64::{_mm_aesimc_si128, _mm_aeskeygenassist_si128, _mm_cvtsi128_si32, _mm_set_epi32};

use zerocopy::transmute;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::{Block16, DataCipher};
use registers::{sectors_by_four, sectors_by_two};

/// Most round keys of any key length (FIPS 197, 5).
const MOST_KEYS: usize = 15;
/// An AES key, for processors that were found to have the instructions.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(super) struct Vaes {
    encrypt: [[u8; 16]; MOST_KEYS],
    decrypt: [[u8; 16]; MOST_KEYS],
    rounds: usize,
    /// Whether registers of four blocks are there, and not of two alone.
    four: bool,
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
        let four = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        #[expect(unsafe_code, reason = "instructions that not every processor has")]
        // SAFETY: the processor has them.
        Some(unsafe { schedule(key, four) })
    }

    /// The same key, worked on as on processors with registers of two blocks.
    #[cfg(test)]
    pub(super) fn by_two(mut self) -> Self {
        self.four = false;
        self
    }

    fn sectors<const ENCRYPT: bool>(
        &self,
        starts: &[Block16],
        sector_len: usize,
        from: Option<&[u8]>,
        data: &mut [u8],
    ) {
        let keys = if ENCRYPT { &self.encrypt } else { &self.decrypt };
        let keys = &keys[..=self.rounds];
        #[expect(unsafe_code, reason = "instructions that not every processor has")]
        // SAFETY: there is no such value where the processor lacks them, and none with `four` where it lacks those.
        unsafe {
            match self.four {
                true => sectors_by_four::<ENCRYPT>(keys, starts, sector_len, from, data),
                false => sectors_by_two::<ENCRYPT>(keys, starts, sector_len, from, data),
            }
        }
    }
}

impl DataCipher for Vaes {
    fn encrypt(&self, starts: &[Block16], sector_len: usize, from: Option<&[u8]>, data: &mut [u8]) {
        self.sectors::<true>(starts, sector_len, from, data);
    }

    fn decrypt(&self, starts: &[Block16], sector_len: usize, data: &mut [u8]) {
        self.sectors::<false>(starts, sector_len, None, data);
    }
}

/// Key expansion (FIPS 197, 5.2), and the keys of the equivalent inverse cipher (5.3.5).
#[target_feature(enable = "aes")]
fn schedule(key: &[u8], four: bool) -> Vaes {
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
        four,
    }
}

/// The four bytes of a word, each replaced by the S-box.
#[target_feature(enable = "aes")]
fn substituted(word: u32) -> u32 {
    let assisted = _mm_aeskeygenassist_si128::<0>(_mm_set_epi32(0, 0, word.cast_signed(), 0));
    _mm_cvtsi128_si32(assisted).cast_unsigned()
}
