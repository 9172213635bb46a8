//! A file that is taken as a whole, as it comes, from servers that give no parts of it. What breaks off begins again with the first byte.

use std::io::{self, Read};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use ureq::http::StatusCode;
use ureq::{Body, BodyReader};

use super::fetch::{Failed, LISTEN, Remote, Tried, whole_answer};
use super::{HttpOptions, HttpStorage, without_query};
use crate::{CancelToken, Error, Result};

/// Bytes that are handed on at once, and must come within the timeout.
const PIECE: usize = 256 << 10;

/// A file on a web server, in the manner in which the server gives it.
#[derive(Debug)]
pub enum HttpFile {
    /// Any part of it.
    Parts(HttpStorage),
    /// All of it, or nothing.
    Whole(HttpBody),
}

/// A file that a server gives as a whole.
#[derive(Debug)]
pub struct HttpBody {
    name: String,
    remote: Remote,
    announced: Option<u64>,
}

impl HttpFile {
    /// Asks what the server does.
    ///
    /// # Errors
    /// As [`HttpStorage::open`]; `Unsupported` for a server without ranges that tells neither a length nor an end.
    pub fn open(options: &HttpOptions) -> Result<Self> {
        Self::find(options).map_err(|e| e.at(without_query(&options.url)))
    }

    fn find(options: &HttpOptions) -> Result<Self> {
        let (remote, reply) = Remote::find(options)?;
        if reply.status() != StatusCode::OK {
            return Ok(Self::Parts(HttpStorage::over(remote.in_parts(&reply)?, options)));
        }
        let announced = whole_answer(&reply)?;
        remote.require_within(announced.unwrap_or(0))?;
        Ok(Self::Whole(HttpBody {
            name: without_query(&options.url).to_owned(),
            remote,
            announced,
        }))
    }
}

impl HttpBody {
    /// Bytes of the file, where the server told it.
    pub fn announced(&self) -> Option<u64> {
        self.announced
    }

    /// Hands the file's bytes to `take`, each piece with its offset, and returns their number. An offset of 0 begins the file anew: what was
    /// taken before does not count.
    ///
    /// # Errors
    /// What `take` says; `Io` when the file comes too slowly or not to its end, `LimitExceeded` as soon as it is too long, `Corrupt`,
    /// `Unsupported`, `Cancelled`.
    pub fn read(&self, take: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<u64> {
        self.remote.attempts(|| self.attempt(take))
    }

    fn attempt(&self, take: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Tried<u64> {
        let reply = self.remote.apart(|server| server.ask_whole());
        let reply = reply.map_err(|failed| self.named(failed))?;
        let announced = whole_answer(&reply).map_err(|e| self.named(e))?;
        let pieces = Pieces::of(reply.into_body())?;
        let mut len = 0;
        loop {
            let piece = pieces.next(&self.remote).map_err(|failed| self.named(failed))?;
            if piece.is_empty() {
                break;
            }
            let end = len + piece.len() as u64;
            self.remote.require_within(end).map_err(|e| self.named(e))?;
            take(len, &piece)?;
            len = end;
        }
        match announced {
            Some(announced) if announced != len => Err(self.named(cut_off(io::ErrorKind::UnexpectedEof.into()))),
            _ => Ok(len),
        }
    }

    fn named(&self, failed: impl Into<Failed>) -> Failed {
        let Failed { error, again } = failed.into();
        let error = error.at(&self.name);
        Failed { error, again }
    }
}

fn cut_off(cause: io::Error) -> Failed {
    Failed {
        error: Error::io("the file did not come to its end", cause),
        again: true,
    }
}

/// A body that a thread of its own reads, so that who waits for it can leave. At most two pieces wait to be taken; meanwhile the server does.
struct Pieces {
    coming: Receiver<io::Result<Vec<u8>>>,
    /// Set when nobody waits any more.
    left: CancelToken,
}

impl Pieces {
    fn of(body: Body) -> Result<Self> {
        let (hand, coming) = mpsc::sync_channel(1);
        let left = CancelToken::new();
        let (mut reader, seen) = (body.into_reader(), left.clone());
        let read = move || {
            loop {
                let piece = fill(&mut reader, &seen);
                let over = piece.as_ref().map_or(true, Vec::is_empty);
                if hand.send(piece).is_err() || over {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("http".to_owned());
        thread
            .spawn(read)
            .map_err(|e| Error::io("a request gets no thread", e))?;
        Ok(Self { coming, left })
    }

    /// The next bytes; none at the end.
    fn next(&self, remote: &Remote) -> Tried<Vec<u8>> {
        let mut waited = Duration::ZERO;
        loop {
            remote.require_wanted()?;
            match self.coming.recv_timeout(LISTEN) {
                Ok(piece) => return piece.map_err(cut_off),
                Err(RecvTimeoutError::Timeout) if waited < remote.timeout() => waited += LISTEN,
                Err(RecvTimeoutError::Timeout) => return Err(cut_off(io::ErrorKind::TimedOut.into())),
                Err(RecvTimeoutError::Disconnected) => return Err(cut_off(io::Error::other("its thread ended"))),
            }
        }
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        self.left.cancel();
    }
}

/// Reads a whole piece, or what there is before the end.
fn fill(reader: &mut BodyReader<'_>, left: &CancelToken) -> io::Result<Vec<u8>> {
    let mut piece = vec![0; PIECE];
    let mut filled = 0;
    while let Some(rest) = piece.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        if left.is_cancelled() {
            break;
        }
        match reader.read(rest) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    piece.truncate(filled);
    Ok(piece)
}
