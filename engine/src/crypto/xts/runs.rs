//! Any cipher, through its multi-block calls.
//!
//! Three passes over a run of blocks that stays in the first cache: XOR with the tweaks, the cipher, XOR again. Inside the cipher's own
//! backend, all of it at once, the registers do not suffice for the tweaks as well, and the compiler turns the rounds of blocks side by
//! side into the rounds of one block after the other.

use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, consts::U16};

use super::{Block16, DataCipher, times_alpha};

/// Blocks in a run: two of them, data and tweaks, fill an eighth of a first cache.
const RUN: usize = 128;
/// Tweaks that are computed side by side.
const LANES: usize = 4;
/// Tweaks of a lane, one after the other: lanes begin times alpha to the eighth from each other.
const LANE: usize = 8;

/// A keyed cipher.
pub(super) struct Runs<C>(pub(super) C);

/// Calls `cipher` with runs of blocks, XORed with their tweaks before and after.
fn apply(starts: &[Block16], sector_len: usize, data: &mut [u8], cipher: impl Fn(&mut [Block16])) {
    let mut masks = [Block16::default(); RUN];
    let mut tweaks = Tweaks {
        starts: starts.iter(),
        per_sector: sector_len / 16,
        left: 0,
        now: 0,
    };
    let (blocks, _) = Array::slice_as_chunks_mut(data);
    for run in blocks.chunks_mut(RUN) {
        let masks = masks.get_mut(..run.len()).unwrap_or_default();
        tweaks.fill(masks);
        xor(run, masks);
        cipher(run);
        xor(run, masks);
    }
}

impl<C> DataCipher for Runs<C>
where
    C: BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16> + Send + Sync,
{
    fn encrypt(&self, starts: &[Block16], sector_len: usize, from: Option<&[u8]>, data: &mut [u8]) {
        if let Some(from) = from {
            data.copy_from_slice(from);
        }
        apply(starts, sector_len, data, |run| self.0.encrypt_blocks(run));
    }

    fn decrypt(&self, starts: &[Block16], sector_len: usize, data: &mut [u8]) {
        apply(starts, sector_len, data, |run| self.0.decrypt_blocks(run));
    }
}

fn xor(blocks: &mut [Block16], masks: &[Block16]) {
    for (block, mask) in blocks.iter_mut().zip(masks) {
        let mixed = u128::from_ne_bytes(block.0) ^ u128::from_ne_bytes(mask.0);
        block.0 = mixed.to_ne_bytes();
    }
}

/// The tweak of each block in turn: the sector's encrypted IV, then times alpha from block to block (IEEE 1619, 5.2).
struct Tweaks<'a> {
    starts: std::slice::Iter<'a, Block16>,
    per_sector: usize,
    left: usize,
    now: u128,
}

impl Tweaks<'_> {
    fn fill(&mut self, masks: &mut [Block16]) {
        let mut rest = masks;
        while !rest.is_empty() {
            if self.left == 0 {
                self.left = self.per_sector;
                self.now = self.starts.next().map_or(0, |start| u128::from_le_bytes(start.0));
            }
            let count = self.left.min(rest.len());
            let (now, later) = rest.split_at_mut(count);
            self.now = sequence(self.now, now);
            self.left -= count;
            rest = later;
        }
    }
}

/// Writes a tweak and those that follow it, and gives the next one. The lanes of a stretch do not wait for each other.
fn sequence(first: u128, masks: &mut [Block16]) -> u128 {
    let mut now = first;
    let (stretches, rest) = masks.as_chunks_mut::<{ LANES * LANE }>();
    for stretch in stretches {
        let mut lanes = [now; LANES];
        let mut start = now;
        for lane in &mut lanes {
            *lane = start;
            start = times_alpha_8(start);
        }
        for step in 0..LANE {
            for (lane, mask) in lanes.iter_mut().zip(stretch.iter_mut().skip(step).step_by(LANE)) {
                mask.0 = lane.to_le_bytes();
                *lane = times_alpha(*lane);
            }
        }
        now = start;
    }
    for mask in rest {
        mask.0 = now.to_le_bytes();
        now = times_alpha(now);
    }
    now
}

/// Times alpha to the eighth: the byte that falls out comes back times x^7 + x^2 + x + 1.
fn times_alpha_8(tweak: u128) -> u128 {
    let out = tweak >> 120;
    (tweak << 8) ^ out ^ (out << 1) ^ (out << 2) ^ (out << 7)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_steps_at_once_are_eight_steps() {
        let mut tweak = 0x8123_4567_89ab_cdef_fedc_ba98_7654_3210_u128;
        for _ in 0..300 {
            let one_by_one = (0..8).fold(tweak, |t, _| times_alpha(t));
            assert_eq!(times_alpha_8(tweak), one_by_one);
            tweak = times_alpha(tweak);
        }
    }

    #[test]
    fn a_sequence_goes_on_where_the_one_before_ended() {
        let first = 0xf0e1_d2c3_b4a5_9687_7869_5a4b_3c2d_1e0f_u128;
        for (len, more) in [(0, 5), (3, 9), (32, 32), (17, 40), (64, 33)] {
            let mut whole = vec![Block16::default(); len + more];
            let end = sequence(first, &mut whole);
            let (mut head, mut tail) = (vec![Block16::default(); len], vec![Block16::default(); more]);
            let middle = sequence(first, &mut head);
            assert_eq!(sequence(middle, &mut tail), end);
            head.extend(tail);
            assert!(head == whole, "{len} and {more}");
        }
    }
}
