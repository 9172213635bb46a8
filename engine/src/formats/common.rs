//! What several drivers need and no one format owns: range checks, cutting requests into units, bounded table reads, lock guards.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::formats::{Bound, Capabilities};
use crate::image::Below;
use crate::{Error, Limits, Result, Storage, StorageRef};

/// A driver that can do nothing but read: the base of the capability tables.
pub(super) const READ_ONLY: Capabilities = Capabilities {
    create: false,
    write: false,
    backing: false,
    change_backing: false,
    make_empty: false,
    zero: false,
    discard: false,
    compress: false,
    grow: false,
    shrink: false,
    check: false,
    repair: false,
    snapshots: false,
    bitmaps: false,
    amend: false,
    encryption: false,
    several_files: false,
    measure: false,
    size_multiple: 512,
};

/// Units of bulk writes are not larger than this; images with larger clusters are filled by plain writes.
pub(super) const MAX_UNIT: u64 = 2 << 20;

/// What file systems give space in, and the copy looks for zeroes in.
pub(super) const BLOCK: u64 = 4096;

/// Whether `len` bytes from `offset` lie inside a disk of `size` bytes.
///
/// # Errors
/// `InvalidArgument` when they do not.
pub(super) fn check_range(offset: u64, len: u64, size: u64) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(Error::invalid(format!(
            "{len} bytes at {offset:#x} end past the virtual size {size}"
        ))),
    }
}

/// The part of a request that lies in one unit (cluster, block, grain).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// Number of the unit.
    pub index: u64,
    /// First byte inside the unit.
    pub start: u64,
    /// The bytes of the request's buffer.
    pub range: Range<usize>,
}

/// Cuts `len` bytes from `offset` at the borders of units of `unit` bytes.
pub(super) fn pieces(offset: u64, len: usize, unit: u64) -> impl Iterator<Item = Piece> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done >= len || unit == 0 {
            return None;
        }
        let at = offset + done as u64;
        let (index, start) = (at / unit, at % unit);
        let n = usize::try_from(unit - start).unwrap_or(usize::MAX).min(len - done);
        let range = done..done + n;
        done += n;
        Some(Piece { index, start, range })
    })
}

/// Reads a metadata table whole, after its size was compared with the limit and with the file.
///
/// # Errors
/// `LimitExceeded`, or `Corrupt` when the file ends before the table does.
pub(super) fn read_table(file: &dyn Storage, what: &str, at: u64, bytes: u64, limits: &Limits) -> Result<Vec<u8>> {
    let end = file.len()?;
    if at.checked_add(bytes).is_none_or(|e| e > end) {
        return Err(Error::corrupt(format!(
            "{what} of {bytes} bytes at {at:#x} does not fit in the file of {end} bytes"
        )));
    }
    check_table(what, bytes, limits)?;
    let len = usize::try_from(bytes).map_err(|_| Error::limit(format!("{what} of {bytes} bytes is too large")))?;
    let mut table = vec![0; len];
    file.read_at(at, &mut table)?;
    Ok(table)
}

/// Whether a table of this size may be held in memory.
pub(super) fn check_table(what: &str, bytes: u64, limits: &Limits) -> Result<()> {
    if bytes > limits.table_bytes {
        let limit = limits.table_bytes;
        return Err(Error::limit(format!(
            "{what} of {bytes} bytes exceeds the limit of {limit} bytes"
        )));
    }
    Ok(())
}

/// Reads from the layer below for copy on write: nothing past `size`, the virtual size of the layer that copies, is taken over.
pub(super) fn read_below(below: &dyn Below, offset: u64, buf: &mut [u8], size: u64) -> Result<()> {
    let inside = usize::try_from(size.saturating_sub(offset))
        .unwrap_or(usize::MAX)
        .min(buf.len());
    let (head, tail) = buf.split_at_mut(inside);
    tail.fill(0);
    if head.is_empty() {
        Ok(())
    } else {
        below.read(offset, head)
    }
}

/// How many units of `unit` bytes sorted ranges touch.
pub(super) fn units_touched(ranges: &[(u64, u64)], unit: u64) -> u64 {
    let mut next = 0;
    let mut count = 0;
    for (offset, len) in ranges.iter().filter(|(_, len)| *len > 0) {
        let first = (offset / unit).max(next);
        let end = offset.saturating_add(*len).div_ceil(unit);
        count += end.saturating_sub(first);
        next = next.max(end);
    }
    count
}

/// The bound of a file as long as its disk, in which what nothing is written to stays a hole: `overhead` bytes of it are not the guest's,
/// whose first byte is at `start`.
pub(super) fn with_holes(len: u64, overhead: u64, start: u64, data: &[(u64, u64)]) -> Bound {
    let blocks = units_touched(data, BLOCK);
    // Where the guest's blocks lie across those of the file system, a run of them reaches into one more.
    let across = if start.is_multiple_of(BLOCK) {
        0
    } else {
        data.len() as u64
    };
    Bound {
        len,
        fixed: true,
        stored: overhead
            .saturating_add((blocks + across).saturating_mul(BLOCK))
            .min(len),
    }
}

/// Empties the file of a new image of a format that needs one that grows; `what` names the format with its article.
pub(super) fn empty_file(storage: &StorageRef, what: &str) -> Result<()> {
    match storage.can_resize() {
        true => storage.set_len(0),
        false => Err(Error::unsupported(format!("{what} is made in a file, which grows"))),
    }
}

/// A text field from a file: bytes up to the first NUL, as UTF-8.
pub(super) fn text(bytes: &[u8], what: &str) -> Result<String> {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    let name = bytes.get(..end).unwrap_or_default();
    String::from_utf8(name.to_vec())
        .map_err(|_| Error::unsupported(format!("{what} \"{}\" is not UTF-8", name.escape_ascii())))
}

/// A big-endian number of 8 bytes from checked bytes.
pub(super) fn be64(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).fold(0, |n, b| n << 8 | u64::from(*b))
}

/// Locks, whatever a panicking thread left behind: guarded state is changed in steps that are each consistent.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
/// The same for shared use.
pub(super) fn shared<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}
/// The same for exclusive use.
pub(super) fn exclusive<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryStorage;

    #[test]
    fn pieces_end_at_unit_borders() {
        let cut: Vec<_> = pieces(700, 900, 512).map(|p| (p.index, p.start, p.range)).collect();
        assert_eq!(cut, [(1, 188, 0..324), (2, 0, 324..836), (3, 0, 836..900)]);
    }

    #[test]
    fn a_table_larger_than_file_or_limit_is_refused() {
        let file = MemoryStorage::new("m", vec![0; 100]);
        let limits = Limits {
            table_bytes: 50,
            ..Limits::default()
        };
        let kind = |at, bytes| read_table(&file, "table", at, bytes, &limits).unwrap_err().kind();
        assert_eq!(kind(60, 41), crate::ErrorKind::Corrupt);
        assert_eq!(kind(u64::MAX, 2), crate::ErrorKind::Corrupt);
        assert_eq!(kind(0, 51), crate::ErrorKind::LimitExceeded);
    }
}
