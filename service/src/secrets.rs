//! Sealing secrets: AES-256-GCM under a master key, the secret's id as associated data.
//!
//! A sealed secret names the master key that it is sealed under. While master keys are rotated the vault has two: the one that was,
//! and the one to come. The database says which of them seals (`sealing_key`).

use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use vdisk_engine::crypto::keep_in_memory;
use zeroize::Zeroizing;

use crate::config::{MasterKey, ServiceConfig};
use crate::disk::try_random;
use crate::error::{ErrorCode, Result, ServiceError};
use crate::fault::{Step, around};
use crate::model::SecretId;
use crate::store::secrets::SealedSecret;

const KEY_FILE: &str = "master.key";
const NEW_KEY_FILE: &str = "master.key.next";
const NONCE_BYTES: usize = 12;

/// A master key ready for use.
struct Sealer {
    cipher: Aes256Gcm,
    id: String,
    /// Start of every keyed digest.
    keyed: Sha256,
}

impl Sealer {
    fn new(key: &Zeroizing<[u8; 32]>) -> Result<Arc<Self>> {
        let key = key.as_slice();
        let cipher = Aes256Gcm::new_from_slice(key).map_err(ServiceError::internal)?;
        // Names the key without telling it.
        let digest = Sha256::new_with_prefix(b"vdiskd master key id")
            .chain_update(key)
            .finalize();
        let id = hex(digest.get(..8).unwrap_or_default());
        let keyed = Sha256::new_with_prefix(b"vdiskd keyed digest").chain_update(key);
        let sealer = Arc::new(Self { cipher, id, keyed });
        keep_in_memory(sealer.as_ref());
        Ok(sealer)
    }
}

#[derive(Clone)]
struct Sealers {
    current: Arc<Sealer>,
    next: Option<Arc<Sealer>>,
}

/// Seals and opens secrets.
pub struct Vault {
    sealers: RwLock<Sealers>,
    /// Where the service keeps a master key of its own; `None` when the operator gives the keys.
    own: Option<PathBuf>,
}

impl Vault {
    /// A vault under the configured keys, or under the one kept in the data folder, made now if there is none and nothing is sealed yet.
    /// `used` are the ids of the keys that something is sealed under.
    ///
    /// # Errors
    /// `unavailable` when a key file cannot be used, or a key that something is sealed under is not there.
    pub fn open(config: &ServiceConfig, used: &[String]) -> Result<Self> {
        let folder = &config.data_dir;
        let (current, own) = match (&config.master_key, used.first()) {
            (Some(key), _) => (Sealer::new(&key.0)?, None),
            (None, None) => (
                Sealer::new(&load_or_make(&folder.join(KEY_FILE))?)?,
                Some(folder.clone()),
            ),
            // Another key in its place would seal what comes, and hide that the right one is to be brought back.
            (None, Some(id)) => {
                let key = load(&folder.join(KEY_FILE))?.ok_or_else(|| not_at_hand(id))?;
                (Sealer::new(&key)?, Some(folder.clone()))
            }
        };
        let kept = match &own {
            Some(folder) => load(&folder.join(NEW_KEY_FILE))?.map(MasterKey),
            None => None,
        };
        let next = config.new_master_key.as_ref().or(kept.as_ref());
        let next = next.map(|key| Sealer::new(&key.0)).transpose()?;
        let next = next.filter(|next| next.id != current.id);
        let own = own.filter(|_| config.new_master_key.is_none());
        let vault = Self {
            sealers: RwLock::new(Sealers { current, next }),
            own,
        };
        match used.iter().find(|id| !vault.has(id)) {
            None => Ok(vault),
            Some(missing) => Err(not_at_hand(missing)),
        }
    }

    fn sealers(&self) -> Sealers {
        self.sealers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn find(&self, id: &str) -> Option<Arc<Sealer>> {
        let sealers = self.sealers();
        std::iter::once(sealers.current)
            .chain(sealers.next)
            .find(|sealer| sealer.id == id)
    }

    /// Whether a master key is at hand.
    pub fn has(&self, key_id: &str) -> bool {
        self.find(key_id).is_some()
    }

    /// The id of the master key to come. A service that keeps its own makes it now, unless it has.
    ///
    /// # Errors
    /// `unsupported` when the operator gives the keys and gave no new one; `unavailable` when a new one cannot be stored.
    pub fn next_key(&self) -> Result<String> {
        if let Some(next) = self.sealers().next {
            return Ok(next.id.clone());
        }
        let Some(folder) = &self.own else {
            let public = "there is no new master key: give one with --new-master-key-file, VDISKD_NEW_MASTER_KEY or the systemd \
                credential 'vdiskd.new-master-key', and start the service again";
            return Err(ServiceError::new(ErrorCode::Unsupported, public));
        };
        let next = Sealer::new(&load_or_make(&folder.join(NEW_KEY_FILE))?)?;
        let id = next.id.clone();
        self.sealers.write().unwrap_or_else(PoisonError::into_inner).next = Some(next);
        Ok(id)
    }

    /// The key to come is the one that counts: nothing is sealed under another any more. A service that keeps its own forgets the old
    /// one. Doing it again changes nothing.
    ///
    /// # Errors
    /// `unavailable` when the key's file cannot be put in place.
    pub fn finish_rotation(&self, key_id: &str) -> Result<()> {
        let Some(next) = self.sealers().next.filter(|next| next.id == key_id) else {
            return Ok(());
        };
        if let Some(folder) = &self.own {
            std::fs::rename(folder.join(NEW_KEY_FILE), folder.join(KEY_FILE))
                .and_then(|()| sync_folder(folder))
                .map_err(|error| unusable(folder, &error))?;
        }
        *self.sealers.write().unwrap_or_else(PoisonError::into_inner) = Sealers {
            current: next,
            next: None,
        };
        Ok(())
    }

    /// A digest that tells equal values from different ones to who has the master key, and nothing to anybody else.
    pub fn keyed_digest(&self, parts: &[&[u8]]) -> String {
        let mut digest = self.sealers().current.keyed.clone();
        for part in parts {
            digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
            digest.update(part);
        }
        hex(&digest.finalize())
    }

    /// Seals a value for the secret of this id, under the master key that the database says is the sealing one; without a word from it
    /// under the one that is.
    ///
    /// # Errors
    /// `unavailable` when that master key is not at hand.
    pub fn seal(&self, key_id: Option<&str>, id: SecretId, value: &[u8]) -> Result<SealedSecret> {
        let sealer = match key_id {
            None => self.sealers().current,
            Some(key_id) => self.find(key_id).ok_or_else(|| not_at_hand(key_id))?,
        };
        let mut nonce = [0; NONCE_BYTES];
        try_random(&mut nonce).map_err(ServiceError::internal)?;
        let payload = Payload {
            msg: value,
            aad: id.as_bytes(),
        };
        let sealed = sealer
            .cipher
            .encrypt(&Nonce::from(nonce), payload)
            .map_err(ServiceError::internal)?;
        let sealed = STANDARD.encode([nonce.as_slice(), &sealed].concat());
        Ok(SealedSecret {
            sealed,
            key_id: sealer.id.clone(),
        })
    }

    /// Opens what [`Vault::seal`] made for the same id.
    ///
    /// # Errors
    /// `wrong_key` when it was sealed under another master key or was changed.
    pub fn open_secret(&self, id: SecretId, secret: &SealedSecret) -> Result<Zeroizing<Vec<u8>>> {
        let wrong = || {
            let public = format!("secret {id} cannot be opened with this service's master key");
            ServiceError::new(ErrorCode::WrongKey, public)
        };
        let sealer = self.find(&secret.key_id).ok_or_else(wrong)?;
        let bytes = STANDARD.decode(&secret.sealed).map_err(|_| wrong())?;
        let (nonce, sealed) = bytes.split_first_chunk::<NONCE_BYTES>().ok_or_else(wrong)?;
        let payload = Payload {
            msg: sealed,
            aad: id.as_bytes(),
        };
        let opened = sealer.cipher.decrypt(&Nonce::from(*nonce), payload);
        let opened = opened.map(Zeroizing::new).map_err(|_| wrong())?;
        keep_in_memory(opened.as_slice());
        Ok(opened)
    }
}

/// The error for a master key that secrets are sealed under and that this service was not given.
pub fn not_at_hand(key_id: &str) -> ServiceError {
    let public = format!("secrets are sealed under master key {key_id}, which this service was not given");
    ServiceError::new(ErrorCode::Unavailable, public)
}

/// Lower-case hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unusable(path: &Path, error: &std::io::Error) -> ServiceError {
    ServiceError::new(ErrorCode::Unavailable, "the master key cannot be read or made")
        .with_internal(format!("{}: {error}", path.display()))
}

/// The key of a file, if the file is there.
fn load(path: &Path) -> Result<Option<Zeroizing<[u8; 32]>>> {
    let mut key = Zeroizing::new([0; 32]);
    match std::fs::File::open(path) {
        Ok(mut file) => file
            .read_exact(key.as_mut_slice())
            .map_err(|error| unusable(path, &error))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unusable(path, &error)),
    }
    Ok(Some(key))
}

/// The key of a file, made now if there is none. It has its name once it is whole.
fn load_or_make(path: &Path) -> Result<Zeroizing<[u8; 32]>> {
    if let Some(key) = load(path)? {
        return Ok(key);
    }
    let mut key = Zeroizing::new([0; 32]);
    try_random(key.as_mut_slice()).map_err(|error| unusable(path, &error))?;
    around(Step::MakeMasterKey, || {
        store(path, &key).map_err(|error| unusable(path, &error))
    })?;
    Ok(key)
}

fn store(path: &Path, key: &[u8; 32]) -> std::io::Result<()> {
    let unfinished = path.with_extension("part");
    let options = std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .clone();
    let mut file = options.open(&unfinished)?;
    file.write_all(key)?;
    file.sync_all()?;
    std::fs::rename(&unfinished, path)?;
    path.parent().map_or(Ok(()), sync_folder)
}

fn sync_folder(folder: &Path) -> std::io::Result<()> {
    std::fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn keyed(current: u8, next: Option<u8>) -> Vault {
        let key = |byte| MasterKey(Zeroizing::new([byte; 32]));
        let config = ServiceConfig {
            master_key: Some(key(current)),
            new_master_key: next.map(key),
            ..ServiceConfig::new("/nowhere")
        };
        Vault::open(&config, &[]).unwrap()
    }

    fn own(dir: &Path) -> Vault {
        Vault::open(&ServiceConfig::new(dir), &[]).unwrap()
    }

    #[test]
    fn a_secret_opens_under_its_own_id_and_key_only() {
        let dir = tempfile::tempdir().unwrap();
        let vault = own(dir.path());
        let id = SecretId::now_v7();
        let sealed = vault.seal(None, id, b"passphrase").unwrap();
        assert!(!sealed.sealed.contains("passphrase"));
        assert_eq!(vault.open_secret(id, &sealed).unwrap().as_slice(), b"passphrase");
        assert_eq!(
            vault.open_secret(SecretId::now_v7(), &sealed).unwrap_err().code,
            ErrorCode::WrongKey
        );
        assert_eq!(
            keyed(7, None).open_secret(id, &sealed).unwrap_err().code,
            ErrorCode::WrongKey
        );
        let again = own(dir.path());
        assert_eq!(again.open_secret(id, &sealed).unwrap().as_slice(), b"passphrase");
        let mode = std::fs::metadata(dir.path().join(KEY_FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn two_keys_open_what_either_sealed_until_the_new_one_stands_alone() {
        let vault = keyed(1, Some(2));
        let id = SecretId::now_v7();
        let old = vault.seal(None, id, b"value").unwrap();
        let next = vault.next_key().unwrap();
        let new = vault.seal(Some(&next), id, b"value").unwrap();
        assert!(old.key_id != new.key_id && new.key_id == next);
        for sealed in [&old, &new] {
            assert_eq!(vault.open_secret(id, sealed).unwrap().as_slice(), b"value");
        }
        vault.finish_rotation(&next).unwrap();
        assert_eq!(vault.open_secret(id, &old).unwrap_err().code, ErrorCode::WrongKey);
        assert_eq!(keyed(2, None).open_secret(id, &new).unwrap().as_slice(), b"value");
        assert_eq!(
            vault.seal(Some("other"), id, b"x").err().unwrap().code,
            ErrorCode::Unavailable
        );
        assert_eq!(keyed(1, None).next_key().unwrap_err().code, ErrorCode::Unsupported);
    }

    #[test]
    fn a_key_of_its_own_is_replaced_whole_and_found_again_in_between() {
        let dir = tempfile::tempdir().unwrap();
        let vault = own(dir.path());
        let next = vault.next_key().unwrap();
        assert_eq!(
            own(dir.path()).next_key().unwrap(),
            next,
            "another start goes on with the same key"
        );
        vault.finish_rotation(&next).unwrap();
        vault.finish_rotation(&next).unwrap();
        assert!(own(dir.path()).has(&next) && !dir.path().join(NEW_KEY_FILE).exists());
        assert_ne!(vault.next_key().unwrap(), next);
    }
}
