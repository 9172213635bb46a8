//! Twofish (Schneier, Kelsey, Whiting, Wagner, Hall, Ferguson: "Twofish: A 128-Bit Block Cipher", 1998), with the key-dependent
//! S-boxes and the matrix that follows them in tables.
//!
//! The `twofish` crate computes both for every byte of every round, which gives a few megabytes a second. It is what the tests compare
//! with.

use aes::cipher::{
    Block, BlockCipherDecBackend, BlockCipherDecClosure, BlockCipherDecrypt, BlockCipherEncBackend,
    BlockCipherEncClosure, BlockCipherEncrypt, BlockSizeUser, InOut, InvalidLength, Key, KeyInit, KeySizeUser,
    ParBlocksSizeUser,
    consts::{U1, U16, U32},
};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A keyed cipher: 4 KiB of tables and the round keys.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct Twofish {
    tables: Box<[[u32; 256]; 4]>,
    keys: [u32; 40],
}

type Nibbles = [u8; 16];

/// The fixed permutations q0 and q1, made of four 4-bit permutations each (section 4.3.5).
const Q: [[u8; 256]; 2] = [
    permutation([
        [8, 1, 7, 13, 6, 15, 3, 2, 0, 11, 5, 9, 14, 12, 10, 4],
        [14, 12, 11, 8, 1, 2, 3, 5, 15, 4, 10, 6, 7, 0, 9, 13],
        [11, 10, 5, 14, 6, 13, 9, 0, 12, 8, 15, 3, 2, 4, 7, 1],
        [13, 7, 15, 4, 1, 2, 6, 14, 9, 11, 3, 0, 8, 5, 12, 10],
    ]),
    permutation([
        [2, 8, 11, 13, 15, 7, 6, 14, 3, 1, 9, 4, 0, 10, 12, 5],
        [1, 14, 2, 11, 4, 12, 3, 7, 6, 13, 10, 5, 15, 9, 0, 8],
        [4, 12, 7, 5, 1, 6, 9, 10, 0, 14, 13, 8, 2, 11, 3, 15],
        [11, 9, 5, 1, 12, 3, 13, 14, 6, 4, 7, 15, 2, 0, 8, 10],
    ]),
];

/// Which of q0 and q1 a byte goes through before it meets each key word, from the last word to the result (figure 2).
const ORDER: [[usize; 5]; 4] = [[1, 1, 0, 0, 1], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1], [1, 0, 1, 1, 0]];

/// Columns of the MDS matrix, low byte first.
const MDS: [[u8; 4]; 4] = [
    [0x01, 0x5b, 0xef, 0xef],
    [0xef, 0xef, 0x5b, 0x01],
    [0x5b, 0xef, 0x01, 0xef],
    [0x5b, 0x01, 0xef, 0x5b],
];

/// Rows of the RS matrix.
const RS: [[u8; 8]; 4] = [
    [0x01, 0xa4, 0x55, 0x87, 0x5a, 0x58, 0xdb, 0x9e],
    [0xa4, 0x56, 0x82, 0xf3, 0x1e, 0xc6, 0x68, 0xe5],
    [0x02, 0xa1, 0xfc, 0xc1, 0x47, 0xae, 0x3d, 0x19],
    [0xa4, 0x55, 0x87, 0x5a, 0x58, 0xdb, 0x9e, 0x03],
];

const fn permutation(t: [Nibbles; 4]) -> [u8; 256] {
    let mut out = [0; 256];
    let mut x = 0;
    while x < 256 {
        let (a, b) = mix((x >> 4) as u8, (x & 15) as u8);
        let (a, b) = mix(t[0][a as usize], t[1][b as usize]);
        out[x] = t[3][b as usize] << 4 | t[2][a as usize];
        x += 1;
    }
    out
}

const fn mix(a: u8, b: u8) -> (u8, u8) {
    (a ^ b, (a ^ (b >> 1 | b << 3) ^ (a << 3)) & 15)
}

/// Multiplies in GF(2^8) modulo a polynomial of degree 8.
fn times(mut a: u32, mut b: u32, polynomial: u32) -> u32 {
    let mut product = 0;
    while b != 0 {
        product ^= a * (b & 1);
        a <<= 1;
        a ^= polynomial * (a >> 8);
        b >>= 1;
    }
    product
}

/// A byte of `h` before the matrix: through q0 and q1 in turn, with a byte of each key word in between.
fn substitute(lane: usize, byte: u8, words: &[[u8; 4]]) -> u8 {
    let skipped = 4 - words.len();
    let order = ORDER[lane].iter().skip(skipped);
    let mut byte = byte;
    for (n, q) in order.enumerate() {
        byte = Q[*q][usize::from(byte)];
        if let Some(word) = words.len().checked_sub(n + 1).and_then(|last| words.get(last)) {
            byte ^= word[lane];
        }
    }
    byte
}

fn column(lane: usize, byte: u8) -> u32 {
    let product = MDS[lane].map(|row| times(row.into(), byte.into(), 0x169) as u8);
    u32::from_le_bytes(product)
}

/// The function `h` (section 4.3.2).
fn h(byte: u8, words: &[[u8; 4]]) -> u32 {
    (0..4).fold(0, |sum, lane| sum ^ column(lane, substitute(lane, byte, words)))
}

fn reed_solomon(part: &[u8]) -> [u8; 4] {
    RS.map(|row| {
        row.iter()
            .zip(part)
            .fold(0, |sum, (r, m)| sum ^ times((*r).into(), (*m).into(), 0x14d)) as u8
    })
}

impl Twofish {
    fn schedule(key: &[u8]) -> Self {
        let words: Vec<[u8; 4]> = key.chunks_exact(4).filter_map(|word| word.try_into().ok()).collect();
        let even: Vec<_> = words.iter().step_by(2).copied().collect();
        let odd: Vec<_> = words.iter().skip(1).step_by(2).copied().collect();
        let mut sbox: Vec<_> = key.chunks_exact(8).map(reed_solomon).collect();
        sbox.reverse();
        let mut keys = [0; 40];
        for (pair, n) in keys.chunks_exact_mut(2).zip(0_u8..) {
            let (a, b) = (h(2 * n, &even), h(2 * n + 1, &odd).rotate_left(8));
            let sum = a.wrapping_add(b);
            pair.copy_from_slice(&[sum, sum.wrapping_add(b).rotate_left(9)]);
        }
        let mut tables = Box::new([[0; 256]; 4]);
        for (lane, table) in tables.iter_mut().enumerate() {
            for (entry, byte) in table.iter_mut().zip(0..=255) {
                *entry = column(lane, substitute(lane, byte, &sbox));
            }
        }
        Self { tables, keys }
    }

    #[inline(always)]
    fn g(&self, x: u32) -> u32 {
        let [a, b, c, d] = x.to_le_bytes().map(usize::from);
        self.tables[0][a] ^ self.tables[1][b] ^ self.tables[2][c] ^ self.tables[3][d]
    }

    /// The two words that a round adds.
    #[inline(always)]
    fn f(&self, a: u32, b: u32, keys: &[u32]) -> (u32, u32) {
        let (t0, t1) = (self.g(a), self.g(b.rotate_left(8)));
        let sum = t0.wrapping_add(t1);
        (sum.wrapping_add(keys[0]), sum.wrapping_add(t1).wrapping_add(keys[1]))
    }

    fn whiten(words: [u32; 4], keys: &[u32]) -> [u32; 4] {
        let mut words = words;
        words.iter_mut().zip(keys).for_each(|(word, key)| *word ^= key);
        words
    }
}

fn words_of(block: &[u8; 16]) -> [u32; 4] {
    let value = u128::from_le_bytes(*block);
    [0, 32, 64, 96].map(|shift| (value >> shift) as u32)
}

fn bytes_of(words: [u32; 4]) -> [u8; 16] {
    let value = words
        .iter()
        .rev()
        .fold(0_u128, |value, word| value << 32 | u128::from(*word));
    value.to_le_bytes()
}

impl BlockCipherEncBackend for Twofish {
    #[inline]
    fn encrypt_block(&self, mut block: InOut<'_, '_, Block<Self>>) {
        let (input, rounds) = self.keys.split_at(8);
        let [mut a, mut b, mut c, mut d] = Self::whiten(words_of(&block.get_in().0), &input[..4]);
        for keys in rounds.chunks_exact(4) {
            let (x, y) = self.f(a, b, &keys[..2]);
            (c, d) = ((c ^ x).rotate_right(1), d.rotate_left(1) ^ y);
            let (x, y) = self.f(c, d, &keys[2..]);
            (a, b) = ((a ^ x).rotate_right(1), b.rotate_left(1) ^ y);
        }
        block.get_out().0 = bytes_of(Self::whiten([c, d, a, b], &input[4..]));
    }
}

impl BlockCipherDecBackend for Twofish {
    #[inline]
    fn decrypt_block(&self, mut block: InOut<'_, '_, Block<Self>>) {
        let (input, rounds) = self.keys.split_at(8);
        let [mut c, mut d, mut a, mut b] = Self::whiten(words_of(&block.get_in().0), &input[4..]);
        for keys in rounds.chunks_exact(4).rev() {
            let (x, y) = self.f(c, d, &keys[2..]);
            (a, b) = (a.rotate_left(1) ^ x, (b ^ y).rotate_right(1));
            let (x, y) = self.f(a, b, &keys[..2]);
            (c, d) = (c.rotate_left(1) ^ x, (d ^ y).rotate_right(1));
        }
        block.get_out().0 = bytes_of(Self::whiten([a, b, c, d], &input[..4]));
    }
}

impl BlockSizeUser for Twofish {
    type BlockSize = U16;
}

impl ParBlocksSizeUser for Twofish {
    type ParBlocksSize = U1;
}

impl KeySizeUser for Twofish {
    type KeySize = U32;
}

impl KeyInit for Twofish {
    fn new(key: &Key<Self>) -> Self {
        Self::schedule(key)
    }
    fn new_from_slice(key: &[u8]) -> Result<Self, InvalidLength> {
        if matches!(key.len(), 16 | 24 | 32) {
            Ok(Self::schedule(key))
        } else {
            Err(InvalidLength)
        }
    }
}

impl BlockCipherEncrypt for Twofish {
    fn encrypt_with_backend(&self, f: impl BlockCipherEncClosure<BlockSize = U16>) {
        f.call(self);
    }
}

impl BlockCipherDecrypt for Twofish {
    fn decrypt_with_backend(&self, f: impl BlockCipherDecClosure<BlockSize = U16>) {
        f.call(self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_length_agrees_with_the_twofish_crate() {
        for len in [16, 24, 32] {
            for seed in 0..50_u8 {
                let key: Vec<u8> = (0..len)
                    .map(|n| (n as u8).wrapping_mul(seed).wrapping_add(seed))
                    .collect();
                let ours = Twofish::new_from_slice(&key).unwrap();
                let theirs = ::twofish::Twofish::new_from_slice(&key).unwrap();
                let plain = Block::<Twofish>::from([seed.wrapping_mul(31); 16]);
                let (mut a, mut b) = (plain, plain);
                BlockCipherEncrypt::encrypt_block(&ours, &mut a);
                BlockCipherEncrypt::encrypt_block(&theirs, &mut b);
                assert_eq!(a, b, "{len} {seed}");
                BlockCipherDecrypt::decrypt_block(&ours, &mut a);
                assert_eq!(a, plain, "{len} {seed}");
            }
        }
    }
}
