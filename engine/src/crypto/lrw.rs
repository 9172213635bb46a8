//! LRW mode (the Liskov-Rivest-Wagner draft of IEEE P1619, 2006), which dm-crypt still opens.
//!
//! Each block is masked before and after with `K2 * index` in GF(2^128), index counting blocks; bits and bytes are in
//! big-endian order and the polynomial is x^128 + x^7 + x^2 + x + 1.

use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, consts::U16};
use zeroize::Zeroize;

use super::modes::SectorMode;

type Block16 = Array<u8, U16>;

/// A cipher in LRW mode.
pub(crate) struct Lrw<C> {
    cipher: C,
    /// `K2 * (2^(n+1) - 1)`: the difference between the masks of a block and the next, by the trailing ones of its index.
    steps: Vec<u128>,
    /// `K2 * 2^n`.
    powers: Vec<u128>,
}

impl<C> Lrw<C> {
    pub(crate) fn new(cipher: C, tweak_key: [u8; 16]) -> Self {
        let (mut steps, mut powers) = (Vec::with_capacity(128), Vec::with_capacity(128));
        let (mut power, mut sum) = (u128::from_be_bytes(tweak_key), 0);
        for _ in 0..128 {
            sum ^= power;
            powers.push(power);
            steps.push(sum);
            power = double(power);
        }
        Self { cipher, steps, powers }
    }

    /// The masks of a sector's blocks, the first one's index being `iv`.
    fn masks(&self, iv: [u8; 16], count: usize) -> Vec<u128> {
        let mut index = u128::from_be_bytes(iv);
        let bits = self.powers.iter().enumerate().filter(|(n, _)| (index >> n) & 1 == 1);
        let mut mask = bits.fold(0, |sum, (_, power)| sum ^ power);
        let mut masks = Vec::with_capacity(count);
        for _ in 0..count {
            masks.push(mask);
            let ones = index.trailing_ones() as usize;
            mask ^= self.steps.get(ones).copied().unwrap_or_default();
            index = index.wrapping_add(1);
        }
        masks
    }

    fn apply(
        &self,
        ivs: &mut dyn Iterator<Item = [u8; 16]>,
        sector_len: usize,
        data: &mut [u8],
        work: impl Fn(&mut [Block16]),
    ) {
        for (sector, iv) in data.chunks_mut(sector_len).zip(ivs) {
            let (blocks, _) = Array::slice_as_chunks_mut(sector);
            let masks = self.masks(iv, blocks.len());
            xor(blocks, &masks);
            work(blocks);
            xor(blocks, &masks);
        }
    }
}

impl<C> SectorMode for Lrw<C>
where
    C: BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16> + Send + Sync,
{
    fn encrypt(&self, ivs: &mut dyn Iterator<Item = [u8; 16]>, sector_len: usize, data: &mut [u8]) {
        self.apply(ivs, sector_len, data, |blocks| self.cipher.encrypt_blocks(blocks));
    }

    fn decrypt(&self, ivs: &mut dyn Iterator<Item = [u8; 16]>, sector_len: usize, data: &mut [u8]) {
        self.apply(ivs, sector_len, data, |blocks| self.cipher.decrypt_blocks(blocks));
    }
}

impl<C> Drop for Lrw<C> {
    fn drop(&mut self) {
        self.steps.zeroize();
        self.powers.zeroize();
    }
}

fn double(value: u128) -> u128 {
    (value << 1) ^ ((value >> 127) * 0x87)
}

fn xor(blocks: &mut [Block16], masks: &[u128]) {
    for (block, mask) in blocks.iter_mut().zip(masks) {
        block.0 = (u128::from_be_bytes(block.0) ^ mask).to_be_bytes();
    }
}
