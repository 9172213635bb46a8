//! Requests to one URL: what the server answers is checked before a byte of it is believed.

use std::io::Read;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use ureq::http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderName, LAST_MODIFIED, LOCATION, RANGE,
    TRANSFER_ENCODING,
};
use ureq::http::{Response, StatusCode, Uri, Version};
use ureq::tls::TlsConfig;
use ureq::unversioned::transport::DefaultConnector;
use ureq::{Agent, Body};

use super::HttpOptions;
use super::guard::{Guard, Refused, web_url, without_query};
use super::reference::resolve_url;
use crate::{CancelToken, Error, ErrorKind, Result};

/// Redirections that are followed when a file is opened.
const MAX_REDIRECTS: usize = 5;
/// Bytes of the headers of a reply.
const MAX_HEADERS: usize = 32 << 10;

/// How often somebody who waits for a server looks whether the work is still wanted.
pub(super) const LISTEN: Duration = Duration::from_millis(50);

/// A file on a server, as it was when it was opened.
#[derive(Debug)]
pub(super) struct Remote {
    server: Server,
    retries: u32,
    max_len: u64,
    cancel: CancelToken,
}

/// What a request needs.
#[derive(Debug, Clone)]
pub(super) struct Server {
    agent: Agent,
    url: Uri,
    timeout: Duration,
    len: u64,
    /// What changes when the file does.
    mark: Mark,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Mark {
    tag: Option<String>,
    modified: Option<String>,
}

/// Why a request failed, and whether it may go better the next time.
pub(super) struct Failed {
    pub(super) error: Error,
    pub(super) again: bool,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, again: false }
    }
}

pub(super) type Tried<T> = std::result::Result<T, Failed>;

impl Remote {
    /// Follows the redirections to the file, and gives the answer to a request for its first byte.
    pub(super) fn find(options: &HttpOptions) -> Result<(Self, Response<Body>)> {
        let mut remote = Self {
            server: Server {
                agent: agent(options),
                url: web_url(&options.url)?,
                timeout: options.timeout,
                len: 0,
                mark: Mark::default(),
            },
            retries: options.retries,
            max_len: options.max_len,
            cancel: options.cancel.clone(),
        };
        for _ in 0..=MAX_REDIRECTS {
            let reply = remote.retried(|server| server.ask(0, 0))?;
            if let Some(next) = redirection(&reply, &remote.server.url, options.other_servers)? {
                remote.server.url = next;
                continue;
            }
            return Ok((remote, reply));
        }
        Err(Error::denied("the server redirects again and again"))
    }

    /// Learns the length from the answer for the first byte: the file is read in parts.
    pub(super) fn in_parts(mut self, reply: &Response<Body>) -> Result<Self> {
        (self.server.len, self.server.mark) = (first_answer(reply)?, mark(reply));
        self.require_within(self.len())?;
        Ok(self)
    }

    pub(super) fn require_within(&self, len: u64) -> Result<()> {
        let limit = self.max_len;
        if len > limit {
            return Err(Error::limit(format!(
                "the file, of {len} bytes at least, exceeds the limit of {limit} bytes"
            )));
        }
        Ok(())
    }

    pub(super) fn timeout(&self) -> Duration {
        self.server.timeout
    }

    pub(super) fn len(&self) -> u64 {
        self.server.len
    }

    /// Fills `buf`, which is not empty, from `offset`; the range lies inside the file.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let len = buf.len();
        let bytes = self.retried(move |server| server.read(offset, len))?;
        buf.copy_from_slice(&bytes);
        Ok(())
    }

    fn retried<T: Send + 'static>(&self, work: impl Fn(&Server) -> Tried<T> + Clone + Send + 'static) -> Result<T> {
        self.attempts(|| self.apart(work.clone()))
    }

    /// Tries again what may go better the next time.
    pub(super) fn attempts<T>(&self, mut attempt: impl FnMut() -> Tried<T>) -> Result<T> {
        let mut left = self.retries;
        let mut pause = Duration::from_millis(100);
        loop {
            match attempt() {
                Ok(done) => return Ok(done),
                Err(failed) if failed.again && left > 0 => {
                    left -= 1;
                    self.rest(pause)?;
                    pause = (pause * 2).min(Duration::from_secs(5));
                }
                Err(failed) => return Err(failed.error),
            }
        }
    }

    /// Does a request on a thread of its own, so that who waits for it can leave, whatever the request waits for: a name, a connection, an
    /// answer. The thread ends by the timeout.
    pub(super) fn apart<T: Send + 'static>(&self, work: impl Fn(&Server) -> Tried<T> + Send + 'static) -> Tried<T> {
        self.require_wanted()?;
        let (server, (done, waiting)) = (self.server.clone(), mpsc::sync_channel(1));
        let thread = std::thread::Builder::new().name("http".to_owned());
        thread
            .spawn(move || done.send(work(&server)))
            .map_err(|e| Error::io("a request gets no thread", e))?;
        loop {
            match waiting.recv_timeout(LISTEN) {
                Ok(tried) => return tried,
                Err(RecvTimeoutError::Timeout) => self.require_wanted()?,
                Err(RecvTimeoutError::Disconnected) => {
                    let cause = std::io::Error::other("its thread ended");
                    return Err(Error::io("a request came to nothing", cause).into());
                }
            }
        }
    }

    fn rest(&self, mut left: Duration) -> Result<()> {
        while !left.is_zero() {
            self.require_wanted()?;
            let part = left.min(LISTEN);
            std::thread::sleep(part);
            left -= part;
        }
        Ok(())
    }

    pub(super) fn require_wanted(&self) -> Result<()> {
        if self.cancel.is_cancelled() {
            return Err(Error::cancelled());
        }
        Ok(())
    }
}

impl Server {
    fn read(&self, offset: u64, len: usize) -> Tried<Vec<u8>> {
        let last = offset + (len as u64 - 1);
        let mut reply = self.ask(offset, last)?;
        self.check_range(&reply, offset, last)?;
        let mut bytes = vec![0; len];
        let mut body = reply.body_mut().as_reader();
        body.read_exact(&mut bytes).map_err(|e| Failed {
            error: Error::io(
                format!("the server's answer for {len} bytes at {offset:#x} ended early"),
                e,
            ),
            again: true,
        })?;
        match body.read(&mut [0]) {
            Ok(0) => Ok(bytes),
            _ => Err(Error::corrupt("the server sends more bytes than were asked for").into()),
        }
    }

    fn check_range(&self, reply: &Response<Body>, first: u64, last: u64) -> Result<()> {
        match reply.status() {
            StatusCode::PARTIAL_CONTENT => {}
            StatusCode::OK => return Err(no_ranges()),
            status if status.is_redirection() => return Err(redirects_later()),
            StatusCode::RANGE_NOT_SATISFIABLE => return Err(changed()),
            status => return Err(refused(status)),
        }
        let found = content_range(reply)?;
        if (found.first, found.last) != (first, last) {
            let (a, b) = (found.first, found.last);
            return Err(Error::corrupt(format!(
                "the server answers with bytes {a} to {b} where {first} to {last} were asked for"
            )));
        }
        if found.len != self.len || mark(reply) != self.mark {
            return Err(changed());
        }
        Ok(())
    }

    fn ask(&self, first: u64, last: u64) -> Tried<Response<Body>> {
        let range = format!("bytes={first}-{last}");
        answered(self.agent.get(&self.url).header(RANGE, range).call())
    }

    /// Asks for the whole file, the body of which may take as long as it goes on.
    pub(super) fn ask_whole(&self) -> Tried<Response<Body>> {
        let time = Some(self.timeout);
        let request = self.agent.get(&self.url).config();
        let request = request
            .timeout_global(None)
            .timeout_resolve(time)
            .timeout_connect(time)
            .timeout_send_request(time)
            .timeout_recv_response(time)
            .timeout_per_read(time)
            .build();
        answered(request.call())
    }
}

fn answered(reply: std::result::Result<Response<Body>, ureq::Error>) -> Tried<Response<Body>> {
    let reply = reply.map_err(no_reply)?;
    let status = reply.status();
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        return Err(Failed {
            error: refused(status),
            again: true,
        });
    }
    if header(&reply, CONTENT_ENCODING).is_some_and(|e| !e.eq_ignore_ascii_case("identity")) {
        return Err(Error::unsupported("the server sends the file in another encoding").into());
    }
    Ok(reply)
}

fn agent(options: &HttpOptions) -> Agent {
    let tls = TlsConfig::builder().disable_verification(!options.verify_tls).build();
    let config = Agent::config_builder()
        // The environment has no say.
        .proxy(None)
        .http_status_as_error(false)
        .max_redirects(0)
        .timeout_global(Some(options.timeout))
        .max_response_header_size(MAX_HEADERS)
        .tls_config(tls)
        .user_agent("vdisk")
        .build();
    let guard = Guard {
        allow: options.allow.clone(),
    };
    Agent::with_parts(config, DefaultConnector::default(), guard)
}

/// Where the server sends us, if it does (RFC 9110, 10.2.2).
fn redirection(reply: &Response<Body>, from: &Uri, other_servers: bool) -> Result<Option<Uri>> {
    if !reply.status().is_redirection() {
        return Ok(None);
    }
    let to = resolve_url(&from.to_string(), header(reply, LOCATION).unwrap_or_default());
    let denied = |which: &str| {
        let to = without_query(&to).escape_debug();
        Error::denied(format!(
            "the server redirects to \"{to}\"; only redirections to {which} are followed"
        ))
    };
    match web_url(&to) {
        Ok(next) if next.scheme() == from.scheme() && next.authority() == from.authority() => Ok(Some(next)),
        Ok(next) if other_servers && (next.scheme_str() == Some("https") || from.scheme_str() == Some("http")) => {
            Ok(Some(next))
        }
        _ if other_servers => Err(denied("http and https, and from https to https,")),
        _ => Err(denied("the same server")),
    }
}

/// The length of the file, from the answer to a request for its first byte.
fn first_answer(reply: &Response<Body>) -> Result<u64> {
    match reply.status() {
        StatusCode::PARTIAL_CONTENT => {
            let range = content_range(reply)?;
            if (range.first, range.last) == (0, 0) {
                return Ok(range.len);
            }
            Err(Error::corrupt(
                "the server answers with other bytes than were asked for",
            ))
        }
        // An empty file has no first byte.
        StatusCode::RANGE_NOT_SATISFIABLE if header(reply, CONTENT_RANGE) == Some("bytes */0") => Ok(0),
        StatusCode::OK => Err(no_ranges()),
        status => Err(refused(status)),
    }
}

/// The length of a file that comes whole, if the server tells it before. Without it the last chunk tells the end; an end that is only
/// that of the connection is none to rely on.
pub(super) fn whole_answer(reply: &Response<Body>) -> Result<Option<u64>> {
    match reply.status() {
        StatusCode::OK => {}
        status if status.is_redirection() => return Err(redirects_later()),
        status => return Err(refused(status)),
    }
    let coded = header(reply, TRANSFER_ENCODING).unwrap_or_default();
    if coded.eq_ignore_ascii_case("chunked") && reply.version() > Version::HTTP_10 {
        return Ok(None);
    }
    let len = header(reply, CONTENT_LENGTH).and_then(number);
    len.map(Some).ok_or_else(|| {
        Error::unsupported(
            "the server tells neither how long the file is nor where it ends (no Content-Length, no chunks)",
        )
    })
}

/// What a `Content-Range` says (RFC 9110, 14.4).
struct ContentRange {
    first: u64,
    last: u64,
    len: u64,
}

fn content_range(reply: &Response<Body>) -> Result<ContentRange> {
    let text = header(reply, CONTENT_RANGE).unwrap_or_default();
    let parts = text.strip_prefix("bytes ").and_then(|t| {
        let (range, len) = t.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        Some(ContentRange {
            first: number(first)?,
            last: number(last)?,
            len: number(len)?,
        })
    });
    parts
        .filter(|r| r.first <= r.last && r.last < r.len && i64::try_from(r.len).is_ok())
        .ok_or_else(|| {
            Error::corrupt(format!(
                "the server's Content-Range \"{}\" makes no sense",
                text.escape_debug()
            ))
        })
}

fn number(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

fn header(reply: &Response<Body>, name: HeaderName) -> Option<&str> {
    reply.headers().get(name)?.to_str().ok()
}

fn mark(reply: &Response<Body>) -> Mark {
    Mark {
        tag: header(reply, ETAG).map(str::to_owned),
        modified: header(reply, LAST_MODIFIED).map(str::to_owned),
    }
}

fn redirects_later() -> Error {
    Error::corrupt("the server redirects a file that it served before")
}

fn no_ranges() -> Error {
    Error::unsupported("the server does not support 'range' (byte ranges)")
}

fn changed() -> Error {
    Error::corrupt("the file changed on the server while it was read")
}

fn refused(status: StatusCode) -> Error {
    let kind = match status {
        StatusCode::NOT_FOUND | StatusCode::GONE => std::io::ErrorKind::NotFound,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => std::io::ErrorKind::PermissionDenied,
        _ => std::io::ErrorKind::Other,
    };
    let cause = std::io::Error::new(kind, format!("status {status}"));
    Error::io("the server does not give the file", cause)
}

fn no_reply(error: ureq::Error) -> Failed {
    let (kind, again) = match &error {
        ureq::Error::Other(inner) if inner.is::<Refused>() => {
            return Error::new(ErrorKind::Denied, Refused.to_string()).into();
        }
        ureq::Error::Timeout(_) => (std::io::ErrorKind::TimedOut, true),
        ureq::Error::Io(io) => (io.kind(), true),
        ureq::Error::ConnectionFailed => (std::io::ErrorKind::ConnectionRefused, true),
        ureq::Error::HostNotFound => (std::io::ErrorKind::NotFound, false),
        _ => (std::io::ErrorKind::InvalidData, false),
    };
    Failed {
        error: Error::io("cannot reach the server", std::io::Error::new(kind, error.to_string())),
        again,
    }
}
