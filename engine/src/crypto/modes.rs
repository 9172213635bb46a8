//! Block cipher modes over runs of sectors: CBC, CTR and ECB (NIST SP 800-38A).
//!
//! Each mode handles many sectors a call, so that the cipher always has independent blocks to work on at once, in CBC
//! encryption too, where the blocks of one sector depend on each other but the sectors do not.

use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser};

/// A keyed cipher in a mode, working on sectors, in place where nothing else is said.
///
/// `ivs` gives an IV for each sector, `sector_len` is a multiple of the block length and `data` of `sector_len`; a shorter IV
/// is the start of the 16 bytes.
pub(crate) trait SectorMode: Send + Sync {
    fn encrypt(&self, ivs: &mut dyn Iterator<Item = [u8; 16]>, sector_len: usize, data: &mut [u8]);

    /// Encrypts `plain`, which is as long, into `data`.
    fn encrypt_from(&self, ivs: &mut dyn Iterator<Item = [u8; 16]>, sector_len: usize, plain: &[u8], data: &mut [u8]) {
        data.copy_from_slice(plain);
        self.encrypt(ivs, sector_len, data);
    }

    fn decrypt(&self, ivs: &mut dyn Iterator<Item = [u8; 16]>, sector_len: usize, data: &mut [u8]);
}

/// Sectors worked on together.
const BATCH: usize = 64;

pub(crate) type Block<C> = Array<u8, <C as BlockSizeUser>::BlockSize>;

fn blocks_of<C: BlockSizeUser>(data: &mut [u8]) -> &mut [Block<C>] {
    Array::slice_as_chunks_mut(data).0
}

/// The first bytes of an IV, as many as the cipher's blocks have.
fn iv_block<C: BlockSizeUser>(iv: [u8; 16]) -> Block<C> {
    let mut block = Block::<C>::default();
    block.iter_mut().zip(iv).for_each(|(to, from)| *to = from);
    block
}

fn xor<C: BlockSizeUser>(to: &mut Block<C>, from: &Block<C>) {
    to.iter_mut().zip(from.iter()).for_each(|(a, b)| *a ^= b);
}

/// Electronic code book: each block by itself; the IV is not used.
pub(crate) struct Ecb<C>(pub(crate) C);

impl<C: BlockCipherEncrypt + BlockCipherDecrypt + Send + Sync> SectorMode for Ecb<C> {
    fn encrypt(&self, _: &mut dyn Iterator<Item = [u8; 16]>, _: usize, data: &mut [u8]) {
        self.0.encrypt_blocks(blocks_of::<C>(data));
    }

    fn decrypt(&self, _: &mut dyn Iterator<Item = [u8; 16]>, _: usize, data: &mut [u8]) {
        self.0.decrypt_blocks(blocks_of::<C>(data));
    }
}

/// Cipher block chaining within each sector.
pub(crate) struct Cbc<C>(pub(crate) C);

impl<C: BlockCipherEncrypt + BlockCipherDecrypt + Send + Sync> SectorMode for Cbc<C> {
    fn encrypt(&self, ivs: &mut dyn Iterator<Item = [u8; 16]>, sector_len: usize, data: &mut [u8]) {
        for part in data.chunks_mut(sector_len.saturating_mul(BATCH)) {
            let sectors = part.len() / sector_len;
            let mut chain: Vec<Block<C>> = (&mut *ivs).take(sectors).map(iv_block::<C>).collect();
            let blocks = blocks_of::<C>(part);
            let per_sector = blocks.len() / sectors.max(1);
            for row in 0..per_sector {
                let column = || (row..).step_by(per_sector);
                chain.iter_mut().zip(column()).for_each(|(link, at)| {
                    blocks.get(at).into_iter().for_each(|block| xor::<C>(link, block));
                });
                self.0.encrypt_blocks(&mut chain);
                chain.iter().zip(column()).for_each(|(link, at)| {
                    blocks.get_mut(at).into_iter().for_each(|block| *block = link.clone());
                });
            }
        }
    }

    fn decrypt(&self, ivs: &mut dyn Iterator<Item = [u8; 16]>, sector_len: usize, data: &mut [u8]) {
        let mut before: Vec<Block<C>> = Vec::new();
        for part in data.chunks_mut(sector_len.saturating_mul(BATCH)) {
            let blocks = blocks_of::<C>(part);
            before.clear();
            before.extend_from_slice(blocks);
            self.0.decrypt_blocks(blocks);
            let per_sector = sector_len / Block::<C>::default().len();
            for (plain, cipher) in blocks.chunks_mut(per_sector).zip(before.chunks(per_sector)) {
                let first = ivs.next().map(iv_block::<C>);
                plain
                    .iter_mut()
                    .zip(first.iter().chain(cipher))
                    .for_each(|(to, from)| xor::<C>(to, from));
            }
        }
    }
}

/// Counter mode: the IV is the big-endian counter of a sector's first block.
pub(crate) struct Ctr<C>(pub(crate) C);

impl<C: BlockCipherEncrypt + Send + Sync> Ctr<C> {
    fn apply(&self, ivs: &mut dyn Iterator<Item = [u8; 16]>, sector_len: usize, data: &mut [u8]) {
        let mut stream: Vec<Block<C>> = Vec::new();
        for (sector, iv) in data.chunks_mut(sector_len).zip(ivs) {
            let blocks = blocks_of::<C>(sector);
            stream.clear();
            let mut counter = iv_block::<C>(iv);
            for _ in 0..blocks.len() {
                stream.push(counter.clone());
                increment(&mut counter);
            }
            self.0.encrypt_blocks(&mut stream);
            blocks.iter_mut().zip(&stream).for_each(|(to, from)| xor::<C>(to, from));
        }
    }
}

impl<C: BlockCipherEncrypt + Send + Sync> SectorMode for Ctr<C> {
    fn encrypt(&self, ivs: &mut dyn Iterator<Item = [u8; 16]>, sector_len: usize, data: &mut [u8]) {
        self.apply(ivs, sector_len, data);
    }

    fn decrypt(&self, ivs: &mut dyn Iterator<Item = [u8; 16]>, sector_len: usize, data: &mut [u8]) {
        self.apply(ivs, sector_len, data);
    }
}

fn increment(counter: &mut [u8]) {
    for byte in counter.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return;
        }
    }
}
