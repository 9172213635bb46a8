//! How an export is named and opened.

use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use super::NbdTls;
use crate::CancelToken;
use crate::storage::FileId;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NbdAddress {
    /// Host name or address, and port (10809 is the one that is registered).
    Tcp {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
    },
    /// Path of a socket.
    Unix(String),
}

impl fmt::Display for NbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{path}"),
        }
    }
}

/// How to open an export.
#[derive(Debug, Clone)]
pub struct NbdOptions {
    /// The server.
    pub address: NbdAddress,
    /// Name of the export; empty for the default one.
    pub export: String,
    /// Name of the storage in messages.
    pub name: String,
    /// For writing as well.
    pub writable: bool,
    /// Time for the negotiation, and for each request that is done when its bytes have come or gone.
    pub timeout: Duration,
    /// Time since some fixed moment.
    pub clock: fn() -> Duration,
    /// Credentials: the connection is encrypted, or it fails.
    pub tls: Option<NbdTls>,
    /// Ends every wait for the server with `Cancelled` when it is set.
    pub cancel: CancelToken,
}

/// The same for the same export of the same server, as far as names and sockets tell: a server may export one thing under two names.
pub(super) fn identity(options: &NbdOptions) -> FileId {
    let mut place = DefaultHasher::new();
    match &options.address {
        NbdAddress::Tcp { host, port } => (host.to_ascii_lowercase(), port).hash(&mut place),
        NbdAddress::Unix(path) => match std::fs::metadata(path) {
            Ok(socket) => (socket.dev(), socket.ino()).hash(&mut place),
            Err(_) => path.hash(&mut place),
        },
    }
    let device = place.finish();
    options.export.hash(&mut place);
    FileId {
        device,
        inode: place.finish(),
    }
}
