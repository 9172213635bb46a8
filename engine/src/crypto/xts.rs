//! XTS mode (IEEE Std 1619) over a cipher's multi-block calls.
//!
//! The work of a run of sectors is done inside the cipher's own backend, so that XOR, tweak doubling and rounds use the
//! widest registers the processor has. The tweaks that start the sectors are encrypted together before that.
//! Sectors are multiples of the block length: ciphertext stealing is not needed.

use aes::cipher::{
    Array, BlockCipherDecBackend, BlockCipherDecClosure, BlockCipherDecrypt, BlockCipherEncBackend,
    BlockCipherEncClosure, BlockCipherEncrypt, BlockSizeUser, array::ArraySize, consts::U16,
};

use super::modes::SectorMode;

type Block16 = Array<u8, U16>;

/// Sectors whose first tweaks are encrypted together; also the widest backend's number of blocks.
const BATCH: usize = 64;

/// A cipher in XTS mode: one key for the data, one for the tweaks.
pub(crate) struct Xts<C> {
    data: C,
    tweak: C,
}

impl<C> Xts<C> {
    pub(crate) fn new(data: C, tweak: C) -> Self {
        Self { data, tweak }
    }
}

impl<C> Xts<C>
where
    C: BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16>,
{
    /// Calls `work` with runs of at most [`BATCH`] sectors and the tweaks they start with.
    fn run(&self, ivs: &mut dyn Iterator<Item = [u8; 16]>, sector_len: usize, data: &mut [u8], work: impl Fn(Run<'_>)) {
        let mut tweaks = [Block16::default(); BATCH];
        for part in data.chunks_mut(sector_len.saturating_mul(BATCH)) {
            let mut filled = 0;
            for (slot, iv) in tweaks.iter_mut().zip((&mut *ivs).take(part.len().div_ceil(sector_len))) {
                *slot = Array(iv);
                filled += 1;
            }
            let Some(starts) = tweaks.get_mut(..filled) else { return };
            self.tweak.encrypt_blocks(starts);
            let (blocks, _) = Array::slice_as_chunks_mut(part);
            work(Run {
                starts,
                blocks_per_sector: sector_len / 16,
                blocks,
            });
        }
    }
}

impl<C> SectorMode for Xts<C>
where
    C: BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16> + Send + Sync,
{
    fn encrypt(&self, ivs: &mut dyn Iterator<Item = [u8; 16]>, sector_len: usize, data: &mut [u8]) {
        self.run(ivs, sector_len, data, |run| self.data.encrypt_with_backend(run));
    }

    fn decrypt(&self, ivs: &mut dyn Iterator<Item = [u8; 16]>, sector_len: usize, data: &mut [u8]) {
        self.run(ivs, sector_len, data, |run| self.data.decrypt_with_backend(run));
    }
}

/// The work of one call: whole sectors in place.
struct Run<'a> {
    starts: &'a [Block16],
    blocks_per_sector: usize,
    blocks: &'a mut [Block16],
}

impl BlockSizeUser for Run<'_> {
    type BlockSize = U16;
}

impl BlockCipherEncClosure for Run<'_> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(self, backend: &B) {
        self.apply::<B::ParBlocksSize>(
            |b| backend.encrypt_block_inplace(b),
            |p| backend.encrypt_par_blocks_inplace(p),
        );
    }
}

impl BlockCipherDecClosure for Run<'_> {
    #[inline(always)]
    fn call<B: BlockCipherDecBackend<BlockSize = U16>>(self, backend: &B) {
        self.apply::<B::ParBlocksSize>(
            |b| backend.decrypt_block_inplace(b),
            |p| backend.decrypt_par_blocks_inplace(p),
        );
    }
}

impl Run<'_> {
    #[inline(always)]
    fn apply<N: ArraySize>(self, one: impl Fn(&mut Block16), many: impl Fn(&mut Array<Block16, N>)) {
        let mut tweaks = Tweaks {
            starts: self.starts.iter(),
            per_sector: self.blocks_per_sector,
            left: 0,
            now: 0,
        };
        let mut masks = Array::<Block16, N>::default();
        let (chunks, tail) = Array::<Block16, N>::slice_as_chunks_mut(self.blocks);
        for chunk in chunks {
            tweaks.fill(&mut masks);
            xor(chunk, &masks);
            many(chunk);
            xor(chunk, &masks);
        }
        if tail.len() > N::USIZE / 8 && tail.len() > 1 {
            let mut padded = Array::<Block16, N>::default();
            padded.iter_mut().zip(tail.iter()).for_each(|(to, from)| *to = *from);
            tweaks.fill(masks.get_mut(..tail.len()).unwrap_or_default());
            xor(&mut padded, &masks);
            many(&mut padded);
            xor(&mut padded, &masks);
            tail.iter_mut().zip(padded.iter()).for_each(|(to, from)| *to = *from);
        } else {
            for block in tail {
                let mut mask = [Block16::default()];
                tweaks.fill(&mut mask);
                xor(std::slice::from_mut(block), &mask);
                one(block);
                xor(std::slice::from_mut(block), &mask);
            }
        }
    }
}

#[inline(always)]
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
    #[inline(always)]
    fn fill(&mut self, masks: &mut [Block16]) {
        let mut rest = masks;
        while !rest.is_empty() {
            if self.left == 0 {
                self.left = self.per_sector;
                self.now = self.starts.next().map_or(0, |start| u128::from_le_bytes(start.0));
            }
            let count = self.left.min(rest.len());
            let (now, later) = rest.split_at_mut(count);
            for mask in now {
                mask.0 = self.now.to_le_bytes();
                self.now = times_alpha(self.now);
            }
            self.left -= count;
            rest = later;
        }
    }
}

#[inline(always)]
fn times_alpha(tweak: u128) -> u128 {
    let carry = ((tweak as i128) >> 127) as u128 & 0x87;
    (tweak << 1) ^ carry
}
