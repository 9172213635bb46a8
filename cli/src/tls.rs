//! `--object tls-creds-x509,id=ID,dir=FOLDER[,endpoint=client][,verify-peer=on|off]`.

use std::path::Path;

use vdisk_engine::storage::{NbdTls, TlsFiles};
use zeroize::Zeroizing;

use crate::app::{self, Failure};
use crate::spec::Keys;

/// What the folder holds, under QEMU's names for the files.
#[derive(Default)]
pub struct Credentials {
    authorities: Vec<u8>,
    revoked: Option<Vec<u8>>,
    identity: Option<(Vec<u8>, Zeroizing<Vec<u8>>)>,
    verify_peer: bool,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads the files. `ca-cert.pem` must be there; `client-cert.pem` and `client-key.pem` go together.
    pub fn read(id: &str, mut keys: Keys) -> Result<Self, Failure> {
        if let Some(end) = keys.take("endpoint").filter(|e| e != "client") {
            return Err(match end.as_str() {
                "server" => Failure::new(format!("Expected TLS credentials for a client endpoint in '{id}'")),
                _ => Failure::new(format!("Parameter 'endpoint' does not accept value '{end}'")),
            });
        }
        let verify_peer = keys.take_flag("verify-peer")?.unwrap_or(true);
        if keys.take_flag("sanity-check")? == Some(false) {
            return Err(Failure::new(
                "sanity-check=off is not supported: certificates are always checked",
            ));
        }
        let folder = keys
            .take("dir")
            .ok_or_else(|| Failure::new("Missing 'dir' property value"))?;
        if let Some((key, _)) = keys.iter().next() {
            return Err(Failure::new(format!(
                "TLS credentials do not support the option '{key}'"
            )));
        }
        let read = |name: &str| read_file(&Path::new(&folder).join(name));
        let authorities = match read("ca-cert.pem")? {
            Some(pem) => pem,
            None if verify_peer => return Err(Failure::new(format!("There is no ca-cert.pem in {folder}"))),
            None => Vec::new(),
        };
        let identity = match (read("client-cert.pem")?, read("client-key.pem")?) {
            (Some(chain), Some(key)) => Some((chain, Zeroizing::new(key))),
            (None, None) => None,
            _ => {
                return Err(Failure::new(format!(
                    "{folder} has one of client-cert.pem and client-key.pem, which go together"
                )));
            }
        };
        Ok(Self {
            authorities,
            revoked: read("ca-crl.pem")?,
            identity,
            verify_peer,
        })
    }

    /// For a connection to this server.
    pub fn for_server(&self, name: &str) -> Result<NbdTls, Failure> {
        let files = TlsFiles {
            authorities: &self.authorities,
            revoked: self.revoked.as_deref(),
            identity: self
                .identity
                .as_ref()
                .map(|(chain, key)| (chain.as_slice(), key.as_slice())),
            verify_peer: self.verify_peer,
        };
        NbdTls::new(&files, name).map_err(|e| Failure::new(app::sentence(&e)))
    }
}

/// A file of the folder; `None` where there is none.
fn read_file(path: &Path) -> Result<Option<Vec<u8>>, Failure> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Failure::new(format!(
            "Unable to read {}: {}",
            path.display(),
            app::system_error(&e)
        ))),
    }
}
