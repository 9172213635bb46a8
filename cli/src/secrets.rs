//! `--object secret,...`: passphrases and keys, plain, from a file, base64, or encrypted under another secret. `--object
//! tls-creds-x509,...`: certificates for TLS, in a folder under the names that QEMU has for them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use vdisk_engine::crypto::{SealedUnder, Secret, SecretFormat, decode_secret};
use vdisk_engine::env::Secrets;
use vdisk_engine::storage::NbdTls;
use vdisk_engine::{Error, ErrorKind};
use zeroize::Zeroizing;

use crate::app::Failure;
use crate::spec::{Keys, keyval};
use crate::tls::Credentials;

/// The secrets of one run.
#[derive(Debug, Default)]
pub struct SecretStore {
    secrets: BTreeMap<String, Secret>,
    credentials: BTreeMap<String, Credentials>,
}

impl SecretStore {
    /// Reads all `--object` options, in order: a `keyid` names an earlier one.
    pub fn read(objects: &[String]) -> Result<Self, Failure> {
        let mut store = Self::default();
        for object in objects {
            store.add(object)?;
        }
        Ok(store)
    }

    fn add(&mut self, object: &str) -> Result<(), Failure> {
        let mut keys = if object.starts_with('{') {
            crate::spec::json::parse(&format!("json:{object}"))?.unwrap_or_default()
        } else {
            Keys::from_pairs(keyval::parse(object, Some("qom-type")))
        };
        let missing = |name: &str| Failure::new(format!("Parameter '{name}' is missing"));
        let kind = keys.take("qom-type").ok_or_else(|| missing("qom-type"))?;
        if ["tls-creds-psk", "tls-creds-anon"].contains(&kind.as_str()) {
            return Err(Failure::new(format!("{kind} is not supported; tls-creds-x509 is")));
        }
        if !["secret", "tls-creds-x509"].contains(&kind.as_str()) {
            return Err(Failure::new(format!(
                "Parameter 'qom-type' does not accept value '{kind}'"
            )));
        }
        let id = keys.take("id").ok_or_else(|| missing("id"))?;
        if !is_identifier(&id) {
            return Err(Failure::new(
                "Parameter 'id' expects an identifier\nIdentifiers consist of letters, digits, '-', '.', '_', starting with a letter.",
            ));
        }
        if self.secrets.contains_key(&id) || self.credentials.contains_key(&id) {
            return Err(Failure::new(format!(
                "attempt to add duplicate property '{id}' to object (type 'container')"
            )));
        }
        if kind == "tls-creds-x509" {
            let credentials = Credentials::read(&id, keys)?;
            self.credentials.insert(id, credentials);
            return Ok(());
        }
        let format = keys.take("format");
        let format = SecretFormat::from_name(format.as_deref().unwrap_or("raw")).map_err(|_| {
            let given = format.unwrap_or_default();
            Failure::new(format!("Parameter 'format' does not accept value '{given}'"))
        })?;
        let text = read_text(&mut keys)?;
        let (keyid, iv) = (keys.take("keyid"), keys.take("iv"));
        // Not which one: it may be what follows a comma inside the secret.
        if keys.first().is_some() {
            return Err(Failure::new(format!(
                "Secret '{id}' has a parameter that is not known; a comma in its data is written twice"
            )));
        }
        let secret = match keyid {
            None => decode_secret(&text, format, None)?,
            Some(keyid) => {
                let master = self.find(&keyid)?;
                let iv = iv.ok_or_else(|| Failure::new("IV is required to decrypt secret"))?;
                decode_secret(&text, format, Some(SealedUnder { master, iv: &iv }))?
            }
        };
        self.secrets.insert(id, secret);
        Ok(())
    }

    /// Credentials for a connection to the server of this name.
    pub fn tls(&self, id: &str, server: &str) -> Result<NbdTls, Failure> {
        match self.credentials.get(id) {
            Some(credentials) => credentials.for_server(server),
            None if self.secrets.contains_key(id) => {
                Err(Failure::new(format!("Object with id '{id}' is not TLS credentials")))
            }
            None => Err(Failure::new(format!("No TLS credentials with id '{id}'"))),
        }
    }

    fn find(&self, id: &str) -> Result<&Secret, Failure> {
        self.secrets
            .get(id)
            .ok_or_else(|| Failure::new(format!("No secret with id '{id}'")))
    }
}

/// QEMU's rule for names of objects.
fn is_identifier(id: &str) -> bool {
    id.starts_with(|first: char| first.is_ascii_alphabetic())
        && id
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'))
}

/// Bytes of the longest secret in a file.
pub const MOST_SECRET: usize = 64 << 10;

/// What a file holds, in memory that is wiped and never moved; `None` where that is more than `most` bytes.
pub fn read_bounded(path: &Path, most: usize) -> std::io::Result<Option<Zeroizing<Vec<u8>>>> {
    /// What a reader at the end of its room asks for to see whether there is more.
    const MARGIN: usize = 64;
    let file = File::open(path)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(most + MARGIN));
    file.take(most as u64 + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() <= most).then_some(bytes))
}

fn read_text(keys: &mut Keys) -> Result<Zeroizing<Vec<u8>>, Failure> {
    match (keys.take("data"), keys.take("file")) {
        (Some(data), None) => Ok(Zeroizing::new(data.into_bytes())),
        (None, Some(file)) => match read_bounded(Path::new(&file), MOST_SECRET) {
            Ok(Some(text)) => Ok(text),
            Ok(None) => Err(Failure::new(format!(
                "Unable to read {file}: expected a secret of at most {MOST_SECRET} bytes, found more"
            ))),
            Err(e) => {
                let why = crate::app::system_error(&e);
                Err(Failure::new(format!(
                    "Unable to read {file}: Failed to open file \u{201c}{file}\u{201d}: {why}"
                )))
            }
        },
        (Some(_), Some(_)) => Err(Failure::new("'file' and 'data' are mutually exclusive")),
        (None, None) => Err(Failure::new("Either 'file' or 'data' must be provided")),
    }
}

impl Secrets for SecretStore {
    fn get(&self, id: &str) -> vdisk_engine::Result<Zeroizing<Vec<u8>>> {
        match self.secrets.get(id) {
            Some(secret) => Ok(Zeroizing::new(secret.bytes().to_vec())),
            None => Err(Error::new(ErrorKind::WrongKey, format!("No secret with id '{id}'"))),
        }
    }
    /// The processor's time for this thread, as QEMU measures by: keys that are made while the machine is busy are no easier to guess.
    fn elapsed(&self) -> Option<Duration> {
        clock_gettime(ClockId::ThreadCPUTime).try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_that_other_threads_take_is_not_measured() {
        let secrets = SecretStore::default();
        let start = secrets.elapsed().unwrap();
        std::thread::sleep(Duration::from_millis(200));
        assert!(secrets.elapsed().unwrap() - start < Duration::from_millis(100));
    }
}
