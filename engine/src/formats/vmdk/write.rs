//! Writing. The order that keeps an image whole whatever happens:
//!
//! 0. once a session: a look through the tables for places that two things share;
//! 1. once a session, before anything else: a new CID in the descriptor, flushed, so that overlays of the old content notice;
//! 2. guest bytes, into grains that no table in the file mentions yet or into grains of the same guest range;
//! 3. flush of the file;
//! 4. changed grain tables, the redundant ones first; tables that are new get their directory entries after another flush;
//! 5. flush again.
//!
//! 3 to 5 happen in [`flush`](crate::Image::flush) or when many tables have changed. A crash before them loses only what was not
//! flushed and leaves space that nothing refers to; new grains go behind the end of the file, never over it.

use std::sync::atomic::Ordering;

use super::entry::Entry;
use super::image::{Body, VmdkImage};
use super::layout::SECTOR;
use super::sparse::{Packing, Run, SparseExtent};
use crate::image::Below;
use crate::{Error, Result};

/// The layer below, seen from a sparse extent that starts at a guest offset.
struct BelowPart<'a> {
    below: &'a dyn Below,
    start: u64,
}

impl VmdkImage {
    pub fn write_data(&self, offset: u64, mut buf: &[u8], below: &dyn Below) -> Result<()> {
        self.inside(offset, buf.len() as u64)?;
        if self.stream.is_some() || self.is_deflated() {
            return self.write_stream(offset, buf);
        }
        self.refuse_double_use(offset, buf.len() as u64)?;
        self.change_cid(offset, buf, true)?;
        for (part, at, len) in self.pieces(offset, buf.len() as u64) {
            let (head, rest) = buf.split_at(usize::try_from(len).unwrap_or(usize::MAX).min(buf.len()));
            match &part.body {
                Body::Zero => return Err(cannot_write("it lies in an extent of type ZERO")),
                Body::Flat { writable: false, .. } => return Err(cannot_write("the descriptor says RDONLY")),
                Body::Flat { storage, offset, .. } => storage.write_at(offset.saturating_add(at), head)?,
                Body::Sparse { extent, .. } => {
                    extent.write(
                        at,
                        head,
                        &BelowPart {
                            below,
                            start: part.start,
                        },
                    )?;
                    self.limit_dirty(extent)?;
                }
            }
            buf = rest;
        }
        Ok(())
    }

    pub fn zero(&self, offset: u64, len: u64, unmap: bool, below: &dyn Below) -> Result<()> {
        self.inside(offset, len)?;
        if self.is_deflated() {
            return self.zero_stream(offset, len, below);
        }
        self.refuse_double_use(offset, len)?;
        self.change_cid(offset, &len.to_le_bytes(), true)?;
        for (part, at, len) in self.pieces(offset, len) {
            match &part.body {
                Body::Zero => {}
                Body::Flat { writable: false, .. } => return Err(cannot_write("the descriptor says RDONLY")),
                Body::Flat { storage, offset, .. } => storage.write_zeroes(offset.saturating_add(at), len, unmap)?,
                Body::Sparse { extent, .. } => {
                    extent.zero(
                        at,
                        len,
                        unmap,
                        &BelowPart {
                            below,
                            start: part.start,
                        },
                    )?;
                    self.limit_dirty(extent)?;
                }
            }
        }
        Ok(())
    }

    pub fn discard_data(&self, offset: u64, len: u64) -> Result<()> {
        self.inside(offset, len)?;
        if self.is_deflated() {
            return Ok(());
        }
        self.refuse_double_use(offset, len)?;
        self.change_cid(offset, &len.to_le_bytes(), true)?;
        for (part, at, len) in self.pieces(offset, len) {
            match &part.body {
                Body::Flat {
                    storage,
                    offset,
                    writable: true,
                    ..
                } => storage.discard(offset.saturating_add(at), len)?,
                Body::Sparse { extent, .. } if extent.read_only.is_none() => extent.discard(at, len)?,
                Body::Flat { .. } | Body::Sparse { .. } | Body::Zero => {}
            }
        }
        Ok(())
    }

    pub fn is_deflated(&self) -> bool {
        self.sparse_extents().any(|e| e.packing != Packing::Plain)
    }
    fn limit_dirty(&self, extent: &SparseExtent) -> Result<()> {
        if extent.tables().dirty_bytes() > self.dirty_limit {
            extent.flush(true)
        } else {
            Ok(())
        }
    }

    pub fn flush_all(&self) -> Result<()> {
        if let Some(stream) = &self.stream {
            let (_, extent) = self.stream_extent()?;
            extent.refuse_broken()?;
            return extent.broken_by(self.finish_stream(stream));
        }
        for part in &self.parts {
            match &part.body {
                Body::Zero => {}
                Body::Flat { storage, .. } => storage.flush()?,
                Body::Sparse { extent, .. } => extent.flush(true)?,
            }
        }
        self.main()?.flush()
    }
}

fn cannot_write(why: &str) -> Error {
    Error::unsupported(format!("cannot write here: {why}"))
}

impl SparseExtent {
    pub fn refuse_read_only(&self) -> Result<()> {
        self.read_only
            .map_or(Ok(()), |why| Err(cannot_write(why).at(self.file.name())))
    }

    fn write(&self, mut at: u64, mut buf: &[u8], below: &BelowPart<'_>) -> Result<()> {
        self.refuse_read_only()?;
        while !buf.is_empty() {
            let (run, len) = self.run(at, buf.len() as u64)?;
            let (head, rest) = buf.split_at(usize::try_from(len).unwrap_or(usize::MAX).min(buf.len()));
            match run {
                Run::Data(place) => self.overwrite(place, head)?,
                Run::Unallocated | Run::Zero => {
                    let done = self.write_new(at, head.len() as u64, Some(head), below)?;
                    at += done as u64;
                    buf = buf.get(done..).unwrap_or_default();
                    continue; // Fewer than the run when another thread was there first.
                }
                Run::Deflated(_) => return Err(cannot_write("the grain is compressed")),
            }
            at += len;
            buf = rest;
        }
        Ok(())
    }

    fn zero(&self, mut at: u64, mut left: u64, unmap: bool, below: &BelowPart<'_>) -> Result<()> {
        self.refuse_read_only()?;
        while left > 0 {
            let (run, mut len) = self.run(at, left)?;
            match run {
                Run::Data(place) => self.zero_place(place, len, unmap)?,
                Run::Zero => {}
                Run::Unallocated if below.below.is_zero(below.start + at, len)? => {}
                Run::Unallocated => len = self.zero_new(at, len, below)?,
                Run::Deflated(_) => return Err(cannot_write("the grain is compressed")),
            }
            at += len;
            left -= len;
        }
        Ok(())
    }

    /// Writes to a grain that the tables of the file name.
    fn overwrite(&self, place: u64, bytes: &[u8]) -> Result<()> {
        self.refuse_metadata(place, bytes.len() as u64)?;
        self.file.write_at(place, bytes)
    }
    pub fn zero_place(&self, place: u64, len: u64, unmap: bool) -> Result<()> {
        self.refuse_metadata(place, len)?;
        self.file.write_zeroes(place, len, unmap)
    }
    /// Refuses what is taken for guest data and is metadata or not in the file at all.
    pub fn refuse_metadata(&self, place: u64, len: u64) -> Result<()> {
        let end = self.end.load(Ordering::Acquire);
        if place >= end {
            let what = format!("guest data at {place:#x} would lie past the end of the file at {end:#x}");
            return Err(Error::corrupt(what).at(self.file.name()));
        }
        self.reserved.refuse(place, len).map_err(|e| e.at(self.file.name()))
    }

    /// Hides what is below: by zero entries for whole grains where the extent has them, else by grains of zeroes.
    fn zero_new(&self, at: u64, len: u64, below: &BelowPart<'_>) -> Result<u64> {
        let (first, end) = (at.next_multiple_of(self.grain), at + len);
        let whole_end = if end == self.capacity() {
            end
        } else {
            end / self.grain * self.grain
        };
        if !self.zero_grains {
            return Ok(self.write_new(at, len, None, below)? as u64);
        }
        if at < first {
            let len = (first - at).min(len);
            return Ok(self.write_new(at, len, None, below)? as u64);
        }
        if whole_end <= at {
            return Ok(self.write_new(at, len, None, below)? as u64);
        }
        let _growth = self.growth();
        self.set_run(at / self.grain, (whole_end - at).div_ceil(self.grain), |_| Entry::ZERO)?;
        Ok(whole_end - at)
    }

    fn discard(&self, mut at: u64, mut left: u64) -> Result<()> {
        while left > 0 {
            let (run, len) = self.run(at, left)?;
            if let Run::Data(place) = run {
                self.refuse_metadata(place, len)?;
                self.file.discard(place, len)?;
            }
            at += len;
            left -= len;
        }
        Ok(())
    }

    /// Gives places to the grains of a range that has none and fills them; says how many bytes of the range it did, which is
    /// fewer when another thread was there first.
    fn write_new(&self, at: u64, len: u64, data: Option<&[u8]>, below: &BelowPart<'_>) -> Result<usize> {
        let _growth = self.growth();
        let (run, len) = self.run(at, len)?;
        let part = usize::try_from(len).map_err(|_| Error::limit("a range past the address space"))?;
        let data = data.and_then(|d| d.get(..part));
        if let Run::Data(place) = run {
            match data {
                Some(data) => self.overwrite(place, data)?,
                None => self.zero_place(place, len, false)?,
            }
            return Ok(part);
        }
        let (first, within) = (at / self.grain, at % self.grain);
        let count = (within + len).div_ceil(self.grain);
        let place = self.new_place(count)?;
        self.file.set_len(place + count * self.grain)?;
        if run == Run::Unallocated {
            let end = (first + count).saturating_mul(self.grain).min(self.capacity());
            self.copy_up(below, first * self.grain, at, place)?;
            self.copy_up(below, at + len, end, place + within + len)?;
        }
        if let Some(data) = data {
            self.file.write_at(place + within, data)?;
        }
        self.end.store(place + count * self.grain, Ordering::Release);
        self.set_run(first, count, |n| Entry::at(place + n * self.grain))?;
        Ok(part)
    }

    /// A place for `count` grains behind everything, with `growth` held. Nothing is reserved until `end` is moved.
    pub fn new_place(&self, count: u64) -> Result<u64> {
        let len = self
            .file
            .len()?
            .checked_next_multiple_of(self.grain)
            .unwrap_or(u64::MAX);
        let place = self.end.load(Ordering::Acquire).max(len);
        let last = place.checked_add(count.saturating_mul(self.grain)).map(|e| e / SECTOR);
        if last.is_none_or(|s| u32::try_from(s).is_err()) {
            return Err(
                Error::limit("a sparse extent cannot grow past 2 TiB; use a flat or a split subformat")
                    .at(self.file.name()),
            );
        }
        Ok(place)
    }

    /// Copies guest bytes `from..to` of the layer below to `place`.
    fn copy_up(&self, below: &BelowPart<'_>, from: u64, to: u64, place: u64) -> Result<()> {
        let len = to.saturating_sub(from);
        if len == 0 || below.below.is_zero(below.start + from, len)? {
            return Ok(());
        }
        let mut buf = vec![0; usize::try_from(len).map_err(|_| Error::limit("a grain past the address space"))?];
        below.below.read(below.start + from, &mut buf)?;
        self.file.write_at(place, &buf)
    }

    /// Changes the entries of `count` grains in memory, with `growth` held.
    pub fn set_run(&self, first: u64, count: u64, entry: impl Fn(u64) -> Entry) -> Result<()> {
        let mut done = 0;
        while done < count {
            let (index, slot) = self.slot(first + done);
            let mut tables = self.tables_mut();
            if matches!(tables.known(index), Ok(None)) {
                tables.load(index, self.file.as_ref())?; // Under the lock: it must not be evicted before it is changed.
            }
            let here = (tables.geometry.entries - slot).min(count - done);
            for n in 0..here {
                tables.set(index, slot + n, entry(done + n));
            }
            done += here;
        }
        Ok(())
    }
}
