//! `--object tls-creds-x509,id=ID,dir=FOLDER[,endpoint=client][,verify-peer=on|off]`.

use std::path::Path;

use vdisk_engine::storage::{NbdTls, TlsFiles};
use zeroize::Zeroizing;

use crate::app::{self, Failure};
use crate::secrets::{MOST_SECRET, read_bounded};
use crate::spec::Keys;

/// Bytes of the longest file of certificates, or list of revoked ones.
const MOST_CERTIFICATES: usize = 16 << 20;

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
        let read = |name: &str, most| read_file(&Path::new(&folder).join(name), most);
        let authorities = match read("ca-cert.pem", MOST_CERTIFICATES)? {
            Some(pem) => pem.to_vec(),
            None if verify_peer => return Err(Failure::new(format!("There is no ca-cert.pem in {folder}"))),
            None => Vec::new(),
        };
        let own = (
            read("client-cert.pem", MOST_CERTIFICATES)?,
            read("client-key.pem", MOST_SECRET)?,
        );
        let identity = match own {
            (Some(chain), Some(key)) => Some((chain.to_vec(), key)),
            (None, None) => None,
            _ => {
                return Err(Failure::new(format!(
                    "{folder} has one of client-cert.pem and client-key.pem, which go together"
                )));
            }
        };
        Ok(Self {
            authorities,
            revoked: read("ca-crl.pem", MOST_CERTIFICATES)?.map(|pem| pem.to_vec()),
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
fn read_file(path: &Path, most: usize) -> Result<Option<Zeroizing<Vec<u8>>>, Failure> {
    let failed = |why: &str| Err(Failure::new(format!("Unable to read {}: {why}", path.display())));
    match read_bounded(path, most) {
        Ok(Some(bytes)) => Ok(Some(bytes)),
        Ok(None) => failed(&format!("expected at most {most} bytes, found more")),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => failed(&app::system_error(&e)),
    }
}
