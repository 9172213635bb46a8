//! An export of an NBD server as a storage.
//!
//! Supported: TCP and unix sockets; fixed newstyle with `NBD_OPT_GO`, and older servers; structured replies; `base:allocation` as holes;
//! READ, WRITE, FLUSH, TRIM and WRITE_ZEROES within the block sizes the server tells. Every exchange has a deadline, but FLUSH, TRIM and
//! WRITE_ZEROES: a server may write out everything then. An end on request. A server that
//! breaks the protocol gets `Corrupt`, and no request any more. TLS with X.509 certificates. Refused: TLS with shared keys, changing the size.

mod handshake;
mod link;
mod session;
#[cfg(test)]
mod tests;
mod tls;
mod wire;

use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use handshake::Export;
use link::Link;
use session::{Answer, Ask, Session};
pub use tls::{NbdTls, TlsFiles};
use wire::Command;

use super::{FileId, FlushGuard, Storage, StorageExtent, past_end};
use crate::{CancelToken, Error, Result};

/// Most bytes of a read or write: a request must be done within the timeout.
const MAX_TRANSFER: u32 = 4 << 20;
/// Most bytes of a request that moves no data.
const MAX_RANGE: u32 = 128 << 20;

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

/// An extent and where it begins.
type Run = (u64, StorageExtent);

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

    /// Most bytes of one transfer, in whole blocks.
    fn transfer(&self) -> u64 {
        u64::from(self.export.max.min(MAX_TRANSFER))
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

    fn write_range(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let (start, len) = self.blocks(offset, buf.len() as u64);
        let mut session = self.session();
        if len == buf.len() as u64 {
            return self.write_blocks(&mut session, offset, buf);
        }
        // Blocks that are written in part keep the rest; nobody else writes meanwhile through this session.
        let mut whole = vec![0; len as usize];
        self.read_blocks(&mut session, start, &mut whole)?;
        let from = (offset - start) as usize;
        whole[from..from + buf.len()].copy_from_slice(buf);
        self.write_blocks(&mut session, start, &whole)
    }

    fn zero_range(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        let end = offset + len;
        let mut at = offset;
        if self.can(wire::SEND_WRITE_ZEROES) {
            for (start, n) in self.ranges(offset, len) {
                if !self.zero_blocks(start, n, unmap)? {
                    break;
                }
                self.write_zero_bytes(at, start.saturating_sub(at))?;
                at = start + u64::from(n);
            }
        }
        self.write_zero_bytes(at, end - at)
    }

    fn write_zero_bytes(&self, mut offset: u64, mut len: u64) -> Result<()> {
        let zeroes = vec![0; len.min(1 << 20) as usize];
        while len > 0 {
            let n = len.min(1 << 20);
            self.write_range(offset, &zeroes[..n as usize])?;
            offset += n;
            len -= n;
        }
        Ok(())
    }

    fn trim_range(&self, offset: u64, len: u64) -> Result<()> {
        for (offset, len) in self.ranges(offset, len) {
            let ask = Ask {
                command: Command::Trim,
                flags: 0,
                offset,
                len,
            };
            match self.session().ask(ask, &[]).map_err(|e| e.at(&self.name))? {
                Err(error) if lacks(error) => return Ok(()),
                answer => self.done("discard", ask, answer)?,
            }
        }
        Ok(())
    }

    fn read_blocks(&self, session: &mut Session, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut at = offset;
        for part in buf.chunks_mut(self.transfer() as usize) {
            let ask = self.data(Command::Read, at, part.len());
            let answer = session.read(ask, part).map_err(|e| e.at(&self.name))?;
            self.done("read", ask, answer)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    fn write_blocks(&self, session: &mut Session, offset: u64, buf: &[u8]) -> Result<()> {
        let mut at = offset;
        for part in buf.chunks(self.transfer() as usize) {
            let ask = self.data(Command::Write, at, part.len());
            let answer = session.ask(ask, part).map_err(|e| e.at(&self.name))?;
            self.done("write", ask, answer)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    fn data(&self, command: Command, offset: u64, len: usize) -> Ask {
        Ask {
            command,
            flags: 0,
            offset,
            // No longer than `transfer`.
            len: u32::try_from(len).unwrap_or(u32::MAX),
        }
    }

    /// The whole blocks that a range touches. Never past the end, which is one of a block.
    fn blocks(&self, offset: u64, len: u64) -> (u64, u64) {
        let min = u64::from(self.export.min);
        let start = offset - offset % min;
        (start, (offset + len).next_multiple_of(min) - start)
    }

    /// The whole blocks inside a range, in requests of a length that servers take.
    fn ranges(&self, offset: u64, len: u64) -> impl Iterator<Item = (u64, u32)> + use<> {
        let min = u64::from(self.export.min);
        let end = (offset + len) - (offset + len) % min;
        let mut at = offset.next_multiple_of(min);
        std::iter::from_fn(move || {
            let left = end.checked_sub(at).filter(|n| *n > 0)?;
            let n = u32::try_from(left).unwrap_or(u32::MAX).min(MAX_RANGE);
            at += u64::from(n);
            Some((at - u64::from(n), n))
        })
    }

    fn done(&self, what: &str, ask: Ask, answer: Answer) -> Result<()> {
        answer.map_err(|number| {
            let what = format!("cannot {what} {} bytes at {:#x}", ask.len, ask.offset);
            Error::io(what, system_error(number)).at(&self.name)
        })
    }

    /// Zeroes whole blocks; false when the server cannot.
    fn zero_blocks(&self, offset: u64, len: u32, unmap: bool) -> Result<bool> {
        let ask = Ask {
            command: Command::WriteZeroes,
            flags: if unmap { 0 } else { wire::NO_HOLE },
            offset,
            len,
        };
        match self.session().ask(ask, &[]).map_err(|e| e.at(&self.name))? {
            Err(error) if lacks(error) => Ok(false),
            answer => self.done("zero", ask, answer).map(|()| true),
        }
    }

    fn ask_status(&self, offset: u64, len: u64) -> Result<Option<Vec<session::Status>>> {
        let (start, blocks) = self.blocks(offset, len.min(u64::from(MAX_RANGE)));
        let ask = Ask {
            command: Command::BlockStatus,
            flags: 0,
            offset: start,
            len: u32::try_from(blocks).unwrap_or(u32::MAX),
        };
        match self.session().status(ask).map_err(|e| e.at(&self.name))? {
            Ok(statuses) => Ok(Some(statuses)),
            // Not knowing is no reason to fail: the data can be read.
            Err(number) if lacks(number) => Ok(None),
            Err(number) => self.done("tell the status of", ask, Err(number)).map(|()| None),
        }
    }

    /// What a status says of the ranges from `offset` on, neighbours of one kind together.
    fn noted(&self, offset: u64, statuses: &[session::Status]) -> Vec<Run> {
        let (mut list, mut at): (Vec<Run>, _) = (Vec::new(), offset);
        for (len, flags) in statuses {
            let data = flags & wire::STATE_ZERO == 0;
            let len = (*len).min(self.export.size.saturating_sub(at));
            match list.last_mut() {
                Some((_, last)) if last.data == data => last.len += len,
                _ if len > 0 => list.push((at, StorageExtent { len, data })),
                _ => {}
            }
            at += len;
        }
        list
    }
}

/// The same for the same export of the same server, as far as names and sockets tell: a server may export one thing under two names.
fn identity(options: &NbdOptions) -> FileId {
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

fn recall(known: &[Run], offset: u64, len: u64) -> Option<StorageExtent> {
    let index = known.partition_point(|(start, e)| start + e.len <= offset);
    let (start, extent) = known.get(index).filter(|(start, _)| *start <= offset)?;
    Some(StorageExtent {
        len: (start + extent.len - offset).min(len),
        data: extent.data,
    })
}

/// The error numbers of the protocol are those of Linux.
fn system_error(number: u32) -> io::Error {
    match number {
        1 | 5 | 12 | 22 | 28 | 75 | 95 | 108 => io::Error::from_raw_os_error(number as i32),
        _ => io::Error::from(rustix::io::Errno::INVAL),
    }
}

/// `ENOTSUP`, or `EINVAL` of servers that know no better.
fn lacks(number: u32) -> bool {
    number == 95 || number == 22
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
