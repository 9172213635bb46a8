//! An export of an NBD server as a storage.
//!
//! Supported: TCP and unix sockets; fixed newstyle with `NBD_OPT_GO`, and older servers; structured replies; `base:allocation` as holes;
//! READ, WRITE, FLUSH, TRIM and WRITE_ZEROES within the block sizes the server tells. Every exchange has a deadline, but FLUSH, TRIM and
//! WRITE_ZEROES: a server may write out everything then. An end on request. A server that
//! breaks the protocol gets `Corrupt`, and no request any more. TLS with X.509 certificates. Refused: TLS with shared keys, changing the size.

mod address;
mod handshake;
mod link;
mod requests;
mod session;
mod status;
#[cfg(test)]
mod tests;
mod tls;
mod wire;

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use address::identity;
pub use address::{NbdAddress, NbdOptions};
use handshake::Export;
use link::Link;
use requests::system_error;
use session::Session;
use status::{Run, recall};
pub use tls::{NbdTls, TlsFiles};
use wire::Command;

use super::{FileId, FlushGuard, Storage, StorageExtent, past_end};
use crate::{Error, Result};

/// An open export.
#[derive(Debug)]
pub struct NbdStorage {
    name: String,
    export: Export,
    writable: bool,
    id: FileId,
    session: Mutex<Session>,
    /// What the server said last. Forgotten with every change.
    known: Mutex<Vec<Run>>,
    flushes: FlushGuard,
}

impl NbdStorage {
    /// Connects and negotiates.
    ///
    /// # Errors
    /// `Io` (kind `TimedOut` for a late server), `Corrupt`, `NotThisFormat` for what is no NBD server, `InvalidArgument` for an export
    /// that it does not have, `Denied` for writing where it forbids it and for a server that is not
    /// the one that the credentials are for, `Unsupported` for one that has no TLS, or wants it, against the options.
    pub fn open(options: NbdOptions) -> Result<Self> {
        let connected = Link::connect(&options).and_then(|link| Self::negotiate(link, &options));
        connected.map_err(|e| e.at(options.name))
    }

    /// Negotiates over a connection that is there already; the address of the options is not used.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn over(connection: UnixStream, options: NbdOptions) -> Result<Self> {
        Self::negotiate(Link::over(connection, &options), &options).map_err(|e| e.at(options.name))
    }

    fn negotiate(mut link: Link, options: &NbdOptions) -> Result<Self> {
        let export = handshake::negotiate(&mut link, &options.export, options.tls.as_ref())?;
        let storage = Self {
            name: options.name.clone(),
            writable: options.writable,
            id: identity(options),
            session: Mutex::new(Session::new(link, &export)),
            known: Mutex::default(),
            flushes: FlushGuard::default(),
            export,
        };
        if options.writable && export.flags & wire::READ_ONLY != 0 {
            return Err(Error::denied("the NBD server exports it for reading only"));
        }
        Ok(storage)
    }

    fn can(&self, flag: u16) -> bool {
        self.export.flags & flag != 0
    }

    fn session(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> MutexGuard<'_, Vec<Run>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn inside(&self, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.export.size => Ok(()),
            _ => Err(past_end(&self.name, offset, len, self.export.size)),
        }
    }

    /// For a change of `len` bytes.
    fn before_change(&self, offset: u64, len: u64) -> Result<()> {
        if !self.writable {
            return Err(Error::denied("the export is open for reading only").at(&self.name));
        }
        if offset.checked_add(len).is_none_or(|end| end > self.export.size) {
            let full = io::Error::from(rustix::io::Errno::NOSPC);
            return Err(Error::io(format!("cannot write {len} bytes at {offset:#x}"), full).at(&self.name));
        }
        Ok(())
    }

    /// Does a change, and forgets afterwards what was known: [`extent`](Storage::extent) holds the lock from its question to its note,
    /// so nothing older than the change stays noted.
    fn change(&self, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let done = work();
        self.known().clear();
        done
    }
}

impl Drop for NbdStorage {
    fn drop(&mut self) {
        self.session().disconnect();
    }
}

impl Storage for NbdStorage {
    fn name(&self) -> &str {
        &self.name
    }
    fn len(&self) -> Result<u64> {
        Ok(self.export.size)
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.inside(offset, buf.len() as u64)?;
        let (start, len) = self.blocks(offset, buf.len() as u64);
        let mut session = self.session();
        if len == buf.len() as u64 {
            return self.read_blocks(&mut session, offset, buf);
        }
        // At most two blocks more than the caller holds himself.
        let mut whole = vec![0; len as usize];
        self.read_blocks(&mut session, start, &mut whole)?;
        let from = (offset - start) as usize;
        buf.copy_from_slice(&whole[from..from + buf.len()]);
        Ok(())
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.before_change(offset, buf.len() as u64)?;
        self.change(|| self.write_range(offset, buf))
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.before_change(offset, len)?;
        self.change(|| self.zero_range(offset, len, unmap))
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let len = len.min(self.export.size.saturating_sub(offset));
        self.before_change(offset, len)?;
        if !self.can(wire::SEND_TRIM) {
            return Ok(());
        }
        self.change(|| self.trim_range(offset, len))
    }
    fn set_len(&self, len: u64) -> Result<()> {
        let now = self.export.size;
        if len == now && self.writable {
            return Ok(());
        }
        Err(Error::unsupported(format!("an NBD export of {now} bytes cannot become {len} bytes")).at(&self.name))
    }
    fn flush(&self) -> Result<()> {
        if !self.writable || !self.can(wire::SEND_FLUSH) {
            return Ok(());
        }
        self.flushes.flush(&self.name, || {
            let ask = self.data(Command::Flush, 0, 0);
            match self.session().ask(ask, &[]).map_err(|e| e.at(&self.name))? {
                Ok(()) => Ok(()),
                Err(number) => Err(Error::io("cannot flush", system_error(number)).at(&self.name)),
            }
        })
    }
    fn extent(&self, offset: u64, len: u64) -> Result<StorageExtent> {
        if offset >= self.export.size || len == 0 {
            return Err(past_end(&self.name, offset, len, self.export.size));
        }
        let len = len.min(self.export.size - offset);
        let all_data = StorageExtent { len, data: true };
        if self.export.context.is_none() {
            return Ok(all_data);
        }
        let mut known = self.known();
        if let Some(found) = recall(&known, offset, len) {
            return Ok(found);
        }
        let Some(statuses) = self.ask_status(offset, len)? else {
            return Ok(all_data);
        };
        *known = self.noted(self.blocks(offset, 1).0, &statuses);
        Ok(recall(&known, offset, len).unwrap_or(all_data))
    }
    fn allocated(&self) -> Result<u64> {
        Err(Error::unsupported("an NBD server does not tell the space that is used").at(&self.name))
    }
    fn allocate(&self, _offset: u64, _len: u64) -> Result<()> {
        Err(Error::unsupported("an NBD server reserves no space").at(&self.name))
    }
    fn is_read_only(&self) -> bool {
        !self.writable
    }
    fn can_resize(&self) -> bool {
        false
    }
    fn identity(&self) -> Option<FileId> {
        Some(self.id)
    }
}
