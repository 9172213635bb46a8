//! Guest data: reading, writing, zeroes, discard, filling a new image.

use super::map::Space;
use super::open::ParallelsImage;
use crate::formats::common::{check_range, lock, read_below};
use crate::image::{Below, Extent, ExtentKind, HostPlace, Placement};
use crate::{Error, Result};

/// Clusters that one allocating write handles at once, at most.
const BATCH: u64 = 256;
/// Bytes of zeroes or copies in memory at once.
const CHUNK: u64 = 1 << 20;

impl ParallelsImage {
    /// The place at an offset and how many bytes from there on continue it, at most `len`.
    pub(super) fn place_run(&self, offset: u64, len: u64) -> Result<(Option<u64>, u64)> {
        let cluster = self.cluster();
        let inside = offset % cluster;
        let (place, count) = self.run(offset / cluster, (inside + len).div_ceil(cluster).max(1))?;
        let bytes = count.saturating_mul(cluster).saturating_sub(inside).min(len);
        Ok((place.map(|at| at + inside), bytes))
    }

    pub(super) fn extent_at(&self, offset: u64, len: u64) -> Result<Extent> {
        check_range(offset, len, self.size())?;
        let (place, len) = self.place_run(offset, len)?;
        let kind = match place {
            None => ExtentKind::Unallocated,
            Some(at) => ExtentKind::Data {
                at: Some(HostPlace { file: 0, offset: at }),
                direct: true,
            },
        };
        Ok(Extent { len, kind })
    }

    pub(super) fn read_range(&self, mut offset: u64, mut buf: &mut [u8]) -> Result<()> {
        check_range(offset, buf.len() as u64, self.size())?;
        while !buf.is_empty() {
            let (place, bytes) = self.place_run(offset, buf.len() as u64)?;
            let (head, rest) = buf.split_at_mut(usize::try_from(bytes).unwrap_or(usize::MAX).min(buf.len()));
            match place {
                None => head.fill(0),
                Some(at) => self.file.read_at(at, head)?,
            }
            offset += bytes;
            buf = rest;
        }
        Ok(())
    }

    pub(super) fn write_range(&self, mut offset: u64, mut buf: &[u8], below: &dyn Below) -> Result<()> {
        check_range(offset, buf.len() as u64, self.size())?;
        self.before_change()?;
        while !buf.is_empty() {
            let (place, bytes) = self.place_run(offset, buf.len() as u64)?;
            let done = match place {
                Some(at) => {
                    let head = buf.get(..usize::try_from(bytes).unwrap_or(0)).unwrap_or_default();
                    self.file.write_at(at, head)?;
                    bytes
                }
                None => self.write_new(offset, buf, below)?,
            };
            offset += done;
            buf = buf
                .get(usize::try_from(done).unwrap_or(usize::MAX)..)
                .unwrap_or_default();
        }
        Ok(())
    }

    /// Gives clusters a place, fills them whole, and only then lets the BAT name them. Returns the bytes taken from `buf`.
    fn write_new(&self, offset: u64, buf: &[u8], below: &dyn Below) -> Result<u64> {
        let cluster = self.cluster();
        let mut space = lock(&self.space);
        let (place, bytes) = self.place_run(offset, (buf.len() as u64).min(BATCH * cluster))?;
        if place.is_some() {
            return Ok(0); // Another write was faster: look again.
        }
        let inside = offset % cluster;
        let before = space.end;
        let (at, count) = self.take(&mut space, (inside + bytes).div_ceil(cluster))?;
        let bytes = bytes.min(count * cluster - inside);
        let data = buf.get(..usize::try_from(bytes).unwrap_or(0)).unwrap_or_default();
        if let Err(e) = self.store_new(at, offset, data, below) {
            self.give_back(&mut space, before, at);
            return Err(e);
        }
        self.assign(offset / cluster, count, at);
        Ok(bytes)
    }

    /// What was taken and is not named by the BAT can be taken again.
    fn give_back(&self, space: &mut Space, before: u64, at: u64) {
        if at < before {
            space.free.push(at);
        } else {
            space.end = before;
            self.set_end(before);
        }
    }

    /// Writes data and what surrounds it in its clusters.
    fn store_new(&self, at: u64, offset: u64, data: &[u8], below: &dyn Below) -> Result<()> {
        let cluster = self.cluster();
        let (inside, end) = (offset % cluster, offset + data.len() as u64);
        self.copy_below(at, offset - inside, inside, below)?;
        self.file.write_at(at + inside, data)?;
        let rest = end.next_multiple_of(cluster) - end;
        self.copy_below(at + inside + data.len() as u64, end, rest, below)
    }

    /// Fills part of a new cluster with what the guest sees there now.
    fn copy_below(&self, mut at: u64, mut guest: u64, mut len: u64, below: &dyn Below) -> Result<()> {
        let size = self.size();
        while len > 0 {
            let n = len.min(CHUNK);
            let visible = size.saturating_sub(guest).min(n);
            if visible == 0 || below.is_zero(guest, visible)? {
                self.file.write_zeroes(at, n, true)?;
            } else {
                let mut buf = vec![0; usize::try_from(n).unwrap_or(0)];
                read_below(below, guest, &mut buf, size)?;
                self.file.write_at(at, &buf)?;
            }
            at += n;
            guest += n;
            len -= n;
        }
        Ok(())
    }

    pub(super) fn zero_range(&self, mut offset: u64, mut len: u64, unmap: bool, below: &dyn Below) -> Result<()> {
        check_range(offset, len, self.size())?;
        self.before_change()?;
        while len > 0 {
            let (place, bytes) = self.place_run(offset, len)?;
            let done = match place {
                None if below.is_zero(offset, bytes)? => bytes,
                None => {
                    let n = bytes.min(CHUNK);
                    self.write_range(offset, &vec![0; usize::try_from(n).unwrap_or(0)], below)?;
                    n
                }
                Some(at) => self.zero_stored(offset, bytes, at, unmap, below)?,
            };
            offset += done;
            len -= done;
        }
        Ok(())
    }

    /// Whole clusters are forgotten where that shows zeroes; parts of clusters are zeroed in place.
    fn zero_stored(&self, offset: u64, bytes: u64, at: u64, unmap: bool, below: &dyn Below) -> Result<u64> {
        let cluster = self.cluster();
        let whole = if offset + bytes == self.size() {
            bytes
        } else {
            (offset + bytes) / cluster * cluster - offset.min((offset + bytes) / cluster * cluster)
        };
        if unmap && offset.is_multiple_of(cluster) && whole > 0 && below.is_zero(offset, whole)? {
            self.forget(&mut lock(&self.space), offset / cluster, whole.div_ceil(cluster))?;
            return Ok(whole);
        }
        let n = match offset % cluster {
            0 => bytes,
            inside => bytes.min(cluster - inside),
        };
        self.file.write_zeroes(at, n, unmap)?;
        Ok(n)
    }

    /// Forgets whole clusters, as QEMU does.
    pub(super) fn discard_range(&self, offset: u64, len: u64) -> Result<()> {
        check_range(offset, len, self.size())?;
        let cluster = self.cluster();
        let first = offset.div_ceil(cluster);
        let end = match offset + len {
            end if end == self.size() => end.div_ceil(cluster),
            end => end / cluster,
        };
        if end > first {
            self.before_change()?;
            self.forget(&mut lock(&self.space), first, end - first)?;
        }
        Ok(())
    }

    /// Gives a run of new clusters its place.
    pub(super) fn place_new(&self, offset: u64, len: u64) -> Result<Placement> {
        check_range(offset, len, self.size())?;
        let cluster = self.cluster();
        if !offset.is_multiple_of(cluster) {
            return Err(Error::invalid(format!("{offset:#x} is not the start of a cluster")));
        }
        self.before_change()?;
        let mut space = lock(&self.space);
        let free = std::mem::take(&mut space.free);
        let taken = self.take(&mut space, len.div_ceil(cluster));
        space.free = free;
        let (at, count) = taken?;
        self.assign(offset / cluster, count, at);
        Ok(Placement {
            guest: offset,
            at: HostPlace { file: 0, offset: at },
            len,
            encoded: false,
        })
    }

    /// Writes a placement or a part of one. What is never stored reads as zeroes: it was taken past the end of the file, and the
    /// flush makes the file long enough.
    pub(super) fn store_placed(&self, placement: &Placement, bytes: &[u8]) -> Result<()> {
        self.file.write_at(placement.at.offset, bytes)
    }
}
