//! Writing streamOptimized images as a true stream: grains in rising order, each table behind its grains, then the directory, the footer
//! and the end-of-stream marker. The header never changes, so that a reader can follow while the file is made.

use std::sync::{Mutex, MutexGuard, PoisonError};

use libdeflater::{CompressionLvl, Compressor};
use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

use super::entry::Entry;
use super::image::{Body, VmdkImage};
use super::layout::{GD_AT_END, GRAIN_MARKER, SECTOR, marker, metadata_marker};
use super::sparse::{Packing, Run, SparseExtent};
use crate::deflate::{self, Encoder};
use crate::image::{Below, BulkWrite, ExtentKind, HostPlace, Image, Placement, Scratch};
use crate::{Error, OpenEnv, Result};

/// libdeflate's level for grains that are too large for [`deflate::Encoder`]: see docs/formats/vmdk.md for sizes and speeds against zlib's
/// level 6, which qemu-img uses.
const LEVEL: i32 = 4;

/// Larger grains are not written: the pipeline hands out units up to this.
const MAX_GRAIN: u64 = 2 << 20;

const ONCE: &str = "cannot write here: streamOptimized images are written once, from beginning to end";

/// The writer's state.
#[derive(Debug)]
pub(super) struct Stream {
    /// Where the next piece goes.
    next: u64,
    /// The table whose grains are being written.
    current: Option<u64>,
    /// The last grain that was placed.
    last: Option<u64>,
    /// First sector of each table.
    directory: Vec<u32>,
    /// Whether the end must be written (again).
    dirty: bool,
}

impl Stream {
    /// The writer for a compressed extent that holds no grain yet; `None` for all others, which cannot be written.
    pub fn for_fresh(extent: &SparseExtent, env: &OpenEnv<'_>) -> Option<Self> {
        let header = *extent.header.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        if !env.writable || extent.grain > MAX_GRAIN || extent.packing != (Packing::Deflated { markers: true }) {
            return None;
        }
        let capacity = extent.capacity();
        let next = header
            .overhead
            .max(header.descriptor.map_or(SECTOR, |(o, l)| o.saturating_add(l)));
        // Tables alone do not tell: where the file has more than an end behind its header, an empty directory is damage.
        let fresh = extent.file.len().ok()? <= next.saturating_add(tail_len(header.tables()))
            && (capacity == 0 || extent.run(0, capacity).ok()? == (Run::Unallocated, capacity));
        let tables = usize::try_from(header.tables()).ok()?;
        fresh.then(|| Self {
            next,
            current: None,
            last: None,
            directory: vec![0; tables],
            dirty: false,
        })
    }
}

fn locked(stream: &Mutex<Stream>) -> MutexGuard<'_, Stream> {
    stream.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VmdkImage {
    pub fn stream_extent(&self) -> Result<(&Mutex<Stream>, &SparseExtent)> {
        let extent = self.parts.first().and_then(|p| match &p.body {
            Body::Sparse { extent, .. } => Some(extent.as_ref()),
            Body::Flat { .. } | Body::Zero => None,
        });
        self.stream.as_ref().zip(extent).ok_or_else(|| Error::unsupported(ONCE))
    }

    /// The bytes of a grain, for a range of whole ones.
    fn whole_grains(&self, offset: u64, len: u64) -> Result<usize> {
        let (_, extent) = self.stream_extent()?;
        let ends = offset + len == extent.capacity();
        if !offset.is_multiple_of(extent.grain) || !len.is_multiple_of(extent.grain) && !ends {
            return Err(Error::unsupported(format!(
                "streamOptimized images take whole grains of {} bytes only",
                extent.grain
            )));
        }
        usize::try_from(extent.grain).map_err(|_| Error::limit("a grain past the address space"))
    }

    /// Writes whole grains one after the other.
    pub fn write_stream(&self, offset: u64, buf: &[u8]) -> Result<()> {
        let grain = self.whole_grains(offset, buf.len() as u64)?;
        let mut scratch = Scratch::default();
        for (at, data) in (offset..).step_by(grain).zip(buf.chunks(grain)) {
            let bytes = self
                .encode(data, &mut scratch)?
                .ok_or_else(|| Error::invalid("nothing to store"))?;
            let placement = self.place(at, data.len() as u64, Some(bytes.len() as u64))?;
            self.store(&placement, &bytes)?;
        }
        Ok(())
    }
    /// Zeroes, which need no grain where nothing below would show through; elsewhere they are grains like others.
    pub fn zero_stream(&self, offset: u64, len: u64, below: &dyn Below) -> Result<()> {
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let extent = self.extent(at, len - done)?;
            match extent.kind {
                ExtentKind::Zero { .. } => {}
                ExtentKind::Unallocated if below.is_zero(at, extent.len)? => {}
                ExtentKind::Unallocated => self.write_zero_grains(at, extent.len, below)?,
                ExtentKind::Data { .. } | ExtentKind::Compressed => return Err(Error::unsupported(ONCE)),
            }
            done += extent.len;
        }
        Ok(())
    }
    fn write_zero_grains(&self, offset: u64, len: u64, below: &dyn Below) -> Result<()> {
        let grain = self.whole_grains(offset, len)?;
        let zeroes = self.deflate(&[], &mut Scratch::default())?;
        for at in (offset..offset + len).step_by(grain) {
            let part = (offset + len - at).min(grain as u64);
            if !below.is_zero(at, part)? {
                let placement = self.place_grain(at, zeroes.len() as u64)?;
                self.store_grain(&placement, &zeroes)?;
            }
        }
        Ok(())
    }
    /// One grain, for `write_compressed`.
    pub fn write_grain(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.require_deflated()?;
        self.inside(offset, buf.len() as u64)?;
        self.write_stream(offset, buf)
    }

    /// The stored form of a grain but for its guest sector: marker, deflate stream, zeroes up to a whole sector.
    pub fn deflate(&self, data: &[u8], scratch: &mut Scratch) -> Result<Vec<u8>> {
        let (_, extent) = self.stream_extent()?;
        let grain = usize::try_from(extent.grain).map_err(|_| Error::limit("a grain past the address space"))?;
        let mut whole = Vec::new();
        let data = if data.len() < grain {
            whole.extend_from_slice(data);
            whole.resize(grain, 0);
            &whole
        } else {
            data
        };
        let mut bytes = vec![0; GRAIN_MARKER];
        compress(data, scratch, &mut bytes)?;
        let len = bytes.len() - GRAIN_MARKER;
        let size = u32::try_from(len).map_err(|_| Error::limit("a grain of 4 GiB"))?;
        if let Some(field) = bytes.get_mut(8..GRAIN_MARKER) {
            field.copy_from_slice(&size.to_le_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        Ok(bytes)
    }

    /// The next place in the stream for a grain whose stored form has `len` bytes.
    pub fn place_grain(&self, offset: u64, len: u64) -> Result<Placement> {
        let (stream, extent) = self.stream_extent()?;
        self.change_cid(0, &[], false)?;
        let mut stream = locked(stream);
        let number = offset / extent.grain;
        if stream.last.is_some_and(|last| number <= last) {
            return Err(Error::unsupported(
                "streamOptimized images are written in rising order, each grain once",
            ));
        }
        let (index, slot) = extent.slot(number);
        if stream.current.is_some_and(|c| c != index) {
            end_table(&mut stream, extent)?;
        }
        let at = stream.next;
        let next = at + len.next_multiple_of(SECTOR);
        if u32::try_from(next / SECTOR).is_err() {
            return Err(Error::limit("a sparse extent cannot grow past 2 TiB").at(extent.file.name()));
        }
        (stream.next, stream.current, stream.last, stream.dirty) = (next, Some(index), Some(number), true);
        extent.tables_mut().set(index, slot, Entry::at(at));
        Ok(Placement {
            guest: offset,
            at: HostPlace { file: 0, offset: at },
            len,
            encoded: true,
        })
    }

    /// Writes a grain's stored form with its guest sector filled in.
    pub fn store_grain(&self, placement: &Placement, bytes: &[u8]) -> Result<()> {
        let (_, extent) = self.stream_extent()?;
        let mut bytes = bytes.to_vec();
        if let Some(sector) = bytes.get_mut(..8) {
            sector.copy_from_slice(U64::new(placement.guest / SECTOR).as_bytes());
        }
        extent.file.write_at(placement.at.offset, &bytes)
    }

    /// Ends the stream: the open table, the directory, the footer. What comes later goes behind this end and gets an end of its own.
    pub fn finish_stream(&self, stream: &Mutex<Stream>) -> Result<()> {
        let (_, extent) = self.stream_extent()?;
        let mut stream = locked(stream);
        if !stream.dirty {
            return extent.file.flush();
        }
        end_table(&mut stream, extent)?;
        let Some(header) = &extent.header else {
            return Err(Error::invalid("a stream without a header"));
        };
        let mut header = header.lock().unwrap_or_else(PoisonError::into_inner);
        let mut head = header.raw;
        head.directory_offset = U64::new(GD_AT_END);
        let (tail, directory_at) = tail(&stream.directory, &head, stream.next);
        extent.file.write_at(stream.next, &tail)?;
        let end = stream.next + tail.len() as u64;
        extent.file.set_len(end)?;
        extent.file.flush()?;
        if header.raw != head {
            extent.file.write_at(0, head.as_bytes())?;
            extent.file.flush()?;
            header.raw = head;
        }
        extent.tables_mut().directory_at = directory_at;
        (stream.next, stream.dirty) = (end, false);
        Ok(())
    }
}

/// Appends a whole grain's zlib stream, which depends on the grain and on the level that the user chose, if any.
fn compress(data: &[u8], scratch: &mut Scratch, bytes: &mut Vec<u8>) -> Result<()> {
    let level = scratch.level();
    if level.is_none() && data.len() <= deflate::MAX_INPUT {
        let encoder = scratch.get(|| Ok(Encoder::default()))?;
        bytes.reserve_exact(data.len());
        return encoder.zlib(data, bytes);
    }
    let level = level.unwrap_or(LEVEL);
    let level = CompressionLvl::new(level).map_err(|_| Error::invalid(format!("compression level {level}")))?;
    let codec = scratch.get(|| Ok(Compressor::new(level)))?;
    let start = bytes.len();
    bytes.resize(start + codec.zlib_compress_bound(data.len()), 0);
    let len = codec
        .zlib_compress(data, bytes.get_mut(start..).unwrap_or_default())
        .map_err(|e| Error::invalid(format!("cannot compress a grain: {e:?}")))?;
    bytes.truncate(start + len);
    Ok(())
}

/// Directory, footer and end-of-stream marker for a stream that goes on at `at`; and where the directory is then.
pub(super) fn tail(directory: &[u32], header: &super::layout::RawHeader, at: u64) -> (Vec<u8>, u64) {
    let mut bytes: Vec<u8> = directory.iter().flat_map(|s| s.to_le_bytes()).collect();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    let mut all = metadata_marker(marker::DIRECTORY, bytes.len() as u64 / SECTOR).to_vec();
    all.append(&mut bytes);
    all.extend_from_slice(&metadata_marker(marker::FOOTER, 1));
    let mut footer = *header;
    footer.directory_offset = U64::new((at + SECTOR) / SECTOR);
    all.extend_from_slice(footer.as_bytes());
    all.extend_from_slice(&metadata_marker(marker::END_OF_STREAM, 0));
    (all, at + SECTOR)
}

/// Bytes of the [`tail`] of a stream with so many tables.
pub(super) fn tail_len(tables: u64) -> u64 {
    4 * SECTOR + tables.saturating_mul(4).next_multiple_of(SECTOR)
}

/// Writes the table of the grains placed last.
fn end_table(stream: &mut Stream, extent: &SparseExtent) -> Result<()> {
    let Some(index) = stream.current else { return Ok(()) };
    let mut tables = extent.tables_mut();
    let table = tables.stored(index);
    let mut piece = metadata_marker(marker::TABLE, table.len() as u64 / SECTOR).to_vec();
    piece.extend_from_slice(&table);
    extent.file.write_at(stream.next, &piece)?;
    let place = stream.next + SECTOR;
    let sector = u32::try_from(place / SECTOR).map_err(|_| Error::limit("a grain table past 2 TiB"))?;
    if let Some(entry) = usize::try_from(index).ok().and_then(|i| stream.directory.get_mut(i)) {
        *entry = sector;
    }
    tables.house(index, place, None);
    tables.mark_clean();
    stream.next += piece.len() as u64;
    Ok(())
}
