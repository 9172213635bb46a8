//! A file in memory that stores only what was written: as long as a real one may be, and with its holes.

use std::collections::BTreeMap;
use std::io::Error as IoError;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vdisk_engine::storage::StorageExtent;
use vdisk_engine::{Error, Result, Storage};

const PAGE: u64 = 4096;
/// What may be stored; then the disk is full.
const ROOM: usize = (16 << 20) / PAGE as usize;
const ENOSPC: i32 = 28;
const EFBIG: i32 = 27;

type Page = Box<[u8; PAGE as usize]>;

#[derive(Debug, Default, Clone)]
struct Content {
    len: u64,
    pages: BTreeMap<u64, Page>,
}

/// The storage.
#[derive(Debug, Default)]
pub struct SparseStorage(Mutex<Content>);

impl Clone for SparseStorage {
    fn clone(&self) -> Self {
        Self(Mutex::new(self.lock().clone()))
    }
}

impl SparseStorage {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let this = Self::default();
        let _ = this.write_at(0, bytes);
        this
    }
    fn lock(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The parts of a range page by page: page, first byte in it, bytes of the range.
fn parts(offset: u64, len: u64) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = (offset + done) % PAGE;
        let n = (PAGE - at).min(len - done);
        let part = (n > 0).then(|| ((offset + done) / PAGE, at as usize, done as usize..(done + n) as usize));
        done += n;
        part
    })
}

fn full(errno: i32) -> Error {
    Error::io("cannot write", IoError::from_raw_os_error(errno)).at("sparse")
}

impl Content {
    fn grow(&mut self, offset: u64, len: u64) -> Result<()> {
        let end = offset.checked_add(len).filter(|end| *end <= i64::MAX as u64);
        self.len = self.len.max(end.ok_or_else(|| full(EFBIG))?);
        Ok(())
    }
    fn clear(&mut self, offset: u64, len: u64) {
        let end = offset + len;
        let (first, last) = (offset.div_ceil(PAGE), end / PAGE);
        if first < last {
            let gone: Vec<_> = self.pages.range(first..last).map(|(n, _)| *n).collect();
            gone.iter().for_each(|n| drop(self.pages.remove(n)));
        }
        let edges = [(offset, end.min(first * PAGE)), (offset.max(last * PAGE), end)];
        for (from, to) in edges.into_iter().filter(|(from, to)| from < to) {
            for (n, at, range) in parts(from, to - from) {
                if let Some(page) = self.pages.get_mut(&n) {
                    page[at..at + range.len()].fill(0);
                }
            }
        }
    }
}

impl Storage for SparseStorage {
    fn name(&self) -> &str {
        "sparse"
    }
    fn len(&self) -> Result<u64> {
        Ok(self.lock().len)
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let content = self.lock();
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > content.len) {
            let (len, end) = (buf.len(), content.len);
            return Err(Error::corrupt(format!(
                "cannot read {len} bytes at {offset:#x}: the file ends at {end:#x}"
            )));
        }
        for (n, at, range) in parts(offset, buf.len() as u64) {
            let to = &mut buf[range];
            match content.pages.get(&n) {
                Some(page) => to.copy_from_slice(&page[at..at + to.len()]),
                None => to.fill(0),
            }
        }
        Ok(())
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let mut content = self.lock();
        content.grow(offset, buf.len() as u64)?;
        for (n, at, range) in parts(offset, buf.len() as u64) {
            if content.pages.len() >= ROOM && !content.pages.contains_key(&n) {
                return Err(full(ENOSPC));
            }
            let page = content.pages.entry(n).or_insert_with(|| Box::new([0; PAGE as usize]));
            page[at..at + range.len()].copy_from_slice(&buf[range]);
        }
        Ok(())
    }
    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> Result<()> {
        let mut content = self.lock();
        content.grow(offset, len)?;
        content.clear(offset, len);
        Ok(())
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        let mut content = self.lock();
        let end = offset.saturating_add(len).min(content.len);
        if offset < end {
            content.clear(offset, end - offset);
        }
        Ok(())
    }
    fn set_len(&self, len: u64) -> Result<()> {
        let mut content = self.lock();
        let end = content.len;
        content.grow(len, 0)?;
        if len < end {
            content.clear(len, end - len);
        }
        content.len = len;
        Ok(())
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn extent(&self, offset: u64, len: u64) -> Result<StorageExtent> {
        let content = self.lock();
        if offset >= content.len || len == 0 {
            return Err(Error::corrupt(format!("no byte at {offset:#x}")));
        }
        let end = content.len.min(offset.saturating_add(len));
        let first = offset / PAGE;
        let data = content.pages.contains_key(&first);
        let mut next = first + 1;
        if data {
            while content.pages.contains_key(&next) {
                next += 1;
            }
        } else {
            next = content.pages.range(next..).next().map_or(u64::MAX / PAGE, |(n, _)| *n);
        }
        let len = end.min(next * PAGE) - offset;
        Ok(StorageExtent { len, data })
    }
    fn allocated(&self) -> Result<u64> {
        Ok(self.lock().pages.len() as u64 * PAGE)
    }
    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        self.lock().grow(offset, len)
    }
    fn is_read_only(&self) -> bool {
        false
    }
}
