//! A file on a web server as a read-only storage.
//!
//! Supported: http and https (rustls, the roots of Mozilla), byte ranges, reading ahead, retries, a timeout for each request, a size limit,
//! a say in which addresses are connected to, an end on request. Redirections are followed when the file is opened, to other servers
//! only where that is asked for. A file whose
//! length, `ETag` or `Last-Modified` changes is `Corrupt`. Refused: servers without byte ranges and other encodings (`Unsupported`),
//! writing (`Denied`). Who only wants to have the file, and not to read here and there, takes it from every server ([`HttpFile`]).

mod fetch;
mod guard;
mod reference;
#[cfg(test)]
mod tests;
mod whole;

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fetch::Remote;
pub use guard::{AllowAddress, Guard as AddressGuard, is_public, is_public_web, web_url, without_query};
pub use reference::resolve_url;
pub use whole::{HttpBody, HttpFile};

use super::{ReadOnlyStorage, StorageExtent, past_end};
use crate::{CancelToken, Error, Result};

/// Most bytes of one request: it must be done within the timeout.
const MAX_REQUEST: usize = 4 << 20;
/// Windows that are kept.
const WINDOWS: usize = 8;

/// How to open a file.
#[derive(Clone)]
pub struct HttpOptions {
    /// `http://` or `https://`.
    pub url: String,
    /// Time for each request.
    pub timeout: Duration,
    /// How often a request is tried again.
    pub retries: u32,
    /// Bytes that a small read fetches, 512 to 4 MiB.
    pub readahead: usize,
    /// Longest file.
    pub max_len: u64,
    /// Whether the server's certificate is verified.
    pub verify_tls: bool,
    /// Which addresses may be connected to.
    pub allow: AllowAddress,
    /// Whether redirections to other servers are followed, each of which `allow` is asked about; never from https to http.
    pub other_servers: bool,
    /// Ends every wait for the server with `Cancelled` when it is set.
    pub cancel: CancelToken,
}

impl HttpOptions {
    /// The usual numbers; `allow` decides about addresses.
    pub fn new(url: impl Into<String>, allow: AllowAddress) -> Self {
        Self {
            url: url.into(),
            timeout: Duration::from_secs(30),
            retries: 3,
            readahead: 256 << 10,
            max_len: i64::MAX as u64,
            verify_tls: true,
            allow,
            other_servers: false,
            cancel: CancelToken::new(),
        }
    }
}

impl fmt::Debug for HttpOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpOptions")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// A part of the file that was read ahead.
#[derive(Debug, Clone)]
struct Window {
    number: u64,
    bytes: Arc<Vec<u8>>,
}

/// An open file.
#[derive(Debug)]
pub struct HttpStorage {
    name: String,
    remote: Remote,
    readahead: usize,
    /// Used last first.
    windows: Mutex<VecDeque<Window>>,
}

impl HttpStorage {
    /// Asks for the file's length.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no such URL, `Denied` for addresses and redirections that are not allowed, `LimitExceeded`,
    /// `Unsupported` for servers without ranges, `Corrupt` for answers that make no sense, `Io`.
    pub fn open(options: &HttpOptions) -> Result<Self> {
        if !(512..=MAX_REQUEST).contains(&options.readahead) || !options.readahead.is_multiple_of(512) {
            return Err(Error::invalid("the readahead is no multiple of 512 up to 4 MiB"));
        }
        let found = Remote::find(options).and_then(|(remote, reply)| remote.in_parts(&reply));
        Ok(Self::over(
            found.map_err(|e| e.at(without_query(&options.url)))?,
            options,
        ))
    }

    fn over(remote: Remote, options: &HttpOptions) -> Self {
        Self {
            remote,
            name: options.url.clone(),
            readahead: options.readahead,
            windows: Mutex::default(),
        }
    }

    fn windows(&self) -> MutexGuard<'_, VecDeque<Window>> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn window(&self, number: u64) -> Result<Arc<Vec<u8>>> {
        {
            let mut kept = self.windows();
            if let Some(window) = kept
                .iter()
                .position(|w| w.number == number)
                .and_then(|i| kept.remove(i))
            {
                kept.push_front(window.clone());
                return Ok(window.bytes);
            }
        }
        let start = number * self.readahead as u64;
        let left = usize::try_from(self.remote.len() - start).unwrap_or(usize::MAX);
        let mut bytes = vec![0; left.min(self.readahead)];
        self.remote.read(start, &mut bytes)?;
        let bytes = Arc::new(bytes);
        let mut kept = self.windows();
        kept.push_front(Window {
            number,
            bytes: bytes.clone(),
        });
        kept.truncate(WINDOWS);
        Ok(bytes)
    }

    fn read_small(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let unit = self.readahead as u64;
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let window = self.window(at / unit)?;
            let from = window.get((at % unit) as usize..).unwrap_or_default();
            let n = from.len().min(buf.len() - done);
            if n == 0 {
                return Err(past_end(&self.name, offset, buf.len() as u64, self.remote.len()));
            }
            buf[done..done + n].copy_from_slice(&from[..n]);
            done += n;
        }
        Ok(())
    }
}

impl ReadOnlyStorage for HttpStorage {
    fn name(&self) -> &str {
        &self.name
    }
    fn len(&self) -> Result<u64> {
        Ok(self.remote.len())
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(buf.len() as u64);
        if end.is_none_or(|e| e > self.remote.len()) {
            return Err(past_end(&self.name, offset, buf.len() as u64, self.remote.len()));
        }
        if buf.len() < self.readahead {
            return self.read_small(offset, buf).map_err(|e| e.at(&self.name));
        }
        let mut at = offset;
        for part in buf.chunks_mut(MAX_REQUEST) {
            self.remote.read(at, part).map_err(|e| e.at(&self.name))?;
            at += part.len() as u64;
        }
        Ok(())
    }
    fn extent(&self, offset: u64, len: u64) -> Result<StorageExtent> {
        if offset >= self.remote.len() || len == 0 {
            return Err(past_end(&self.name, offset, len, self.remote.len()));
        }
        Ok(StorageExtent {
            len: len.min(self.remote.len() - offset),
            data: true,
        })
    }
    fn allocated(&self) -> Result<u64> {
        Err(Error::unsupported("a web server does not tell the space that is used").at(&self.name))
    }
    fn why_read_only(&self) -> &'static str {
        "a file on a web server is read-only"
    }
}
