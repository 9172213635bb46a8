//! Requests in whole blocks of the server, of lengths that it takes.

use std::io;

use super::NbdStorage;
use super::session::{Answer, Ask, Session};
use super::wire::{self, Command};
use crate::{Error, Result};

/// Most bytes of a read or write: a request must be done within the timeout.
const MAX_TRANSFER: u32 = 4 << 20;
/// Most bytes of a request that moves no data.
pub(super) const MAX_RANGE: u32 = 128 << 20;

impl NbdStorage {
    /// Most bytes of one transfer, in whole blocks.
    fn transfer(&self) -> u64 {
        u64::from(self.export.max.min(MAX_TRANSFER))
    }

    pub(super) fn write_range(&self, offset: u64, buf: &[u8]) -> Result<()> {
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

    pub(super) fn zero_range(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
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

    pub(super) fn trim_range(&self, offset: u64, len: u64) -> Result<()> {
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

    pub(super) fn read_blocks(&self, session: &mut Session, offset: u64, buf: &mut [u8]) -> Result<()> {
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

    pub(super) fn data(&self, command: Command, offset: u64, len: usize) -> Ask {
        Ask {
            command,
            flags: 0,
            offset,
            // No longer than `transfer`.
            len: u32::try_from(len).unwrap_or(u32::MAX),
        }
    }

    /// The whole blocks that a range touches. Never past the end, which is one of a block.
    pub(super) fn blocks(&self, offset: u64, len: u64) -> (u64, u64) {
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

    pub(super) fn done(&self, what: &str, ask: Ask, answer: Answer) -> Result<()> {
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
}

/// The error numbers of the protocol are those of Linux.
pub(super) fn system_error(number: u32) -> io::Error {
    match number {
        1 | 5 | 12 | 22 | 28 | 75 | 95 | 108 => io::Error::from_raw_os_error(number as i32),
        _ => io::Error::from(rustix::io::Errno::INVAL),
    }
}

/// `ENOTSUP`, or `EINVAL` of servers that know no better.
pub(super) fn lacks(number: u32) -> bool {
    number == 95 || number == 22
}
