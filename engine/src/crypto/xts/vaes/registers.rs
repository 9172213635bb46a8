//! XTS over sectors in registers of two and of four blocks, by the same steps.
//!
//! Sixteen blocks go through the rounds side by side; their tweaks become those of the next sixteen by one multiplication each, which
//! nothing waits for. No memory is addressed by key or data.

use std::arch::x86_64::{
    __m256i, __m512i, _mm_set_epi64x, _mm256_aesdec_epi128, _mm256_aesdeclast_epi128, _mm256_aesenc_epi128,
    _mm256_aesenclast_epi128, _mm256_broadcastsi128_si256, _mm256_bslli_epi128, _mm256_bsrli_epi128,
    _mm256_clmulepi64_epi128, _mm256_set_epi64x, _mm256_xor_si256, _mm512_aesdec_epi128, _mm512_aesdeclast_epi128,
    _mm512_aesenc_epi128, _mm512_aesenclast_epi128, _mm512_broadcast_i32x4, _mm512_bslli_epi128, _mm512_bsrli_epi128,
    _mm512_clmulepi64_epi128, _mm512_set_epi64, _mm512_xor_si512,
};

use zerocopy::{FromBytes, IntoBytes, transmute};

use super::MOST_KEYS;
use crate::crypto::xts::{Block16, times_alpha};

/// Blocks that are worked on together: as many as there are registers for.
const BLOCKS: usize = 16;
const STRETCH: usize = 16 * BLOCKS;

macro_rules! registers {
    (
        $of:literal blocks in $Register:ident with $features:literal as $sectors:ident:
        $join:ident, $every:ident, $xor:ident, $left:ident, $right:ident, $multiply:ident,
        $encrypt:ident, $encrypt_last:ident, $decrypt:ident, $decrypt_last:ident
    ) => {
        /// Encrypts or decrypts sectors. `starts` are their first tweaks, `from` what they hold before where `data` does not.
        #[target_feature(enable = $features)]
        pub(super) fn $sectors<const ENCRYPT: bool>(
            keys: &[[u8; 16]],
            starts: &[Block16],
            sector_len: usize,
            from: Option<&[u8]>,
            data: &mut [u8],
        ) {
            type Registers = [$Register; BLOCKS / $of];

            #[target_feature(enable = $features)]
            fn times_alpha_bytes<const LEFT: i32, const RIGHT: i32>(tweaks: $Register) -> $Register {
                let polynomial = $every(_mm_set_epi64x(0, 0x87));
                $xor(
                    $left::<LEFT>(tweaks),
                    $multiply::<0>($right::<RIGHT>(tweaks), polynomial),
                )
            }

            #[target_feature(enable = $features)]
            fn first_tweaks(start: u128) -> Registers {
                let mut tweaks = [$every(_mm_set_epi64x(0, 0)); BLOCKS / $of];
                let (near, far) = tweaks.split_at_mut(BLOCKS / $of / 2);
                let mut next = start;
                for (near, far) in near.iter_mut().zip(far) {
                    let mut blocks = [0; $of];
                    for block in &mut blocks {
                        *block = next;
                        next = times_alpha(next);
                    }
                    *near = $join(blocks);
                    *far = times_alpha_bytes::<1, 15>(*near);
                }
                tweaks
            }

            #[target_feature(enable = $features)]
            fn load(stretch: &[u8; STRETCH]) -> Registers {
                let mut states = [$every(_mm_set_epi64x(0, 0)); BLOCKS / $of];
                for (state, bytes) in states.iter_mut().zip(stretch.chunks_exact(16 * $of)) {
                    *state = $Register::read_from_bytes(bytes).unwrap_or(*state);
                }
                states
            }

            #[target_feature(enable = $features)]
            fn apply<const ENCRYPT: bool>(
                keys: &[$Register],
                tweaks: &Registers,
                mut states: Registers,
                data: &mut [u8; STRETCH],
            ) {
                let [first, keys @ .., last] = keys else { return };
                for (state, tweak) in states.iter_mut().zip(tweaks) {
                    *state = $xor(*state, $xor(*first, *tweak));
                }
                for key in keys {
                    for state in &mut states {
                        *state = if ENCRYPT {
                            $encrypt(*state, *key)
                        } else {
                            $decrypt(*state, *key)
                        };
                    }
                }
                for ((state, bytes), tweak) in states.iter().zip(data.chunks_exact_mut(16 * $of)).zip(tweaks) {
                    let key = $xor(*last, *tweak);
                    let done = if ENCRYPT {
                        $encrypt_last(*state, key)
                    } else {
                        $decrypt_last(*state, key)
                    };
                    let _ = done.write_to(bytes);
                }
            }

            let mut wide = [$every(_mm_set_epi64x(0, 0)); MOST_KEYS];
            for (wide, key) in wide.iter_mut().zip(keys) {
                *wide = $every(transmute!(*key));
            }
            let wide = &wide[..keys.len()];
            let mut from = from.map(|from| from.chunks(sector_len));
            for (sector, start) in data.chunks_mut(sector_len).zip(starts) {
                let from = from.as_mut().and_then(Iterator::next);
                let mut tweaks = first_tweaks(u128::from_le_bytes(start.0));
                let (stretches, rest) = sector.as_chunks_mut::<STRETCH>();
                let (from_stretches, from_rest) = from.map(<[u8]>::as_chunks::<STRETCH>).unzip();
                for (index, stretch) in stretches.iter_mut().enumerate() {
                    let before = from_stretches.and_then(|from| from.get(index)).unwrap_or(stretch);
                    apply::<ENCRYPT>(wide, &tweaks, load(before), stretch);
                    for tweak in &mut tweaks {
                        *tweak = times_alpha_bytes::<2, 14>(*tweak);
                    }
                }
                if !rest.is_empty() {
                    let mut padded = [0; STRETCH];
                    padded[..rest.len()].copy_from_slice(from_rest.unwrap_or(rest));
                    apply::<ENCRYPT>(wide, &tweaks, load(&padded), &mut padded);
                    rest.copy_from_slice(&padded[..rest.len()]);
                }
            }
        }
    };
}

registers!(
    2 blocks in __m256i with "aes,avx2,vaes,vpclmulqdq" as sectors_by_two: pair, _mm256_broadcastsi128_si256,
    _mm256_xor_si256, _mm256_bslli_epi128, _mm256_bsrli_epi128, _mm256_clmulepi64_epi128, _mm256_aesenc_epi128,
    _mm256_aesenclast_epi128, _mm256_aesdec_epi128, _mm256_aesdeclast_epi128
);
registers!(
    4 blocks in __m512i with "aes,avx512f,avx512bw,vaes,vpclmulqdq" as sectors_by_four: quad, _mm512_broadcast_i32x4,
    _mm512_xor_si512, _mm512_bslli_epi128, _mm512_bsrli_epi128, _mm512_clmulepi64_epi128, _mm512_aesenc_epi128,
    _mm512_aesenclast_epi128, _mm512_aesdec_epi128, _mm512_aesdeclast_epi128
);

/// Blocks in one register. (A `transmute` becomes moves of single bytes.)
#[target_feature(enable = "avx2")]
fn pair([first, second]: [u128; 2]) -> __m256i {
    let ([a, b], [c, d]) = (halves(first), halves(second));
    _mm256_set_epi64x(d, c, b, a)
}

#[target_feature(enable = "avx512f")]
fn quad([first, second, third, fourth]: [u128; 4]) -> __m512i {
    let ([a, b], [c, d]) = (halves(first), halves(second));
    let ([e, f], [g, h]) = (halves(third), halves(fourth));
    _mm512_set_epi64(h, g, f, e, d, c, b, a)
}

fn halves(block: u128) -> [i64; 2] {
    [block as i64, (block >> 64) as i64]
}
