//! Generators of sector IVs, as dm-crypt and QEMU define them.

use aes::cipher::{BlockCipherEncrypt, KeyInit};

use super::{algorithm::CipherAlgorithm, hash::HashAlgorithm};
use crate::{Error, Result};

/// How the IV of a sector comes from its number (of 512 bytes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IvKind {
    /// Always zero.
    Null,
    /// The number's low 32 bits, little-endian.
    Plain,
    /// The number as 64 bits, little-endian.
    Plain64,
    /// The number as 64 bits, big-endian, at the end of the IV.
    Plain64Be,
    /// The 64-bit number encrypted with the same cipher under the hash of the key.
    Essiv(HashAlgorithm),
    /// The number of the sector's first cipher block counted from one, big-endian, at the end of the IV.
    Benbi,
}

impl IvKind {
    /// Parses `plain64` or `essiv:sha256`. Behind `plain` and `plain64` a known hash may stand as well, which means nothing: QEMU
    /// writes it where its option `ivgen-hash-alg` was given, and so do the programs that always give it.
    ///
    /// # Errors
    /// `Unsupported` for an unknown generator or hash, and for a hash where none belongs.
    pub fn parse(text: &str) -> Result<Self> {
        let (name, hash) = text
            .split_once(':')
            .map_or((text, None), |(name, hash)| (name, Some(hash)));
        match (name, hash) {
            ("plain" | "plain64", Some(hash)) => {
                HashAlgorithm::from_name(hash)?;
                Self::parse(name)
            }
            ("null", None) => Ok(Self::Null),
            ("plain", None) => Ok(Self::Plain),
            ("plain64", None) => Ok(Self::Plain64),
            ("plain64be", None) => Ok(Self::Plain64Be),
            ("benbi", None) => Ok(Self::Benbi),
            ("essiv", Some(hash)) => Ok(Self::Essiv(HashAlgorithm::from_name(hash)?)),
            ("essiv", None) => Err(Error::unsupported(
                "IV generator 'essiv' needs a hash, as in 'essiv:sha256'",
            )),
            _ => Err(Error::unsupported(format!("IV generator '{text}' is not supported"))),
        }
    }

    /// Whether a hash behind the name means nothing.
    pub(crate) fn ignores_hash(self) -> bool {
        matches!(self, Self::Plain | Self::Plain64)
    }

    /// The text that [`Self::parse`] reads.
    #[must_use]
    pub fn text(self) -> String {
        match self {
            Self::Null => "null".into(),
            Self::Plain => "plain".into(),
            Self::Plain64 => "plain64".into(),
            Self::Plain64Be => "plain64be".into(),
            Self::Essiv(hash) => format!("essiv:{}", hash.name()),
            Self::Benbi => "benbi".into(),
        }
    }
}

/// A generator ready for use.
pub(crate) struct IvGenerator {
    kind: IvKind,
    block_len: usize,
    essiv: Option<Box<dyn EncryptBlock>>,
}

impl IvGenerator {
    /// `key` is the whole key of the volume, from which ESSIV derives its own.
    pub(crate) fn new(kind: IvKind, cipher: CipherAlgorithm, key: &[u8]) -> Result<Self> {
        let essiv = match kind {
            IvKind::Essiv(hash) => Some(essiv_cipher(cipher, hash, key)?),
            _ => None,
        };
        Ok(Self {
            kind,
            block_len: cipher.block_len(),
            essiv,
        })
    }

    /// The IV of a sector; a cipher with 8-byte blocks takes the first 8 bytes.
    pub(crate) fn iv(&self, sector: u64) -> [u8; 16] {
        match self.kind {
            IvKind::Null => [0; 16],
            IvKind::Plain => little_endian(sector & 0xffff_ffff),
            IvKind::Plain64 => little_endian(sector),
            IvKind::Plain64Be => self.big_endian(sector),
            IvKind::Benbi => {
                let blocks_per_sector = 512 / self.block_len as u64;
                self.big_endian(sector.wrapping_mul(blocks_per_sector).wrapping_add(1))
            }
            IvKind::Essiv(_) => {
                let mut iv = little_endian(sector);
                if let Some(cipher) = &self.essiv {
                    cipher.encrypt_block(&mut iv);
                }
                iv
            }
        }
    }

    fn big_endian(&self, value: u64) -> [u8; 16] {
        let shifted = u128::from(value) << (8 * (16 - self.block_len));
        shifted.to_be_bytes()
    }
}

fn little_endian(value: u64) -> [u8; 16] {
    u128::from(value).to_le_bytes()
}

/// Encrypts the first block of a buffer.
trait EncryptBlock: Send + Sync {
    fn encrypt_block(&self, block: &mut [u8; 16]);
}

struct Keyed<C>(C);

impl<C: BlockCipherEncrypt + Send + Sync> EncryptBlock for Keyed<C> {
    fn encrypt_block(&self, block: &mut [u8; 16]) {
        let (blocks, _) = super::modes::Block::<C>::slice_as_chunks_mut(block);
        blocks.iter_mut().take(1).for_each(|block| self.0.encrypt_block(block));
    }
}

/// ESSIV's own cipher: the same one, with the key length that the hash gives.
fn essiv_cipher(cipher: CipherAlgorithm, hash: HashAlgorithm, key: &[u8]) -> Result<Box<dyn EncryptBlock>> {
    let salt = hash.digest(&[key]);
    let own = CipherAlgorithm::from_family(cipher.family(), salt.len())?;
    Ok(match own {
        CipherAlgorithm::Aes128 => boxed::<aes::Aes128>(&salt)?,
        CipherAlgorithm::Aes192 => boxed::<aes::Aes192>(&salt)?,
        CipherAlgorithm::Aes256 => boxed::<aes::Aes256>(&salt)?,
        CipherAlgorithm::Serpent128 | CipherAlgorithm::Serpent192 | CipherAlgorithm::Serpent256 => {
            boxed::<serpent::Serpent>(&salt)?
        }
        CipherAlgorithm::Twofish128 | CipherAlgorithm::Twofish192 | CipherAlgorithm::Twofish256 => {
            boxed::<super::twofish::Twofish>(&salt)?
        }
        CipherAlgorithm::Cast5 => boxed::<cast5::Cast5>(&salt)?,
    })
}

fn boxed<C>(key: &[u8]) -> Result<Box<dyn EncryptBlock>>
where
    C: BlockCipherEncrypt + KeyInit + Send + Sync + 'static,
{
    let keyed = C::new_from_slice(key).map_err(|_| Error::invalid("wrong length of an ESSIV key"))?;
    Ok(Box::new(Keyed(keyed)))
}
