//! XTS mode (IEEE Std 1619). Sectors are multiples of the block length: ciphertext stealing is not needed.

mod runs;
#[cfg(target_arch = "x86_64")]
mod vaes;

use aes::cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, consts::U16};

use super::modes::SectorMode;
use runs::Runs;

type Block16 = Array<u8, U16>;

/// Sectors whose first tweaks are encrypted together.
const BATCH: usize = 64;

/// A cipher in XTS mode: one key for the data, one for the tweaks.
struct Xts<D, C> {
    data: D,
    tweak: C,
}

/// What the data key does. `starts` are the sectors' encrypted IVs, each the tweak of its sector's first block.
trait DataCipher: Send + Sync {
    /// `from` is what to encrypt where `data` does not hold it.
    fn encrypt(&self, starts: &[Block16], sector_len: usize, from: Option<&[u8]>, data: &mut [u8]);
    fn decrypt(&self, starts: &[Block16], sector_len: usize, data: &mut [u8]);
}

/// Any cipher in XTS mode.
pub(crate) fn xts<C>(data: C, tweak: C) -> Box<dyn SectorMode>
where
    C: BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16> + Send + Sync + 'static,
{
    let data = Runs(data);
    Box::new(Xts { data, tweak })
}

/// AES in XTS mode where the processor can do better than block by block; `None` where it cannot.
#[cfg(target_arch = "x86_64")]
pub(crate) fn wide_aes<C>(data_key: &[u8], tweak: C) -> Option<Box<dyn SectorMode>>
where
    C: BlockCipherEncrypt + BlockSizeUser<BlockSize = U16> + Send + Sync + 'static,
{
    let data = vaes::Vaes::new(data_key)?;
    Some(Box::new(Xts { data, tweak }))
}

/// AES in XTS mode where the processor can do better than block by block; `None`: no other is known of here.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn wide_aes<C>(_data_key: &[u8], _tweak: C) -> Option<Box<dyn SectorMode>> {
    None
}

impl<D: DataCipher, C: BlockCipherEncrypt + BlockSizeUser<BlockSize = U16>> Xts<D, C> {
    /// Calls `work` with the first tweaks of some sectors and their data.
    fn batches(
        &self,
        ivs: &mut dyn Iterator<Item = [u8; 16]>,
        sector_len: usize,
        from: Option<&[u8]>,
        data: &mut [u8],
        work: impl Fn(&[Block16], Option<&[u8]>, &mut [u8]),
    ) {
        let mut starts = [Block16::default(); BATCH];
        let batch = sector_len.saturating_mul(BATCH);
        let mut from = from.map(|from| from.chunks(batch));
        for part in data.chunks_mut(batch) {
            let sectors = part.len().div_ceil(sector_len);
            let Some(starts) = starts.get_mut(..sectors) else {
                return;
            };
            starts
                .iter_mut()
                .zip(&mut *ivs)
                .for_each(|(slot, iv)| *slot = Array(iv));
            self.tweak.encrypt_blocks(starts);
            work(starts, from.as_mut().and_then(Iterator::next), part);
        }
    }
}

impl<D: DataCipher, C: BlockCipherEncrypt + BlockSizeUser<BlockSize = U16> + Send + Sync> SectorMode for Xts<D, C> {
    fn encrypt(&self, ivs: &mut dyn Iterator<Item = [u8; 16]>, sector_len: usize, data: &mut [u8]) {
        self.batches(ivs, sector_len, None, data, |starts, from, part| {
            self.data.encrypt(starts, sector_len, from, part)
        });
    }

    fn encrypt_from(&self, ivs: &mut dyn Iterator<Item = [u8; 16]>, sector_len: usize, plain: &[u8], data: &mut [u8]) {
        self.batches(ivs, sector_len, Some(plain), data, |starts, from, part| {
            self.data.encrypt(starts, sector_len, from, part)
        });
    }

    fn decrypt(&self, ivs: &mut dyn Iterator<Item = [u8; 16]>, sector_len: usize, data: &mut [u8]) {
        self.batches(ivs, sector_len, None, data, |starts, _, part| {
            self.data.decrypt(starts, sector_len, part)
        });
    }
}

/// Times alpha in GF(2^128) modulo x^128 + x^7 + x^2 + x + 1: from the tweak of a block to that of the next (IEEE 1619, 5.2).
fn times_alpha(tweak: u128) -> u128 {
    let carry = ((tweak as i128) >> 127) as u128 & 0x87;
    (tweak << 1) ^ carry
}

#[cfg(test)]
mod tests {
    use aes::cipher::KeyInit;

    use super::*;

    /// Every wide way that this processor has.
    fn wide_ways<C>(key: &[u8], tweak: impl Fn() -> C) -> Vec<Box<dyn SectorMode>>
    where
        C: BlockCipherEncrypt + BlockSizeUser<BlockSize = U16> + Send + Sync + 'static,
    {
        let mut ways = Vec::from_iter(wide_aes(key, tweak()));
        #[cfg(target_arch = "x86_64")]
        if let Some(data) = vaes::Vaes::new(key) {
            let (data, tweak) = (data.by_two(), tweak());
            ways.push(Box::new(Xts { data, tweak }));
        }
        ways
    }

    fn all_agree<C>(key: &[u8])
    where
        C: KeyInit + BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16> + Send + Sync + 'static,
    {
        let cipher = || C::new_from_slice(key).unwrap();
        let narrow = xts(cipher(), cipher());
        let ways = wide_ways(key, cipher);
        if ways.is_empty() {
            eprintln!("skipped: this processor has no wide AES");
        }
        for (sector_len, sectors) in [(16, 3), (48, 70), (256, 2), (512, 129), (528, 5), (1024, 3), (4096, 2)] {
            let plain: Vec<u8> = (0..sector_len * sectors).map(|i| (i * 7 % 251) as u8).collect();
            let ivs = || (0..).map(|n: u128| n.to_le_bytes());
            let mut encrypted = plain.clone();
            narrow.encrypt(&mut ivs(), sector_len, &mut encrypted);
            for wide in &ways {
                let mut data = plain.clone();
                wide.encrypt(&mut ivs(), sector_len, &mut data);
                assert!(data == encrypted, "sectors of {sector_len} bytes");
                wide.decrypt(&mut ivs(), sector_len, &mut data);
                assert!(data == plain, "sectors of {sector_len} bytes");
            }
            for way in ways.iter().chain([&narrow]) {
                let mut data = vec![0xee; plain.len()];
                way.encrypt_from(&mut ivs(), sector_len, &plain, &mut data);
                assert!(data == encrypted, "sectors of {sector_len} bytes");
            }
            narrow.decrypt(&mut ivs(), sector_len, &mut encrypted);
            assert!(encrypted == plain, "sectors of {sector_len} bytes");
        }
    }

    #[test]
    fn wide_aes_is_aes() {
        let key: Vec<u8> = (0_u8..32).map(|n| n.wrapping_mul(37)).collect();
        all_agree::<aes::Aes128>(&key[..16]);
        all_agree::<aes::Aes192>(&key[..24]);
        all_agree::<aes::Aes256>(&key);
    }
}
