//! HMACs (RFC 2104) of each other, one after the next: nearly all that PBKDF2 does.

#[cfg(target_arch = "x86_64")]
mod registers;

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
        #[cfg(target_arch = "x86_64")]
        if registers::available() {
            return self.go_on_in_registers(link, count, sum);
        }
        self.go_on_anywhere(link, count, sum);
    }
}

impl Sha256Chain {
    #[cfg(target_arch = "x86_64")]
    fn go_on_in_registers(&self, link: &mut [u8], count: u32, sum: &mut [u8]) {
        let mut words = Zeroizing::new(words(link));
        let mut total = Zeroizing::new([0; 8]);
        #[expect(unsafe_code, reason = "instructions that not every processor has")]
        // SAFETY: the caller found that the processor has them.
        unsafe {
            registers::go_on(&self.inner, &self.outer, &mut words, count, &mut total);
        }
        link.copy_from_slice(&*bytes(&words));
        add(sum, &*bytes(&total));
    }

    fn go_on_anywhere(&self, link: &mut [u8], count: u32, sum: &mut [u8]) {
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

/// The words of a digest (FIPS 180-4, 3.1).
#[cfg(target_arch = "x86_64")]
fn words(digest: &[u8]) -> [u32; 8] {
    let (bytes, _) = digest.as_chunks();
    std::array::from_fn(|n| bytes.get(n).copied().map_or(0, u32::from_be_bytes))
}

#[cfg(target_arch = "x86_64")]
fn bytes(words: &[u32; 8]) -> Zeroizing<[u8; DIGEST]> {
    let mut digest = Zeroizing::new([0; DIGEST]);
    let (bytes, _) = digest.as_chunks_mut();
    bytes
        .iter_mut()
        .zip(words)
        .for_each(|(to, word)| *to = word.to_be_bytes());
    digest
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
            let anywhere = Anywhere(Sha256Chain::new(&passphrase));
            let all = [&ours as &dyn Chain, &theirs, &anywhere].map(|chain| {
                let (mut link, mut sum) = ([0x5a; DIGEST], [0xc3; 20]);
                chain.go_on(&mut link, 1, &mut sum);
                chain.go_on(&mut link, 7, &mut sum);
                (link, sum)
            });
            assert_eq!(all[0], all[1], "a passphrase of {len} bytes");
            assert_eq!(all[2], all[1], "a passphrase of {len} bytes");
        }
    }

    /// As on processors without instructions for it.
    struct Anywhere(Sha256Chain);

    impl Chain for Anywhere {
        fn go_on(&self, link: &mut [u8], count: u32, sum: &mut [u8]) {
            self.0.go_on_anywhere(link, count, sum);
        }
    }
}
