//! HMACs (RFC 2104) of each other, one after the next: nearly all that PBKDF2 does.

use hmac::{EagerHash, Hmac, Mac};
use sha2::{Digest, Sha256, block_api::compress256};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// A keyed HMAC that is fed its own results.
pub(super) trait Chain: Sync {
    /// Replaces `link` by its HMAC `count` times, and XORs each result into `sum`.
    fn go_on(&self, link: &mut [u8], count: u32, sum: &mut [u8]);
}

impl<D: EagerHash> Chain for Hmac<D>
where
    Self: Sync,
{
    fn go_on(&self, link: &mut [u8], count: u32, sum: &mut [u8]) {
        for _ in 0..count {
            let mut next = self.clone();
            next.update(link);
            link.copy_from_slice(&next.finalize().into_bytes());
            add(sum, link);
        }
    }
}

/// HMAC-SHA-256 by two calls of the compression function: a digest and its padding fill one block. The general way takes half as
/// long again, for its buffers.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(super) struct Sha256Chain {
    inner: [u32; 8],
    outer: [u32; 8],
}

/// Bytes of a block of SHA-256.
const BLOCK: usize = 64;
/// Bytes of a digest.
const DIGEST: usize = 32;

/// The state before the first block (FIPS 180-4, 5.3.3).
const INITIAL: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

impl Sha256Chain {
    pub(super) fn new(passphrase: &[u8]) -> Self {
        let mut key = Zeroizing::new([0; BLOCK]);
        match key.get_mut(..passphrase.len()) {
            Some(start) => start.copy_from_slice(passphrase),
            None => key[..DIGEST].copy_from_slice(&Sha256::digest(passphrase)),
        }
        let padded = |pad| {
            let mut state = INITIAL;
            let block = Zeroizing::new(key.map(|byte| byte ^ pad));
            compress256(&mut state, std::slice::from_ref(&*block));
            state
        };
        Self {
            inner: padded(0x36),
            outer: padded(0x5c),
        }
    }
}

impl Chain for Sha256Chain {
    fn go_on(&self, link: &mut [u8], count: u32, sum: &mut [u8]) {
        let mut block = Zeroizing::new([0; BLOCK]);
        block[..DIGEST].copy_from_slice(link);
        block[DIGEST] = 0x80;
        let bits = 8 * (BLOCK + DIGEST) as u64;
        block[BLOCK - 8..].copy_from_slice(&bits.to_be_bytes());
        for _ in 0..count {
            for start in [self.inner, self.outer] {
                let mut state = start;
                compress256(&mut state, std::slice::from_ref(&*block));
                let (words, _) = block[..DIGEST].as_chunks_mut();
                words
                    .iter_mut()
                    .zip(state)
                    .for_each(|(to, word)| *to = word.to_be_bytes());
            }
            add(sum, &block[..DIGEST]);
        }
        link.copy_from_slice(&block[..DIGEST]);
    }
}

fn add(sum: &mut [u8], link: &[u8]) {
    sum.iter_mut().zip(link).for_each(|(to, from)| *to ^= from);
}

#[cfg(test)]
mod tests {
    use hmac::KeyInit;

    use super::*;

    #[test]
    fn two_compressions_are_an_hmac() {
        for len in [0, 1, 31, 63, 64, 65, 200] {
            let passphrase: Vec<u8> = (0..len).map(|i| (i * 11 % 251) as u8).collect();
            let (ours, theirs) = (
                Sha256Chain::new(&passphrase),
                <Hmac<Sha256> as KeyInit>::new_from_slice(&passphrase).unwrap(),
            );
            let both = [&ours as &dyn Chain, &theirs].map(|chain| {
                let (mut link, mut sum) = ([0x5a; DIGEST], [0xc3; 20]);
                chain.go_on(&mut link, 1, &mut sum);
                chain.go_on(&mut link, 7, &mut sum);
                (link, sum)
            });
            assert_eq!(both[0], both[1], "a passphrase of {len} bytes");
        }
    }
}
