//! Requests and their replies, one at a time. Whatever breaks the protocol ends the session.

use zerocopy::{FromBytes, IntoBytes};

use super::handshake::Export;
use super::link::Link;
use super::wire::{self, Command, Fields, ReplyHead, Request};
use crate::{Error, Result};

/// Chunks of one reply.
const MAX_CHUNKS: usize = 64 << 10;
/// Bytes of a chunk that is neither data nor hole.
const MAX_CHUNK: u32 = 4 << 20;

/// A range and its `base:allocation` flags.
pub(super) type Status = (u64, u32);

/// What the server makes of a request: done, or an error number of its own.
pub(super) type Answer = std::result::Result<(), u32>;

/// An export that is open.
#[derive(Debug)]
pub(super) struct Session {
    link: Link,
    cookie: u64,
    structured: bool,
    context: Option<u32>,
    /// Why no request is made any more.
    broken: Option<Error>,
}

/// Where the payload of a reply goes.
enum Payload<'a> {
    None,
    Data { offset: u64, buf: &'a mut [u8] },
    Status(&'a mut Vec<Status>),
}

/// One request without its data.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask {
    pub command: Command,
    pub flags: u16,
    pub offset: u64,
    pub len: u32,
}

impl Session {
    pub(super) fn new(link: Link, export: &Export) -> Self {
        Self {
            link,
            cookie: 0,
            structured: export.structured,
            context: export.context,
            broken: None,
        }
    }

    /// Sends a request, with `data` where it is a write, and waits for the answer.
    pub(super) fn ask(&mut self, ask: Ask, data: &[u8]) -> Result<Answer> {
        self.exchange(ask, data, Payload::None)
    }

    /// Reads `buf.len()` bytes, which is `ask.len`.
    pub(super) fn read(&mut self, ask: Ask, buf: &mut [u8]) -> Result<Answer> {
        let offset = ask.offset;
        self.exchange(ask, &[], Payload::Data { offset, buf })
    }

    /// Lists what the range begins with: lengths with their flags.
    pub(super) fn status(&mut self, ask: Ask) -> Result<std::result::Result<Vec<Status>, u32>> {
        let mut list = Vec::new();
        let answer = self.exchange(ask, &[], Payload::Status(&mut list))?;
        Ok(answer.map(|()| list))
    }

    /// Says goodbye; nobody answers.
    pub(super) fn disconnect(&mut self) {
        if self.broken.is_none() {
            self.link.start(true);
            let bye = Ask {
                command: Command::Disconnect,
                flags: 0,
                offset: 0,
                len: 0,
            };
            // A server that is gone needs no goodbye.
            let _ = self.send(bye, &[]);
        }
    }

    fn exchange(&mut self, ask: Ask, data: &[u8], payload: Payload<'_>) -> Result<Answer> {
        // Whoever comes later is told the cause as well.
        if let Some(cause) = &self.broken {
            return Err(cause.again());
        }
        self.link.start(ask.command.is_quick());
        let done = self.send(ask, data).and_then(|()| self.receive(payload));
        self.broken = done.as_ref().err().map(Error::again);
        done
    }

    fn send(&mut self, ask: Ask, data: &[u8]) -> Result<()> {
        self.cookie = self.cookie.wrapping_add(1);
        let head = Request {
            magic: wire::REQUEST_MAGIC.into(),
            flags: ask.flags.into(),
            command: (ask.command as u16).into(),
            cookie: self.cookie.into(),
            offset: ask.offset.into(),
            len: ask.len.into(),
        };
        self.link.write(head.as_bytes())?;
        self.link.write(data)
    }

    fn receive(&mut self, mut payload: Payload<'_>) -> Result<Answer> {
        let (mut answer, mut got) = (Ok(()), Received::default());
        for _ in 0..MAX_CHUNKS {
            let bytes = self.link.read_array::<16>()?;
            let head = ReplyHead::read_from_bytes(&bytes).map_err(|_| Error::corrupt("short reply"))?;
            if head.cookie.get() != self.cookie {
                return Err(Error::corrupt("the NBD server answers a request that was not sent"));
            }
            let [first, second] = head.what.map(|w| w.get());
            match head.magic.get() {
                wire::SIMPLE_MAGIC if got.chunks == 0 => {
                    return self.simple(u32::from(first) << 16 | u32::from(second), payload);
                }
                wire::CHUNK_MAGIC if self.structured => {
                    got.chunks += 1;
                    if let Err(error) = self.chunk(second, &mut payload, &mut got)? {
                        answer = Err(error);
                    }
                    if first & wire::CHUNK_DONE != 0 {
                        return if answer.is_ok() {
                            got.check(&payload)
                        } else {
                            Ok(answer)
                        };
                    }
                }
                magic => {
                    return Err(Error::corrupt(format!(
                        "a reply of the NBD server begins with {magic:#x}"
                    )));
                }
            }
        }
        Err(Error::corrupt("the NBD server does not end its reply"))
    }

    fn simple(&mut self, error: u32, payload: Payload<'_>) -> Result<Answer> {
        match payload {
            Payload::None => {}
            Payload::Data { buf, .. } if !self.structured => {
                if error == 0 {
                    self.link.read(buf)?;
                }
            }
            // An error needs no structure; data do.
            _ if error != 0 => {}
            _ => {
                return Err(Error::corrupt(
                    "the NBD server answers with a simple reply where a structured one was agreed on",
                ));
            }
        }
        Ok(if error == 0 { Ok(()) } else { Err(error) })
    }

    fn chunk(&mut self, kind: u16, payload: &mut Payload<'_>, got: &mut Received) -> Result<Answer> {
        let len = u32::from_be_bytes(self.link.read_array()?);
        let wrong = || {
            Error::corrupt(format!(
                "a chunk of type {kind} and {len} bytes does not fit the request"
            ))
        };
        match (kind, payload) {
            (wire::CHUNK_NONE, _) if len == 0 => Ok(Ok(())),
            (wire::CHUNK_DATA, Payload::Data { offset, buf }) => {
                let at = u64::from_be_bytes(self.link.read_array()?);
                let n = len.checked_sub(8).filter(|n| *n > 0).ok_or_else(wrong)?;
                let part = part_of(buf, *offset, at, n).ok_or_else(wrong)?;
                self.link.read(part)?;
                got.ranges.push((at, n));
                Ok(Ok(()))
            }
            (wire::CHUNK_HOLE, Payload::Data { offset, buf }) if len == 12 => {
                let at = u64::from_be_bytes(self.link.read_array()?);
                let n = u32::from_be_bytes(self.link.read_array()?);
                let part = part_of(buf, *offset, at, n)
                    .filter(|p| !p.is_empty())
                    .ok_or_else(wrong)?;
                part.fill(0);
                got.ranges.push((at, n));
                Ok(Ok(()))
            }
            (wire::CHUNK_STATUS, Payload::Status(list)) if list.is_empty() && len > 4 && len <= MAX_CHUNK => {
                let data = self.link.read_vec(len as usize)?;
                **list = statuses(&data, self.context)?;
                Ok(Ok(()))
            }
            (kind, _) if kind & wire::CHUNK_ERROR != 0 && (6..=MAX_CHUNK).contains(&len) => {
                let data = self.link.read_vec(len as usize)?;
                match Fields(&data).u32() {
                    None | Some(0) => Err(wrong()),
                    Some(error) => Ok(Err(error)),
                }
            }
            _ => Err(wrong()),
        }
    }
}

fn part_of(buf: &mut [u8], offset: u64, at: u64, n: u32) -> Option<&mut [u8]> {
    let start = usize::try_from(at.checked_sub(offset)?).ok()?;
    buf.get_mut(start..start.checked_add(n as usize)?)
}

fn statuses(data: &[u8], context: Option<u32>) -> Result<Vec<Status>> {
    let wrong = || Error::corrupt("the NBD server tells block statuses that make no sense");
    let mut fields = Fields(data);
    if fields.u32() != context || fields.0.len() % 8 != 0 {
        return Err(wrong());
    }
    let mut list = Vec::with_capacity(fields.0.len() / 8);
    while let (Some(len), Some(flags)) = (fields.u32(), fields.u32()) {
        if len == 0 {
            return Err(wrong());
        }
        list.push((u64::from(len), flags));
    }
    Ok(list)
}

/// What of a reply arrived.
#[derive(Default)]
struct Received {
    chunks: usize,
    ranges: Vec<(u64, u32)>,
}

impl Received {
    /// Data must cover the request once and whole; a status must be there.
    fn check(mut self, payload: &Payload<'_>) -> Result<Answer> {
        match payload {
            Payload::None => Ok(Ok(())),
            Payload::Status(list) if !list.is_empty() => Ok(Ok(())),
            Payload::Status(_) => Err(Error::corrupt("the NBD server tells no block status")),
            Payload::Data { offset, buf } => {
                self.ranges.sort_unstable();
                let mut next = *offset;
                for (at, len) in self.ranges {
                    if at != next {
                        return Err(Error::corrupt(format!(
                            "the NBD server's data miss or repeat {next:#x}"
                        )));
                    }
                    next += u64::from(len);
                }
                if next == offset + buf.len() as u64 {
                    Ok(Ok(()))
                } else {
                    Err(Error::corrupt(format!("the NBD server's data end at {next:#x}")))
                }
            }
        }
    }
}
