//! Encryption of guest data: LUKS, with its header in clusters of the image, and the legacy AES.
//!
//! Guest data is encrypted in sectors of 512 bytes. LUKS counts them by their place in the file that holds guest data, legacy AES by the
//! place where the guest sees them. Metadata is never encrypted, and neither are compressed clusters: they are read as they are, and new
//! ones are refused, since they would show what the rest of the image hides.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use serde_json::{Map, Value, json};

use super::image::Qcow2;
use super::layout::{Crypt, Extensions, Header};
use crate::crypto::luks::{
    EraseKeys, KeyEnv, KeyWork, LuksHeader, LuksSlot, LuksVolume, NewKey, VolumeLayout, describe,
};
use crate::crypto::{EncryptedBytes, Secret, SectorCipher, legacy_qcow_cipher};
use crate::image::KeySlots;
use crate::options::Options;
use crate::storage::SliceStorage;
use crate::{Error, ErrorKind, OpenEnv, Result, StorageRef};

/// How an image is encrypted, and its key where that is known.
pub(super) struct Encryption {
    method: Crypt,
    luks: Option<(RwLock<LuksHeader>, VolumeLayout)>,
    cipher: Option<SectorCipher>,
}

impl Encryption {
    /// Reads what header and options say. Without a secret the image opens, and its data stays closed.
    ///
    /// # Errors
    /// `InvalidArgument` when options and header name different methods, `Corrupt` for a header that is not where it must be, `WrongKey`,
    /// and those of LUKS headers.
    pub fn open(
        file: &StorageRef,
        header: &Header,
        extensions: &Extensions,
        options: &Options,
        env: &OpenEnv<'_>,
    ) -> Result<Option<Self>> {
        check_format(header.crypt, options.get("encrypt.format"))?;
        let secret = options.get("encrypt.key-secret").filter(|_| !env.metadata_only);
        let secret = secret.filter(|_| header.crypt != Crypt::None);
        let secret = secret.map(|id| env.secrets.get(id)).transpose()?;
        match (header.crypt, extensions.crypto()) {
            (Crypt::None, None) => Ok(None),
            (Crypt::Aes, None) => {
                let cipher = secret
                    .map(|s| legacy_qcow_cipher(&Secret::new(s.to_vec())))
                    .transpose()?;
                Ok(Some(Self::legacy(cipher)))
            }
            (Crypt::None | Crypt::Aes, Some(_)) => Err(Error::corrupt(
                "the image has a place for a LUKS header, but is not encrypted with LUKS",
            )),
            (Crypt::Luks, None) => Err(Error::corrupt("missing CRYPTO header for crypt method 2")),
            (Crypt::Luks, Some((at, len))) => {
                let cancelled = || env.secrets.cancelled();
                let work = KeyWork {
                    cancelled: &cancelled,
                    ..KeyWork::within(env.limits)
                };
                let luks = LuksHeader::read(place_of_header(file, header, at, len)?, &work)?;
                Self::unlock(luks, secret.as_deref().map(Vec::as_slice), &work).map(Some)
            }
        }
    }

    /// Legacy AES.
    pub fn legacy(cipher: Option<SectorCipher>) -> Self {
        Self {
            method: Crypt::Aes,
            luks: None,
            cipher,
        }
    }

    /// A volume that was just made.
    pub fn new(volume: LuksVolume) -> Self {
        let (header, cipher, layout) = volume.into_parts();
        Self {
            method: Crypt::Luks,
            luks: Some((RwLock::new(header), layout)),
            cipher: Some(cipher),
        }
    }

    fn unlock(luks: LuksHeader, passphrase: Option<&[u8]>, work: &KeyWork<'_>) -> Result<Self> {
        if luks.info().version != 1 {
            return Err(Error::unsupported("qcow2 images hold LUKS headers of version 1 alone"));
        }
        if let Some(passphrase) = passphrase {
            return LuksVolume::unlock(luks, passphrase, None, work).map(Self::new);
        }
        let layout = luks.layout()?;
        Ok(Self {
            method: Crypt::Luks,
            luks: Some((RwLock::new(luks), layout)),
            cipher: None,
        })
    }

    /// The error for work that needs the key; `None` where the key is there.
    pub fn missing_key(&self) -> Option<Error> {
        let text = "the image is encrypted: name its passphrase with option 'encrypt.key-secret'";
        self.cipher.is_none().then(|| Error::new(ErrorKind::WrongKey, text))
    }

    fn cipher(&self) -> Result<&SectorCipher> {
        let missing = || {
            self.missing_key()
                .unwrap_or_else(|| Error::invalid("the image has no key"))
        };
        self.cipher.as_ref().ok_or_else(missing)
    }

    /// What sectors are counted by.
    fn position(&self, guest: u64, at: u64) -> u64 {
        match self.method {
            Crypt::Luks => at,
            Crypt::None | Crypt::Aes => guest,
        }
    }

    fn luks(&self) -> Option<RwLockReadGuard<'_, LuksHeader>> {
        let (header, _) = self.luks.as_ref()?;
        Some(header.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What `info` says, under QEMU's keys.
    pub fn describe(&self) -> Value {
        let Some((header, layout)) = self.luks().zip(self.luks.as_ref().map(|(_, layout)| layout)) else {
            return json!({"format": "aes"});
        };
        let mut map = Map::new();
        for (key, value) in describe(&header, layout, false) {
            let last = key == "uuid";
            map.insert(key, value);
            if last {
                map.insert("format".to_owned(), json!("luks"));
            }
        }
        Value::Object(map)
    }
}

fn check_format(found: Crypt, wanted: Option<&str>) -> Result<()> {
    let found = match found {
        Crypt::None => None,
        Crypt::Aes => Some("aes"),
        Crypt::Luks => Some("luks"),
    };
    match (found, wanted) {
        (_, None) => Ok(()),
        (Some(found), Some(wanted)) if found == wanted => Ok(()),
        (Some(found), Some(wanted)) => Err(Error::invalid(format!(
            "the header says '{found}' encryption, the options '{wanted}'",
            wanted = wanted.escape_debug()
        ))),
        (None, Some(wanted)) => Err(Error::invalid(format!(
            "the image is not encrypted, the options say format '{}'",
            wanted.escape_debug()
        ))),
    }
}

/// The clusters with the LUKS header as a storage of their own.
fn place_of_header(file: &StorageRef, header: &Header, at: u64, len: u64) -> Result<StorageRef> {
    let size = 1u64 << header.cluster_bits;
    let end = file.len()?;
    if at == 0 || !at.is_multiple_of(size) || at.checked_add(len).is_none_or(|e| e > end) {
        return Err(Error::corrupt(format!(
            "the LUKS header of {len} bytes cannot be at {at:#x} in a file of {end} bytes with clusters of {size}"
        ))
        .at(file.name()));
    }
    Ok(std::sync::Arc::new(SliceStorage::new(file.clone(), at, len)?))
}

impl Qcow2 {
    /// Reads encrypted guest data.
    pub fn read_encrypted(&self, by: &Encryption, guest: u64, at: u64, buf: &mut [u8]) -> Result<()> {
        self.stored(by.cipher()?, |io| io.load(by.position(guest, at), at, buf))
    }

    /// Writes guest data encrypted. Parts of sectors are for those who hold the writer's lock.
    pub fn write_encrypted(&self, by: &Encryption, guest: u64, at: u64, bytes: &[u8]) -> Result<()> {
        self.stored(by.cipher()?, |io| io.store(by.position(guest, at), at, bytes))
    }

    fn stored<T>(&self, cipher: &SectorCipher, work: impl FnOnce(&EncryptedBytes<'_>) -> Result<T>) -> Result<T> {
        work(&EncryptedBytes {
            cipher,
            read: &|at, buf| self.read_stored(at, buf),
            write: &|at, bytes| self.host.data().write_at(at, bytes),
        })
    }

    /// # Errors
    /// `Unsupported` for compressed clusters in an encrypted image, and in one whose data lies in another file.
    pub fn refuse_packed(&self) -> Result<()> {
        if self.geometry.data_file {
            return Err(Error::unsupported(
                "an image with an external data file cannot hold compressed clusters",
            ));
        }
        match self.encryption {
            None => Ok(()),
            Some(_) => Err(Error::unsupported(
                "compression and encryption cannot be used at the same time: compressed clusters are stored unencrypted",
            )),
        }
    }

    fn change_keys<T>(&self, change: impl FnOnce(&mut LuksHeader) -> Result<T>) -> Result<T> {
        let _writer = self.lock_writer()?;
        let (header, _) = self
            .encryption
            .as_deref()
            .and_then(|e| e.luks.as_ref())
            .ok_or_else(no_slots)?;
        change(&mut header.write().unwrap_or_else(PoisonError::into_inner))
    }
}

fn no_slots() -> Error {
    Error::unsupported("the image is not encrypted with LUKS: it has no key slots")
}

impl KeySlots for Qcow2 {
    fn list(&self) -> Result<Vec<LuksSlot>> {
        let header = self.encryption.as_deref().and_then(Encryption::luks);
        Ok(header.ok_or_else(no_slots)?.info().slots)
    }
    fn test(&self, passphrase: &[u8], slot: Option<u32>, work: &KeyWork<'_>) -> Result<u32> {
        let header = self.encryption.as_deref().and_then(Encryption::luks);
        header.ok_or_else(no_slots)?.test_key(passphrase, slot, work)
    }
    fn add(&self, unlock: &[u8], new: &NewKey<'_>, env: &KeyEnv<'_>) -> Result<u32> {
        self.change_keys(|header| header.add_key(unlock, new, env))
    }
    fn change(&self, old: &[u8], new: &NewKey<'_>, env: &KeyEnv<'_>) -> Result<u32> {
        self.change_keys(|header| header.change_key(old, new, env))
    }
    fn erase(&self, which: EraseKeys<'_>, force: bool, env: &KeyEnv<'_>) -> Result<Vec<u32>> {
        self.change_keys(|header| header.erase_keys(which, force, env))
    }
}
