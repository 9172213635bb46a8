//! The protocol's numbers, and its messages as bytes (NBD project, doc/proto.md). All integers are big endian.

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of every server.
pub(super) const SERVER_MAGIC: [u8; 8] = *b"NBDMAGIC";
/// Follows for newstyle servers; also begins each option.
pub(super) const OPTION_MAGIC: [u8; 8] = *b"IHAVEOPT";
/// Follows for oldstyle servers.
pub(super) const OLDSTYLE_MAGIC: [u8; 8] = 0x0000_4202_8186_1253_u64.to_be_bytes();
/// Begins each answer to an option.
pub(super) const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Begins each request.
pub(super) const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Begins a simple reply.
pub(super) const SIMPLE_MAGIC: u32 = 0x6744_6698;
/// Begins a chunk of a structured reply.
pub(super) const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Handshake flag: the server speaks fixed newstyle.
pub(super) const FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag: no 124 zero bytes after `NBD_OPT_EXPORT_NAME`.
pub(super) const NO_ZEROES: u16 = 2;

/// `NBD_OPT_EXPORT_NAME`
pub(super) const OPT_EXPORT_NAME: u32 = 1;
/// `NBD_OPT_STARTTLS`
pub(super) const OPT_STARTTLS: u32 = 5;
/// `NBD_OPT_GO`
pub(super) const OPT_GO: u32 = 7;
/// `NBD_OPT_STRUCTURED_REPLY`
pub(super) const OPT_STRUCTURED_REPLY: u32 = 8;
/// `NBD_OPT_SET_META_CONTEXT`
pub(super) const OPT_SET_META_CONTEXT: u32 = 10;

/// `NBD_REP_ACK`
pub(super) const REP_ACK: u32 = 1;
/// `NBD_REP_INFO`
pub(super) const REP_INFO: u32 = 3;
/// `NBD_REP_META_CONTEXT`
pub(super) const REP_META_CONTEXT: u32 = 4;
/// Set in answers that are errors.
pub(super) const REP_ERROR: u32 = 1 << 31;
/// `NBD_REP_ERR_UNSUP`
pub(super) const REP_ERR_UNSUP: u32 = REP_ERROR | 1;

/// `NBD_INFO_EXPORT`
pub(super) const INFO_EXPORT: u16 = 0;
/// `NBD_INFO_BLOCK_SIZE`
pub(super) const INFO_BLOCK_SIZE: u16 = 3;

/// Transmission flag: the other flags mean something.
pub(super) const HAS_FLAGS: u16 = 1;
/// Transmission flag: no writes.
pub(super) const READ_ONLY: u16 = 1 << 1;
/// Transmission flag: `FLUSH` is known.
pub(super) const SEND_FLUSH: u16 = 1 << 2;
/// Transmission flag: `TRIM` is known.
pub(super) const SEND_TRIM: u16 = 1 << 5;
/// Transmission flag: `WRITE_ZEROES` is known.
pub(super) const SEND_WRITE_ZEROES: u16 = 1 << 6;

/// Commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Read = 0,
    Write = 1,
    Disconnect = 2,
    Flush = 3,
    Trim = 4,
    WriteZeroes = 6,
    BlockStatus = 7,
}

impl Command {
    /// Whether it is done when its bytes have come or gone. Elsewhere a server may have to write out everything first.
    pub(super) fn is_quick(self) -> bool {
        !matches!(self, Self::Flush | Self::Trim | Self::WriteZeroes)
    }
}

/// Command flag of `WRITE_ZEROES`: keep the space.
pub(super) const NO_HOLE: u16 = 2;

/// Chunk flag: the last one of a reply.
pub(super) const CHUNK_DONE: u16 = 1;
/// `NBD_REPLY_TYPE_NONE`
pub(super) const CHUNK_NONE: u16 = 0;
/// `NBD_REPLY_TYPE_OFFSET_DATA`
pub(super) const CHUNK_DATA: u16 = 1;
/// `NBD_REPLY_TYPE_OFFSET_HOLE`
pub(super) const CHUNK_HOLE: u16 = 2;
/// `NBD_REPLY_TYPE_BLOCK_STATUS`
pub(super) const CHUNK_STATUS: u16 = 5;
/// Set in chunk types that are errors.
pub(super) const CHUNK_ERROR: u16 = 1 << 15;

/// `base:allocation`: the range reads as zeroes.
pub(super) const STATE_ZERO: u32 = 2;

/// Names of exports and contexts have at most this many bytes.
pub(super) const MAX_NAME: usize = 4096;

/// An option as the client sends it; its data follow.
#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct OptionHead {
    pub magic: [u8; 8],
    pub option: U32,
    pub len: U32,
}

/// An answer to an option; its data follow.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct OptionReply {
    pub magic: U64,
    pub option: U32,
    pub kind: U32,
    pub len: U32,
}

/// A request; the data of a write follow.
#[derive(IntoBytes, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Request {
    pub magic: U32,
    pub flags: U16,
    pub command: U16,
    pub cookie: U64,
    pub offset: U64,
    pub len: U32,
}

/// What both kinds of reply begin with.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct ReplyHead {
    pub magic: U32,
    /// Simple: the error. Structured: flags and type.
    pub what: [U16; 2],
    pub cookie: U64,
}

const _: () = assert!(size_of::<OptionHead>() == 16);
const _: () = assert!(size_of::<OptionReply>() == 20);
const _: () = assert!(size_of::<Request>() == 28);
const _: () = assert!(size_of::<ReplyHead>() == 16);

/// Takes big-endian integers off the front of a message.
pub(super) struct Fields<'a>(pub &'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }
    pub(super) fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }
    pub(super) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }
    pub(super) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }
}

/// Data of `NBD_OPT_GO`: the name, and the wish to know the block sizes.
pub(super) fn go(export: &str) -> Vec<u8> {
    let mut data = name(export);
    data.extend(1u16.to_be_bytes());
    data.extend(INFO_BLOCK_SIZE.to_be_bytes());
    data
}

/// Data of `NBD_OPT_SET_META_CONTEXT` for one context.
pub(super) fn set_context(export: &str, context: &str) -> Vec<u8> {
    let mut data = name(export);
    data.extend(1u32.to_be_bytes());
    data.extend(name(context));
    data
}

fn name(text: &str) -> Vec<u8> {
    let len = u32::try_from(text.len()).unwrap_or(u32::MAX);
    [&len.to_be_bytes()[..], text.as_bytes()].concat()
}
