//! Headers and volumes of either version.

use uuid::Uuid;

use super::{KdfCost, KeyEnv, KeyWork, LUKS_MAGIC, UnlockedKey, v1, v2};
use crate::crypto::{CipherSpec, HashAlgorithm, SectorCipher};
use crate::{Error, ErrorKind, Result, StorageRef};

/// A checked LUKS header on a storage. It knows no key.
pub struct LuksHeader {
    pub(super) storage: StorageRef,
    pub(super) form: Form,
}

pub(super) enum Form {
    V1(v1::Header),
    V2(v2::Header),
}

/// Where the encrypted data lies, and how it is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeLayout {
    /// Cipher, mode and IV generator.
    pub spec: CipherSpec,
    /// Bytes of a sector.
    pub sector_size: u32,
    /// First byte of the data in the file; 0 when the header is detached.
    pub payload_offset: u64,
    /// Bytes of data; `None`: up to the end of the file.
    pub payload_len: Option<u64>,
    /// Added to a payload offset before it is given to the cipher (LUKS2's `iv_tweak`).
    pub iv_offset: u64,
}

/// What header to create.
#[derive(Debug, Clone)]
pub struct NewLuks {
    /// 1 or 2.
    pub version: u16,
    /// Cipher, mode and IV generator.
    pub spec: CipherSpec,
    /// A hash that is to stand behind an IV generator that takes none: readers pass over it.
    pub ignored_iv_hash: Option<HashAlgorithm>,
    /// Bytes of a sector: 512 in LUKS1, up to 4096 in LUKS2.
    pub sector_size: u32,
    /// Hash of PBKDF2 and of the anti-forensic splitter.
    pub hash: HashAlgorithm,
    /// The volume's identity.
    pub uuid: Uuid,
    /// The data is somewhere else.
    pub detached: bool,
    /// Cost of the key slot.
    pub cost: KdfCost,
}

impl NewLuks {
    /// Mode and IV generator as the header will have them.
    pub(super) fn mode_text(&self) -> String {
        let text = self.spec.mode_text();
        match self.ignored_iv_hash {
            Some(hash) => format!("{text}:{}", hash.name()),
            None => text,
        }
    }

    /// Bytes that the header with its key material will take: where the data may begin.
    ///
    /// # Errors
    /// `InvalidArgument` and `Unsupported` for what a header cannot express.
    pub fn header_len(&self) -> Result<u64> {
        let attached = Self {
            detached: false,
            ..self.clone()
        };
        match self.version {
            1 => Ok(v1::plan(&attached)?.payload_offset()),
            2 => Ok(v2::DATA_OFFSET),
            other => Err(unknown_version(other)),
        }
    }
}

fn unknown_version(version: u16) -> Error {
    Error::unsupported(format!("LUKS version {version} is not known"))
}

impl LuksHeader {
    /// Reads and checks the header at byte 0 of `storage`.
    ///
    /// # Errors
    /// `NotThisFormat`, `Unsupported`, `Corrupt` and `LimitExceeded` as the module says.
    pub fn read(storage: StorageRef, work: &KeyWork<'_>) -> Result<Self> {
        let mut start = [0; 8];
        if storage.len()? < start.len() as u64 {
            return Err(Error::not_this_format("too short for a LUKS header").at(storage.name()));
        }
        storage.read_at(0, &mut start)?;
        if !start.starts_with(&LUKS_MAGIC) && v2::has_second(storage.as_ref()) {
            let form = Form::V2(v2::Header::read(storage.as_ref(), work)?);
            return Ok(Self { storage, form });
        }
        if !start.starts_with(&LUKS_MAGIC) {
            return Err(Error::not_this_format("no LUKS magic at offset 0x0").at(storage.name()));
        }
        let form = match start {
            [.., 0, 1] => Form::V1(v1::Header::read(storage.as_ref(), work.limits)?),
            [.., 0, 2] => Form::V2(v2::Header::read(storage.as_ref(), work)?),
            [.., high, low] => {
                return Err(unknown_version(u16::from_be_bytes([high, low])).at(storage.name()));
            }
        };
        Ok(Self { storage, form })
    }

    /// The storage that the header stands on.
    #[must_use]
    pub fn storage(&self) -> &StorageRef {
        &self.storage
    }

    /// Where the data lies.
    ///
    /// # Errors
    /// `Unsupported` for LUKS2 segments that are not plainly encrypted.
    pub fn layout(&self) -> Result<VolumeLayout> {
        match &self.form {
            Form::V1(header) => Ok(VolumeLayout {
                spec: header.spec,
                sector_size: v1::SECTOR as u32,
                payload_offset: header.payload_offset(),
                payload_len: None,
                iv_offset: 0,
            }),
            Form::V2(header) => header.volume().map_err(|error| error.at(self.storage.name())),
        }
    }

    /// Whether a passphrase opens the volume, and which slot it opens.
    ///
    /// # Errors
    /// `WrongKey` when none does; `Io`, `Corrupt`, `LimitExceeded` and `Cancelled` on the way.
    pub fn test_key(&self, passphrase: &[u8], slot: Option<u32>, work: &KeyWork<'_>) -> Result<u32> {
        self.unlock(passphrase, slot, work).map(|unlocked| unlocked.slot)
    }

    pub(super) fn unlock(&self, passphrase: &[u8], slot: Option<u32>, work: &KeyWork<'_>) -> Result<UnlockedKey> {
        let found = match &self.form {
            Form::V1(header) => header.unlock(self.storage.as_ref(), passphrase, slot.map(|n| n as usize), work),
            Form::V2(header) => header.unlock(self.storage.as_ref(), passphrase, slot, work),
        };
        found?.ok_or_else(|| self.wrong_key())
    }

    pub(super) fn wrong_key(&self) -> Error {
        Error::new(ErrorKind::WrongKey, "no key slot opens with this passphrase").at(self.storage.name())
    }
}

/// A header with the key of its volume: what reads and writes the data.
pub struct LuksVolume {
    header: LuksHeader,
    cipher: SectorCipher,
    layout: VolumeLayout,
}

impl LuksVolume {
    /// Opens the volume whose header stands at byte 0 of `storage`.
    ///
    /// # Errors
    /// Those of [`LuksHeader::read`], and `WrongKey`.
    pub fn open(storage: StorageRef, passphrase: &[u8], slot: Option<u32>, work: &KeyWork<'_>) -> Result<Self> {
        Self::unlock(LuksHeader::read(storage, work)?, passphrase, slot, work)
    }

    /// Opens the volume of a header that was read.
    ///
    /// # Errors
    /// Those of [`LuksHeader::layout`], and `WrongKey`.
    pub fn unlock(header: LuksHeader, passphrase: &[u8], slot: Option<u32>, work: &KeyWork<'_>) -> Result<Self> {
        let layout = header.layout()?;
        let unlocked = header.unlock(passphrase, slot, work)?;
        let cipher = SectorCipher::new(layout.spec, &unlocked.key, layout.sector_size)?;
        Ok(Self { header, cipher, layout })
    }

    /// Writes a new header with one key slot at byte 0 of `storage`.
    ///
    /// Key material is stable before the header is written.
    ///
    /// # Errors
    /// `InvalidArgument` for a time without a clock and for what a header cannot express, `LimitExceeded`, `Io`.
    pub fn create(storage: StorageRef, new: &NewLuks, passphrase: &[u8], env: &KeyEnv<'_>) -> Result<Self> {
        let (form, key) = match new.version {
            1 if new.sector_size != 512 => {
                let size = new.sector_size;
                return Err(Error::invalid(format!("LUKS1 has sectors of 512 bytes, not {size}")));
            }
            1 => v1::create(storage.as_ref(), new, passphrase, env).map(|(header, key)| (Form::V1(header), key))?,
            2 => v2::create(storage.as_ref(), new, passphrase, env).map(|(header, key)| (Form::V2(header), key))?,
            other => return Err(unknown_version(other)),
        };
        let header = LuksHeader { storage, form };
        let layout = header.layout()?;
        let cipher = SectorCipher::new(layout.spec, &key, layout.sector_size)?;
        Ok(Self { header, cipher, layout })
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &LuksHeader {
        &self.header
    }

    /// The header, to change key slots.
    pub fn header_mut(&mut self) -> &mut LuksHeader {
        &mut self.header
    }

    /// The cipher of the data. The `luks` format gives it offsets in the payload plus [`VolumeLayout::iv_offset`], qcow2 offsets in its file.
    #[must_use]
    pub fn cipher(&self) -> &SectorCipher {
        &self.cipher
    }

    /// Where the data lies.
    #[must_use]
    pub fn layout(&self) -> &VolumeLayout {
        &self.layout
    }

    /// Header and cipher apart.
    #[must_use]
    pub fn into_parts(self) -> (LuksHeader, SectorCipher, VolumeLayout) {
        (self.header, self.cipher, self.layout)
    }
}
