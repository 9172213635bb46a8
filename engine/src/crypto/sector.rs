//! The cipher of a volume: whole sectors, from any thread.

use std::sync::{Mutex, PoisonError};

use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, KeyInit, consts::U16};

use super::{
    algorithm::CipherAlgorithm,
    iv::IvGenerator,
    lrw::Lrw,
    memory::keep_in_memory,
    modes::{Cbc, Ctr, Ecb, SectorMode},
    spec::{CipherMode, CipherSpec},
    xts::{wide_aes, xts},
};
use crate::{Error, Result};

/// A keyed cipher over sectors. The key schedule is zeroized when it is dropped.
///
/// Sectors are counted in units of 512 bytes for the IV, whatever their own size is, as dm-crypt does.
pub struct SectorCipher {
    mode: Box<dyn SectorMode>,
    iv: IvGenerator,
    sector_size: usize,
    /// What was encrypted into before: memory that is new must be cleared first.
    spare: Mutex<Vec<Vec<u8>>>,
}

impl std::fmt::Debug for SectorCipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SectorCipher")
            .field("sector_size", &self.sector_size)
            .finish_non_exhaustive()
    }
}

impl SectorCipher {
    /// Keys the cipher. `sector_size` is 512, 1024, 2048 or 4096 bytes.
    ///
    /// # Errors
    /// `InvalidArgument` for another sector size or a key that is not [`CipherSpec::key_len`] bytes.
    pub fn new(spec: CipherSpec, key: &[u8], sector_size: u32) -> Result<Self> {
        if !matches!(sector_size, 512 | 1024 | 2048 | 4096) {
            return Err(Error::invalid(format!(
                "sector size {sector_size} is none of 512, 1024, 2048, 4096"
            )));
        }
        if key.len() != spec.key_len() {
            let text = format!("{} bytes of key where {} are needed", key.len(), spec.key_len());
            return Err(Error::invalid(text));
        }
        let iv = IvGenerator::new(spec.iv(), spec.algorithm(), key)?;
        let mode = keyed_mode(spec, key)?;
        keep_in_memory(mode.as_ref());
        Ok(Self {
            mode,
            iv,
            sector_size: sector_size as usize,
            spare: Mutex::default(),
        })
    }

    /// Bytes of a sector: the granularity of both calls.
    #[must_use]
    pub fn sector_size(&self) -> usize {
        self.sector_size
    }

    /// Encrypts `data` in place. `offset` is its place in bytes in what the volume counts IVs by.
    ///
    /// # Errors
    /// `InvalidArgument` when `offset` or the length is no multiple of the sector size.
    pub fn encrypt(&self, offset: u64, data: &mut [u8]) -> Result<()> {
        let mut ivs = self.ivs(offset, data.len())?;
        self.mode.encrypt(&mut ivs, self.sector_size, data);
        Ok(())
    }

    /// Encrypts `plain` as [`encrypt`](Self::encrypt) would, and lends the result to `using`.
    ///
    /// # Errors
    /// As `encrypt`; what `using` says.
    pub(super) fn encrypted<T>(&self, offset: u64, plain: &[u8], using: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
        let spare = || self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kept = spare().pop().unwrap_or_default();
        if kept.len() < plain.len() {
            kept.resize(plain.len(), 0);
        }
        let data = &mut kept[..plain.len()];
        let mut ivs = self.ivs(offset, data.len())?;
        self.mode.encrypt_from(&mut ivs, self.sector_size, plain, data);
        let done = using(data);
        spare().push(kept);
        done
    }

    /// Decrypts `data` in place. `offset` is its place in bytes in what the volume counts IVs by.
    ///
    /// # Errors
    /// `InvalidArgument` when `offset` or the length is no multiple of the sector size.
    pub fn decrypt(&self, offset: u64, data: &mut [u8]) -> Result<()> {
        let mut ivs = self.ivs(offset, data.len())?;
        self.mode.decrypt(&mut ivs, self.sector_size, data);
        Ok(())
    }

    fn ivs(&self, offset: u64, len: usize) -> Result<impl Iterator<Item = [u8; 16]>> {
        let size = self.sector_size as u64;
        if !offset.is_multiple_of(512) || !len.is_multiple_of(self.sector_size) {
            let text = format!("bytes {offset:#x}+{len:#x} are not whole sectors of {size} bytes");
            return Err(Error::invalid(text));
        }
        let (first, step) = (offset / 512, size / 512);
        Ok((0..).map(move |n: u64| self.iv.iv(first.wrapping_add(n.wrapping_mul(step)))))
    }
}

pub(super) fn keyed_mode(spec: CipherSpec, key: &[u8]) -> Result<Box<dyn SectorMode>> {
    match spec.algorithm() {
        CipherAlgorithm::Aes128 => wide::<aes::Aes128>(spec, key),
        CipherAlgorithm::Aes192 => wide::<aes::Aes192>(spec, key),
        CipherAlgorithm::Aes256 => wide::<aes::Aes256>(spec, key),
        CipherAlgorithm::Serpent128 | CipherAlgorithm::Serpent192 | CipherAlgorithm::Serpent256 => {
            wide::<serpent::Serpent>(spec, key)
        }
        CipherAlgorithm::Twofish128 | CipherAlgorithm::Twofish192 | CipherAlgorithm::Twofish256 => {
            wide::<super::twofish::Twofish>(spec, key)
        }
        CipherAlgorithm::Cast5 => any::<cast5::Cast5>(spec, key),
    }
}

fn schedule<C: KeyInit>(key: &[u8]) -> Result<C> {
    C::new_from_slice(key).map_err(|_| Error::invalid(format!("a cipher does not take {} bytes of key", key.len())))
}

/// The modes that exist for 16-byte blocks alone, and the others.
fn wide<C>(spec: CipherSpec, key: &[u8]) -> Result<Box<dyn SectorMode>>
where
    C: KeyInit + BlockCipherEncrypt + BlockCipherDecrypt + BlockSizeUser<BlockSize = U16> + Send + Sync + 'static,
{
    let Some((first, second)) = key.split_at_checked(spec.algorithm().key_len()) else {
        return any::<C>(spec, key);
    };
    match spec.mode() {
        CipherMode::Xts => {
            if spec.algorithm().family() == "aes"
                && let Some(mode) = wide_aes(first, schedule::<C>(second)?)
            {
                return Ok(mode);
            }
            Ok(xts(schedule::<C>(first)?, schedule::<C>(second)?))
        }
        CipherMode::Lrw => {
            let tweak = second
                .try_into()
                .map_err(|_| Error::invalid("LRW needs a tweak key of 16 bytes"))?;
            Ok(Box::new(Lrw::new(schedule::<C>(first)?, tweak)))
        }
        CipherMode::Ecb | CipherMode::Cbc | CipherMode::Ctr => any::<C>(spec, key),
    }
}

fn any<C>(spec: CipherSpec, key: &[u8]) -> Result<Box<dyn SectorMode>>
where
    C: KeyInit + BlockCipherEncrypt + BlockCipherDecrypt + Send + Sync + 'static,
{
    let cipher = schedule::<C>(key)?;
    match spec.mode() {
        CipherMode::Ecb => Ok(Box::new(Ecb(cipher))),
        CipherMode::Cbc => Ok(Box::new(Cbc(cipher))),
        CipherMode::Ctr => Ok(Box::new(Ctr(cipher))),
        CipherMode::Xts | CipherMode::Lrw => Err(Error::unsupported("this mode needs blocks of 16 bytes")),
    }
}
