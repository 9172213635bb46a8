//! Encryption of new images: what the options ask for, and the LUKS header.

use uuid::Builder;

use super::crypt::Encryption;
use super::image::Qcow2;
use super::layout::extensions::ExtensionKind;
use super::layout::{Crypt, Extension};
use super::writer::Writer;
use crate::crypto::luks::{KeyEnv, KeyWork, LuksVolume, new_luks};
use crate::crypto::{Secret, legacy_qcow_cipher};
use crate::options::Options;
use crate::storage::SliceStorage;
use crate::{CreateEnv, Error, Limits, Result};

/// The encryption that create options ask for.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// LUKS or legacy AES.
    pub method: Crypt,
    /// Id of the secret.
    secret: Option<String>,
    /// The options below `encrypt.`, without those two.
    luks: Options,
}

impl Wanted {
    /// Reads the options as qemu-img does.
    ///
    /// # Errors
    /// `InvalidArgument` for a format that is not known, and for options without or against it.
    pub fn new(options: &Options) -> Result<Option<Self>> {
        let mut luks = options.below("encrypt");
        let (format, secret) = (luks.take("format"), luks.take("key-secret"));
        let old = options.flag("encryption")?.unwrap_or(false);
        let method = match format.as_deref() {
            Some(_) if old => {
                return Err(Error::invalid("give option 'encryption' or 'encrypt.format', not both"));
            }
            Some("luks") => Crypt::Luks,
            Some("aes") => Crypt::Aes,
            Some(other) => {
                return Err(Error::invalid(format!(
                    "option 'encrypt.format' takes aes or luks, not '{}'",
                    other.escape_debug()
                )));
            }
            None if old => Crypt::Aes,
            None if secret.is_some() || !luks.is_empty() => {
                return Err(Error::invalid(
                    "option 'encrypt.format' is needed beside the others of encryption",
                ));
            }
            None => return Ok(None),
        };
        if let Some((name, _)) = luks.iter().next().filter(|_| method == Crypt::Aes) {
            return Err(Error::invalid(format!(
                "option 'encrypt.{name}' is for LUKS; legacy AES takes a secret alone"
            )));
        }
        Ok(Some(Self { method, secret, luks }))
    }

    /// Bytes of the LUKS header.
    pub fn header_len(&self) -> Result<u64> {
        if self.method != Crypt::Luks {
            return Ok(0);
        }
        let limits = Limits::default();
        // Any cost will do: it does not change the length.
        let options = self.luks.clone();
        new_luks(&options, &KeyWork::within(&limits))?.header_len()
    }

    /// The passphrase.
    ///
    /// # Errors
    /// `InvalidArgument` that names the option, `WrongKey` when there is no such secret.
    pub fn passphrase(&self, env: &CreateEnv<'_>) -> Result<Secret> {
        let missing = || Error::invalid("name the passphrase with option 'encrypt.key-secret'");
        let id = self.secret.as_deref().ok_or_else(missing)?;
        Ok(Secret::new(env.secrets.get(id)?.to_vec()))
    }
}

impl Qcow2 {
    /// Gives a new, empty image its key, and LUKS its header.
    pub fn set_up_encryption(&mut self, wanted: &Wanted, passphrase: &Secret, env: &CreateEnv<'_>) -> Result<()> {
        let encryption = match wanted.method {
            Crypt::None => return Ok(()),
            Crypt::Aes => Encryption::legacy(Some(legacy_qcow_cipher(passphrase)?)),
            Crypt::Luks => self.write_luks_header(wanted, passphrase, env)?,
        };
        self.encryption = Some(encryption.into());
        Ok(())
    }

    fn write_luks_header(&self, wanted: &Wanted, passphrase: &Secret, env: &CreateEnv<'_>) -> Result<Encryption> {
        let (cancelled, elapsed) = (|| env.secrets.cancelled(), || env.secrets.elapsed());
        let work = KeyWork {
            limits: env.limits,
            cancelled: &cancelled,
            elapsed: &elapsed,
        };
        let mut new = new_luks(&wanted.luks, &work)?;
        let mut bytes = [0; 16];
        (env.random)(&mut bytes);
        new.uuid = Builder::from_random_bytes(bytes).into_uuid();
        let len = new.header_len()?;
        let mut writer = self.lock_writer()?;
        let at = self.place_luks_header(&mut writer, len)?;
        let slice = std::sync::Arc::new(SliceStorage::new(self.host.file.clone(), at, len)?);
        let key_env = KeyEnv {
            work,
            random: env.random,
        };
        let volume = LuksVolume::create(slice, &new, passphrase.bytes(), &key_env)?;
        self.change_header(&writer, |shared| {
            shared.header.crypt = Crypt::Luks;
            let place = Extension::Crypto { offset: at, len };
            shared.extensions.replace(ExtensionKind::CRYPTO, Some(place));
        })?;
        Ok(Encryption::new(volume))
    }

    /// Reserves clusters and fills them with zeroes: a header does not write all of its own bytes.
    fn place_luks_header(&self, writer: &mut Writer, len: u64) -> Result<u64> {
        self.prepare(writer)?;
        let count = self.geometry.clusters(len);
        let at = writer.refcounts.allocate_row(count)? << self.geometry.cluster_bits;
        let end = at + count * self.geometry.cluster_size();
        writer.refcounts.no_longer_fresh(end);
        self.host.reach(end);
        self.host.grow()?;
        self.host.file.write_zeroes(at, end - at, false)?;
        self.write_metadata().add(at, len);
        Ok(at)
    }
}
