//! HMAC-SHA-256 by the SHA extensions of x86: a digest goes from one HMAC into the next without leaving the registers.

use std::arch::x86_64::{
    __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_set_epi32, _mm_sha256msg1_epu32, _mm_sha256msg2_epu32,
    _mm_sha256rnds2_epu32, _mm_shuffle_epi32, _mm_unpackhi_epi64, _mm_unpacklo_epi64, _mm_xor_si128,
};

use zerocopy::transmute;

use super::{BLOCK, DIGEST};

/// The constants of the rounds (FIPS 180-4, 4.2.2).
const ROUNDS: [[u32; 4]; 16] = [
    [0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5],
    [0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5],
    [0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3],
    [0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174],
    [0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc],
    [0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da],
    [0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7],
    [0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967],
    [0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13],
    [0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85],
    [0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3],
    [0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070],
    [0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5],
    [0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3],
    [0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208],
    [0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2],
];

/// Whether the processor has what [`go_on`] needs.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("sha") && is_x86_feature_detected!("ssse3")
}

/// Replaces `link` by its HMAC `count` times, and XORs each into `sum`; `inner` and `outer` are the states after the padded key.
#[target_feature(enable = "sha,ssse3")]
pub(super) fn go_on(inner: &[u32; 8], outer: &[u32; 8], link: &mut [u32; 8], count: u32, sum: &mut [u32; 8]) {
    let (inner, outer) = (State::new(inner), State::new(outer));
    let (mut digest, mut total) = (vectors(link), vectors(sum));
    for _ in 0..count {
        digest = outer.after(inner.after(digest).digest()).digest();
        total = [_mm_xor_si128(total[0], digest[0]), _mm_xor_si128(total[1], digest[1])];
    }
    *link = transmute!(digest);
    *sum = transmute!(total);
}

/// Four words, the first one lowest.
#[target_feature(enable = "sha,ssse3")]
fn vector(words: &[u32; 4]) -> __m128i {
    let [first, second, third, fourth] = words.map(u32::cast_signed);
    _mm_set_epi32(fourth, third, second, first)
}

#[target_feature(enable = "sha,ssse3")]
fn vectors(words: &[u32; 8]) -> [__m128i; 2] {
    let [first, second]: [[u32; 4]; 2] = transmute!(*words);
    [vector(&first), vector(&second)]
}

/// The eight working variables as the instructions want them: a, b, e, f and c, d, g, h, the first ones highest.
#[derive(Clone, Copy)]
struct State {
    abef: __m128i,
    cdgh: __m128i,
}

impl State {
    #[target_feature(enable = "sha,ssse3")]
    fn new(words: &[u32; 8]) -> Self {
        let [a, b, c, d, e, f, g, h] = words.map(u32::cast_signed);
        Self {
            abef: _mm_set_epi32(a, b, e, f),
            cdgh: _mm_set_epi32(c, d, g, h),
        }
    }

    /// The words in their order.
    #[target_feature(enable = "sha,ssse3")]
    fn digest(self) -> [__m128i; 2] {
        [
            _mm_shuffle_epi32::<0b10_11_00_01>(_mm_unpackhi_epi64(self.abef, self.cdgh)),
            _mm_shuffle_epi32::<0b10_11_00_01>(_mm_unpacklo_epi64(self.abef, self.cdgh)),
        ]
    }

    /// What a block of a digest and its padding makes of the state (FIPS 180-4, 6.2.2).
    #[target_feature(enable = "sha,ssse3")]
    fn after(self, digest: [__m128i; 2]) -> Self {
        let padding = _mm_set_epi32(0, 0, 0, 0x8000_0000_u32.cast_signed());
        let length = _mm_set_epi32(8 * (BLOCK + DIGEST) as i32, 0, 0, 0);
        let mut words = [digest[0], digest[1], padding, length];
        let mut now = self;
        for (n, constants) in ROUNDS.as_chunks::<4>().0.iter().enumerate() {
            for (words, constants) in words.iter().zip(constants) {
                now = now.rounds(_mm_add_epi32(*words, vector(constants)));
            }
            if n < 3 {
                words[0] = next_words(words[0], words[1], words[2], words[3]);
                words[1] = next_words(words[1], words[2], words[3], words[0]);
                words[2] = next_words(words[2], words[3], words[0], words[1]);
                words[3] = next_words(words[3], words[0], words[1], words[2]);
            }
        }
        Self {
            abef: _mm_add_epi32(self.abef, now.abef),
            cdgh: _mm_add_epi32(self.cdgh, now.cdgh),
        }
    }

    /// Four rounds, with the sums of words and constants.
    #[target_feature(enable = "sha,ssse3")]
    fn rounds(self, sums: __m128i) -> Self {
        let cdgh = _mm_sha256rnds2_epu32(self.cdgh, self.abef, sums);
        let abef = _mm_sha256rnds2_epu32(self.abef, cdgh, _mm_shuffle_epi32::<0b00_00_11_10>(sums));
        Self { abef, cdgh }
    }
}

/// The four words of the message schedule that follow these sixteen.
#[target_feature(enable = "sha,ssse3")]
fn next_words(w0: __m128i, w4: __m128i, w8: __m128i, w12: __m128i) -> __m128i {
    let sums = _mm_add_epi32(_mm_sha256msg1_epu32(w0, w4), _mm_alignr_epi8::<4>(w12, w8));
    _mm_sha256msg2_epu32(sums, w12)
}
