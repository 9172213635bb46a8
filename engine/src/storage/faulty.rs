//! A storage that fails on purpose, and remembers what was written in which order: for crash and fault tests.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{MemoryStorage, Storage, StorageExtent};
use crate::{Error, Result};

/// What happens at a chosen change (write, zero, discard, set_len, flush), counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// This one change fails with the error and does nothing; later ones work.
    FailOnce(std::io::ErrorKind),
    /// This change and all later ones fail with the error and do nothing.
    FailForever(std::io::ErrorKind),
    /// A write stores only its first half (in whole 512-byte sectors), then everything freezes.
    Tear,
    /// This change and all later ones report success and do nothing: what remains is what a power cut leaves.
    Freeze,
}

/// One change as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoggedOp {
    /// Bytes written at an offset.
    Write {
        /// where
        offset: u64,
        /// what
        data: Vec<u8>,
    },
    /// A range zeroed or discarded.
    Zero {
        /// where
        offset: u64,
        /// how many bytes
        len: u64,
    },
    /// The length set.
    SetLen(u64),
    /// Everything before is stable.
    Flush,
}

impl LoggedOp {
    /// Does the change again on `bytes`.
    pub fn replay(&self, bytes: &mut Vec<u8>) {
        let grow = |bytes: &mut Vec<u8>, end: u64| bytes.resize(bytes.len().max(end as usize), 0);
        match self {
            Self::Write { offset, data } => {
                grow(bytes, offset + data.len() as u64);
                bytes[*offset as usize..*offset as usize + data.len()].copy_from_slice(data);
            }
            Self::Zero { offset, len } => {
                grow(bytes, offset + len);
                bytes[*offset as usize..(offset + len) as usize].fill(0);
            }
            Self::SetLen(len) => bytes.resize(*len as usize, 0),
            Self::Flush => {}
        }
    }
}

#[derive(Debug, Default)]
struct State {
    changes: u64,
    fault: Option<(u64, Fault)>,
    frozen: bool,
    log: Vec<LoggedOp>,
}

enum Verdict {
    Do,
    Pretend,
    Half,
}

/// Memory that obeys one [`Fault`] and logs every change.
#[derive(Debug)]
pub struct FaultyStorage {
    inner: MemoryStorage,
    state: Mutex<State>,
}

impl FaultyStorage {
    /// Starts with `bytes` and no fault.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self {
            inner: MemoryStorage::new("faulty", bytes),
            state: Mutex::default(),
        }
    }
    /// Plans `fault` for the change with this number, counted from now.
    pub fn plan(&self, after: u64, fault: Fault) {
        let mut state = self.state();
        state.fault = Some((state.changes + after, fault));
    }
    /// How many changes were asked for so far.
    pub fn changes(&self) -> u64 {
        self.state().changes
    }
    /// Every change so far, also those after a freeze.
    pub fn log(&self) -> Vec<LoggedOp> {
        self.state().log.clone()
    }
    /// What is stored.
    pub fn contents(&self) -> Vec<u8> {
        self.inner.contents()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn judge(&self, op: LoggedOp) -> Result<Verdict> {
        let mut state = self.state();
        let number = state.changes;
        state.changes += 1;
        state.log.push(op);
        if state.frozen {
            return Ok(Verdict::Pretend);
        }
        let refuse =
            |kind| Err(Error::io(format!("planned fault at change {number}"), std::io::Error::from(kind)).at("faulty"));
        match state.fault {
            Some((at, Fault::FailOnce(kind))) if at == number => refuse(kind),
            Some((at, Fault::FailForever(kind))) if at <= number => refuse(kind),
            Some((at, Fault::Freeze)) if at <= number => {
                state.frozen = true;
                Ok(Verdict::Pretend)
            }
            Some((at, Fault::Tear)) if at <= number => {
                state.frozen = true;
                Ok(Verdict::Half)
            }
            _ => Ok(Verdict::Do),
        }
    }

    fn zero(&self, offset: u64, len: u64) -> Result<()> {
        match self.judge(LoggedOp::Zero { offset, len })? {
            Verdict::Do => self.inner.write_zeroes(offset, len, false),
            Verdict::Pretend | Verdict::Half => Ok(()),
        }
    }
}

impl Storage for FaultyStorage {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn len(&self) -> Result<u64> {
        self.inner.len()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.inner.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        match self.judge(LoggedOp::Write {
            offset,
            data: buf.to_vec(),
        })? {
            Verdict::Do => self.inner.write_at(offset, buf),
            Verdict::Pretend => Ok(()),
            Verdict::Half => self.inner.write_at(offset, &buf[..buf.len() / 2 / 512 * 512]),
        }
    }
    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> Result<()> {
        self.zero(offset, len)
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let end = self.len()?;
        if offset >= end {
            Ok(())
        } else {
            self.zero(offset, len.min(end - offset))
        }
    }
    fn set_len(&self, len: u64) -> Result<()> {
        match self.judge(LoggedOp::SetLen(len))? {
            Verdict::Do => self.inner.set_len(len),
            Verdict::Pretend | Verdict::Half => Ok(()),
        }
    }
    fn flush(&self) -> Result<()> {
        self.judge(LoggedOp::Flush).map(|_| ())
    }
    fn extent(&self, offset: u64, len: u64) -> Result<StorageExtent> {
        self.inner.extent(offset, len)
    }
    fn allocated(&self) -> Result<u64> {
        self.inner.allocated()
    }
    fn allocate(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }
    fn is_read_only(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freeze_keeps_what_came_before_and_nothing_after() {
        let storage = FaultyStorage::new(vec![0; 4]);
        storage.plan(1, Fault::Freeze);
        storage.write_at(0, &[1]).unwrap();
        storage.write_at(1, &[2]).unwrap();
        storage.flush().unwrap();
        assert_eq!(storage.contents(), [1, 0, 0, 0]);
        assert_eq!(storage.changes(), 3);
    }

    #[test]
    fn the_log_replays_to_the_contents() {
        let storage = FaultyStorage::new(Vec::new());
        storage.write_at(2, &[1, 2]).unwrap();
        storage.write_zeroes(3, 4, true).unwrap();
        storage.set_len(5).unwrap();
        let mut bytes = Vec::new();
        storage.log().iter().for_each(|op| op.replay(&mut bytes));
        assert_eq!(bytes, storage.contents());
    }

    #[test]
    fn a_tear_stores_whole_sectors_of_the_first_half() {
        let storage = FaultyStorage::new(vec![0; 2048]);
        storage.plan(0, Fault::Tear);
        storage.write_at(0, &[1; 2048]).unwrap();
        assert_eq!(storage.contents()[..1024], [1; 1024]);
        assert_eq!(storage.contents()[1024..], [0; 1024]);
    }
}
