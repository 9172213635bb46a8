//! From an open connection to an export: the negotiation.

use zerocopy::{FromBytes, IntoBytes};

use super::link::Link;
use super::tls::NbdTls;
use super::wire::{self, Fields, OptionHead, OptionReply};
use crate::{Error, ErrorKind, Result};

/// Longest answer to an option.
const MAX_REPLY: u32 = 64 << 10;
/// Answers to one option.
const MAX_REPLIES: usize = 64;
/// Largest request of a server that does not say one (doc/proto.md, "Block size constraints").
const DEFAULT_MAX: u32 = 32 << 20;

/// What was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Export {
    pub size: u64,
    pub flags: u16,
    /// Alignment of all requests: a power of two, at most 64 KiB.
    pub min: u32,
    /// Most bytes of a read or write, a multiple of `min`.
    pub max: u32,
    pub structured: bool,
    /// Number of the `base:allocation` context, where there is one.
    pub context: Option<u32>,
}

/// Negotiates the export of this name, over TLS where there are credentials for it.
///
/// # Errors
/// `Corrupt` for a server that breaks the protocol, `Unsupported` for one that wants what we have not, or has no TLS where credentials ask
/// for it, `InvalidArgument` for a name it does not know, `Denied` for a server that is not the one that the credentials are for, `Io`.
pub(super) fn negotiate(link: &mut Link, name: &str, tls: Option<&NbdTls>) -> Result<Export> {
    if name.len() > wire::MAX_NAME {
        return Err(Error::invalid("the name of an NBD export has at most 4096 bytes"));
    }
    if link.read_array()? != wire::SERVER_MAGIC {
        return Err(Error::not_this_format("the server does not speak NBD"));
    }
    match link.read_array()? {
        wire::OPTION_MAGIC => newstyle(link, name, tls),
        wire::OLDSTYLE_MAGIC if tls.is_some() => Err(no_tls()),
        wire::OLDSTYLE_MAGIC => oldstyle(link, name),
        _ => Err(Error::not_this_format("the server does not speak a known NBD dialect")),
    }
}

fn oldstyle(link: &mut Link, name: &str) -> Result<Export> {
    if !name.is_empty() {
        return Err(Error::unsupported("an oldstyle NBD server has no named exports"));
    }
    let size = u64::from_be_bytes(link.read_array()?);
    let [_, _, a, b] = link.read_array()?;
    link.read_array::<124>()?;
    Draft::plain(size, u16::from_be_bytes([a, b])).check()
}

/// Nothing goes on without encryption where it was asked for.
fn no_tls() -> Error {
    Error::unsupported("the NBD server has no TLS, which tls-creds asks for")
}

fn start_tls(link: &mut Link, tls: &NbdTls) -> Result<()> {
    send(link, wire::OPT_STARTTLS, &[])?;
    match reply(link, wire::OPT_STARTTLS)? {
        (wire::REP_ACK, data) if data.is_empty() => link.encrypt(tls),
        (kind, _) if kind & wire::REP_ERROR != 0 => Err(no_tls()),
        (kind, _) => Err(unexpected("NBD_OPT_STARTTLS", kind)),
    }
}

fn newstyle(link: &mut Link, name: &str, tls: Option<&NbdTls>) -> Result<Export> {
    let server = u16::from_be_bytes(link.read_array()?);
    let client = server & (wire::FIXED_NEWSTYLE | wire::NO_ZEROES);
    link.write(&u32::from(client).to_be_bytes())?;
    let zeroes = client & wire::NO_ZEROES == 0;
    if client & wire::FIXED_NEWSTYLE == 0 {
        return match tls {
            Some(_) => Err(no_tls()),
            None => by_name_alone(link, name, zeroes),
        };
    }
    if let Some(tls) = tls {
        start_tls(link, tls)?;
    }
    let structured = structured_replies(link)?;
    let context = if structured { allocation(link, name)? } else { None };
    let Some(draft) = go(link, name)? else {
        return by_name_alone(link, name, zeroes).map(|e| Export { structured, ..e });
    };
    Ok(Export {
        structured,
        context,
        ..draft.check()?
    })
}

/// `NBD_OPT_EXPORT_NAME`: all that old servers know. A name they do not know ends the connection.
fn by_name_alone(link: &mut Link, name: &str, zeroes: bool) -> Result<Export> {
    send(link, wire::OPT_EXPORT_NAME, name.as_bytes())?;
    let size = u64::from_be_bytes(link.read_array()?);
    let flags = u16::from_be_bytes(link.read_array()?);
    if zeroes {
        link.read_array::<124>()?;
    }
    Draft::plain(size, flags).check()
}

fn structured_replies(link: &mut Link) -> Result<bool> {
    send(link, wire::OPT_STRUCTURED_REPLY, &[])?;
    match reply(link, wire::OPT_STRUCTURED_REPLY)? {
        (wire::REP_ACK, _) => Ok(true),
        // A server that wants TLS says so again when the export is asked for.
        (kind, _) if kind & wire::REP_ERROR != 0 => Ok(false),
        (kind, _) => Err(unexpected("NBD_OPT_STRUCTURED_REPLY", kind)),
    }
}

/// Number of the context `base:allocation`, where the server has it.
fn allocation(link: &mut Link, name: &str) -> Result<Option<u32>> {
    const NAME: &str = "base:allocation";
    send(link, wire::OPT_SET_META_CONTEXT, &wire::set_context(name, NAME))?;
    let mut found = None;
    for _ in 0..MAX_REPLIES {
        match reply(link, wire::OPT_SET_META_CONTEXT)? {
            (wire::REP_ACK, _) => return Ok(found),
            (wire::REP_META_CONTEXT, data) => {
                let mut fields = Fields(&data);
                match (fields.u32(), fields.0 == NAME.as_bytes(), found) {
                    (Some(id), true, None) => found = Some(id),
                    _ => {
                        return Err(Error::corrupt(
                            "the NBD server selects a context that was not asked for",
                        ));
                    }
                }
            }
            (kind, _) if kind & wire::REP_ERROR != 0 => return Ok(None),
            (kind, _) => return Err(unexpected("NBD_OPT_SET_META_CONTEXT", kind)),
        }
    }
    Err(endless("NBD_OPT_SET_META_CONTEXT"))
}

/// `None` for a server that does not know `NBD_OPT_GO`.
fn go(link: &mut Link, name: &str) -> Result<Option<Draft>> {
    send(link, wire::OPT_GO, &wire::go(name))?;
    let mut draft = Draft::default();
    for _ in 0..MAX_REPLIES {
        match reply(link, wire::OPT_GO)? {
            (wire::REP_ACK, _) => return Ok(Some(draft)),
            (wire::REP_INFO, data) => draft.take(&data)?,
            (wire::REP_ERR_UNSUP, _) => return Ok(None),
            (kind, data) if kind & wire::REP_ERROR != 0 => return Err(refused(kind, &data)),
            (kind, _) => return Err(unexpected("NBD_OPT_GO", kind)),
        }
    }
    Err(endless("NBD_OPT_GO"))
}

/// An export as the server tells it.
#[derive(Debug, Default)]
struct Draft {
    export: Option<(u64, u16)>,
    blocks: Option<(u32, u32)>,
}

impl Draft {
    fn plain(size: u64, flags: u16) -> Self {
        Self {
            export: Some((size, flags)),
            blocks: None,
        }
    }

    fn take(&mut self, data: &[u8]) -> Result<()> {
        let short = || Error::corrupt("the NBD server tells an export in too few bytes");
        let mut fields = Fields(data);
        match fields.u16().ok_or_else(short)? {
            wire::INFO_EXPORT => self.export = Some((fields.u64().ok_or_else(short)?, fields.u16().ok_or_else(short)?)),
            wire::INFO_BLOCK_SIZE => {
                let (min, _preferred) = (fields.u32().ok_or_else(short)?, fields.u32().ok_or_else(short)?);
                self.blocks = Some((min, fields.u32().ok_or_else(short)?));
            }
            _ => {}
        }
        Ok(())
    }

    fn check(self) -> Result<Export> {
        let (size, flags) = self
            .export
            .ok_or_else(|| Error::corrupt("the NBD server does not tell the size of the export"))?;
        let (min, max) = self.blocks.unwrap_or((1, DEFAULT_MAX));
        if !min.is_power_of_two() || min > 64 << 10 {
            return Err(Error::corrupt(format!(
                "server minimum block size {min} is not a power of two up to 64 KiB"
            )));
        }
        if max < min {
            return Err(Error::corrupt(format!(
                "server maximum block size {max} is smaller than the minimum {min}"
            )));
        }
        if !size.is_multiple_of(min.into()) {
            return Err(Error::corrupt(format!(
                "export size {size} is not multiple of minimum block size {min}"
            )));
        }
        if i64::try_from(size).is_err() {
            return Err(Error::limit(format!("export size {size} is past 2^63 bytes")));
        }
        Ok(Export {
            size,
            // Without the first flag the others mean nothing.
            flags: if flags & wire::HAS_FLAGS == 0 { 0 } else { flags },
            min,
            max: max.min(DEFAULT_MAX) & !(min - 1),
            structured: false,
            context: None,
        })
    }
}

fn send(link: &mut Link, option: u32, data: &[u8]) -> Result<()> {
    let head = OptionHead {
        magic: wire::OPTION_MAGIC,
        option: option.into(),
        len: u32::try_from(data.len()).unwrap_or(u32::MAX).into(),
    };
    link.write(&[head.as_bytes(), data].concat())
}

fn reply(link: &mut Link, option: u32) -> Result<(u32, Vec<u8>)> {
    let bytes = link.read_array::<20>()?;
    let head = OptionReply::read_from_bytes(&bytes).map_err(|_| Error::corrupt("short reply"))?;
    if head.magic.get() != wire::REPLY_MAGIC || head.option.get() != option {
        return Err(Error::corrupt("the NBD server answers another option than was sent"));
    }
    let len = head.len.get();
    if len > MAX_REPLY {
        return Err(Error::corrupt(format!(
            "an answer of {len} bytes by the NBD server is too long"
        )));
    }
    Ok((head.kind.get(), link.read_vec(len as usize)?))
}

fn refused(kind: u32, message: &[u8]) -> Error {
    let (class, what) = match kind & !wire::REP_ERROR {
        2 => (ErrorKind::Denied, "the server's policy forbids the export"),
        3 => (ErrorKind::InvalidArgument, "the server takes the request for invalid"),
        5 => (
            ErrorKind::Unsupported,
            "the server wants TLS: name credentials (tls-creds)",
        ),
        6 => (ErrorKind::InvalidArgument, "requested export not available"),
        7 => (ErrorKind::Io, "the server is shutting down"),
        8 => (ErrorKind::Unsupported, "the server wants other block sizes"),
        _ => (ErrorKind::Unsupported, "the server refuses the export"),
    };
    let message = String::from_utf8_lossy(message.get(..message.len().min(200)).unwrap_or_default());
    match message.trim() {
        "" => Error::new(class, what),
        text => Error::new(class, format!("{what} (\"{}\")", text.escape_debug())),
    }
}

fn unexpected(option: &str, kind: u32) -> Error {
    Error::corrupt(format!("the NBD server answers {option} with {kind:#x}"))
}

fn endless(option: &str) -> Error {
    Error::corrupt(format!("the NBD server does not end its answer to {option}"))
}
