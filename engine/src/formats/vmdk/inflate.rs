//! Compressed grains.

use std::sync::{Mutex, PoisonError};

use libdeflater::Decompressor;
use zerocopy::FromBytes;
use zerocopy::little_endian::{U32, U64};

use super::layout::{GRAIN_MARKER, SECTOR};
use super::sparse::{Packing, SparseExtent};
use crate::storage::read_padded;
use crate::{Error, Result};

/// The grain that was inflated last: small reads in order need each grain several times.
#[derive(Debug, Default)]
pub(super) struct LastGrain(Mutex<Option<(u64, Vec<u8>)>>);

impl LastGrain {
    fn read(&self, at: u64, within: usize, buf: &mut [u8]) -> bool {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((_, bytes)) = last.as_ref().filter(|(a, _)| *a == at) else {
            return false;
        };
        let Some(part) = within.checked_add(buf.len()).and_then(|end| bytes.get(within..end)) else {
            return false;
        };
        buf.copy_from_slice(part);
        true
    }
    fn keep(&self, at: u64, bytes: Vec<u8>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((at, bytes));
    }
}

/// Reads `buf` from byte `within` of the compressed grain with this guest number that is stored at `at`.
pub(super) fn inflate(extent: &SparseExtent, number: u64, at: u64, within: usize, buf: &mut [u8]) -> Result<()> {
    let grain = usize::try_from(extent.grain).map_err(|_| Error::limit("a grain past the address space"))?;
    let whole = within == 0 && buf.len() == grain;
    if !whole && extent.last.read(at, within, buf) {
        return Ok(());
    }
    let stored = stored_bytes(extent, number, at)?;
    let deflated = |e| Error::corrupt("the grain is not a deflate stream of at most its size").because(e);
    let mut codec = Decompressor::new();
    if whole {
        let len = codec.zlib_decompress(&stored, buf).map_err(deflated)?;
        return enough(len, needed(extent, number, grain)).map(|()| buf.get_mut(len..).unwrap_or_default().fill(0));
    }
    let mut bytes = vec![0; grain];
    let len = codec.zlib_decompress(&stored, &mut bytes).map_err(deflated)?;
    enough(len, needed(extent, number, grain))?;
    if let Some(part) = within.checked_add(buf.len()).and_then(|end| bytes.get(within..end)) {
        buf.copy_from_slice(part);
    }
    extent.last.keep(at, bytes);
    Ok(())
}

/// Bytes of a grain that the guest can see.
fn needed(extent: &SparseExtent, number: u64, grain: usize) -> usize {
    let left = extent.capacity().saturating_sub(number.saturating_mul(extent.grain));
    usize::try_from(left).unwrap_or(usize::MAX).min(grain)
}

fn enough(len: usize, needed: usize) -> Result<()> {
    if len < needed {
        return Err(Error::corrupt(format!(
            "the grain inflates to {len} bytes, expected {needed}"
        )));
    }
    Ok(())
}

/// The deflate stream of a grain, bounded by twice its size as no sane writer exceeds that.
fn stored_bytes(extent: &SparseExtent, number: u64, at: u64) -> Result<Vec<u8>> {
    let most = extent.grain.saturating_mul(2);
    let len = extent.file.len()?;
    let (start, size) = match extent.packing {
        Packing::Deflated { markers: true } => (
            at.saturating_add(GRAIN_MARKER as u64),
            marked(extent, number, at, most)?,
        ),
        _ => (at, most.min(len.saturating_sub(at))),
    };
    if start.checked_add(size).is_none_or(|end| end > len) {
        return Err(Error::corrupt(format!(
            "the grain's {size} bytes end past the end of the file at {len:#x}"
        )));
    }
    let mut bytes = vec![0; usize::try_from(size).map_err(|_| Error::limit("a grain past the address space"))?];
    read_padded(extent.file.as_ref(), start, &mut bytes)?;
    Ok(bytes)
}

/// Length of the data that follows a grain's marker, once the marker is for this grain.
pub(super) fn marked(extent: &SparseExtent, number: u64, at: u64, most: u64) -> Result<u64> {
    let mut raw = [0; GRAIN_MARKER];
    extent.file.read_at(at, &mut raw)?;
    let (sector, rest) = U64::read_from_prefix(&raw).map_err(|_| Error::corrupt("no marker"))?;
    let (size, _) = U32::read_from_prefix(rest).map_err(|_| Error::corrupt("no marker"))?;
    if sector.get().checked_mul(SECTOR) != Some(number.saturating_mul(extent.grain)) {
        let expected = number.saturating_mul(extent.grain) / SECTOR;
        return Err(Error::corrupt(format!(
            "the marker is of guest sector {sector}, expected {expected}"
        )));
    }
    let size = u64::from(size.get());
    if size == 0 || size > most {
        return Err(Error::corrupt(format!(
            "the marker says {size} bytes, expected 1 to {most}"
        )));
    }
    Ok(size)
}
