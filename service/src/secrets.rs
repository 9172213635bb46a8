//! Sealing secrets: AES-256-GCM under the master key, the secret's id as associated data.

use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::config::MasterKey;
use crate::disk::try_random;
use crate::error::{ErrorCode, Result, ServiceError};
use crate::fault::{Step, around};
use crate::model::SecretId;
use crate::store::secrets::SealedSecret;

const KEY_FILE: &str = "master.key";
const NONCE_BYTES: usize = 12;

/// Seals and opens secrets.
pub struct Vault {
    cipher: Aes256Gcm,
    key_id: String,
    /// Start of every keyed digest.
    keyed: Sha256,
}

impl Vault {
    /// A vault under a key that was given, or under the one kept in the data folder, made now if there is none.
    ///
    /// # Errors
    /// `unavailable` when the key file cannot be used.
    pub fn open(key: Option<&MasterKey>, data_dir: &Path) -> Result<Self> {
        let key = match key {
            Some(key) => key.0.clone(),
            None => load_or_make(&data_dir.join(KEY_FILE))?,
        };
        let cipher = Aes256Gcm::new_from_slice(key.as_slice()).map_err(ServiceError::internal)?;
        // Names the key without telling it.
        let digest = Sha256::new_with_prefix(b"vdiskd master key id")
            .chain_update(key.as_slice())
            .finalize();
        let key_id = hex(digest.get(..8).unwrap_or_default());
        let keyed = Sha256::new_with_prefix(b"vdiskd keyed digest").chain_update(key.as_slice());
        Ok(Self { cipher, key_id, keyed })
    }

    /// A digest that tells equal values from different ones to who has the master key, and nothing to anybody else.
    pub fn keyed_digest(&self, parts: &[&[u8]]) -> String {
        let mut digest = self.keyed.clone();
        for part in parts {
            digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
            digest.update(part);
        }
        hex(&digest.finalize())
    }

    /// Seals a value for the secret of this id.
    pub fn seal(&self, id: SecretId, value: &[u8]) -> Result<SealedSecret> {
        let mut nonce = [0; NONCE_BYTES];
        try_random(&mut nonce).map_err(ServiceError::internal)?;
        let payload = Payload {
            msg: value,
            aad: id.as_bytes(),
        };
        let sealed = self
            .cipher
            .encrypt(&Nonce::from(nonce), payload)
            .map_err(ServiceError::internal)?;
        let sealed = STANDARD.encode([nonce.as_slice(), &sealed].concat());
        Ok(SealedSecret {
            sealed,
            key_id: self.key_id.clone(),
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
        let bytes = STANDARD.decode(&secret.sealed).map_err(|_| wrong())?;
        let (nonce, sealed) = bytes.split_first_chunk::<NONCE_BYTES>().ok_or_else(wrong)?;
        let payload = Payload {
            msg: sealed,
            aad: id.as_bytes(),
        };
        self.cipher
            .decrypt(&Nonce::from(*nonce), payload)
            .map(Zeroizing::new)
            .map_err(|_| wrong())
    }
}

/// Lower-case hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Complete under its name or not there: half a key would never open again.
fn store(path: &Path, key: &[u8]) -> std::io::Result<()> {
    let unfinished = path.with_extension("key.new");
    let mut file = std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)?;
    file.write_all(key)?;
    file.sync_all()?;
    std::fs::rename(&unfinished, path)?;
    path.parent()
        .map_or(Ok(()), |folder| std::fs::File::open(folder)?.sync_all())
}

fn load_or_make(path: &Path) -> Result<Zeroizing<[u8; 32]>> {
    let unusable = |error: std::io::Error| {
        ServiceError::new(ErrorCode::Unavailable, "the master key cannot be read or made")
            .with_internal(format!("{}: {error}", path.display()))
    };
    let mut key = Zeroizing::new([0; 32]);
    match std::fs::File::open(path) {
        Ok(mut file) => file.read_exact(key.as_mut_slice()).map_err(unusable)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            try_random(key.as_mut_slice()).map_err(unusable)?;
            around(Step::MakeMasterKey, || store(path, key.as_slice()).map_err(unusable))?;
        }
        Err(error) => return Err(unusable(error)),
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_secret_opens_under_its_own_id_and_key_only() {
        let dir = tempfile::tempdir().unwrap();
        let vault = Vault::open(None, dir.path()).unwrap();
        let id = SecretId::now_v7();
        let sealed = vault.seal(id, b"passphrase").unwrap();
        assert!(!sealed.sealed.contains("passphrase"));
        assert_eq!(vault.open_secret(id, &sealed).unwrap().as_slice(), b"passphrase");
        assert_eq!(
            vault.open_secret(SecretId::now_v7(), &sealed).unwrap_err().code,
            ErrorCode::WrongKey
        );
        let other = Vault::open(Some(&MasterKey(Zeroizing::new([7; 32]))), dir.path()).unwrap();
        assert_eq!(other.open_secret(id, &sealed).unwrap_err().code, ErrorCode::WrongKey);
        let again = Vault::open(None, dir.path()).unwrap();
        assert_eq!(again.open_secret(id, &sealed).unwrap().as_slice(), b"passphrase");
        let mode = std::fs::metadata(dir.path().join(KEY_FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
