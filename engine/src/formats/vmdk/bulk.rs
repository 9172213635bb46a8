//! Filling a new image with large writes from many threads.

use std::sync::atomic::Ordering;

use super::entry::Entry;
use super::image::{Body, Part, VmdkImage};
use super::sparse::{Packing, Run, SparseExtent};
use crate::image::{BulkWrite, HostPlace, Placement, Scratch};
use crate::{Error, Result};

/// Larger units are not wanted by the pipeline.
const MAX_UNIT: u64 = 2 << 20;

impl VmdkImage {
    /// Every part can be filled, and begins where a unit does.
    pub fn can_bulk(&self) -> bool {
        let fillable = |part: &Part| {
            let whole = part.start.is_multiple_of(self.unit());
            whole
                && match &part.body {
                    Body::Flat { writable, .. } => *writable,
                    Body::Sparse { extent, .. } => extent.packing == Packing::Plain && extent.read_only.is_none(),
                    Body::Zero => false,
                }
        };
        self.stream.is_some() || !self.parts.is_empty() && self.parts.iter().all(fillable)
    }
    fn is_flat(&self) -> bool {
        self.sparse_extents().next().is_none()
    }
}

impl BulkWrite for VmdkImage {
    fn unit(&self) -> u64 {
        self.sparse_extents()
            .map(|e| e.grain)
            .max()
            .unwrap_or(4096)
            .min(MAX_UNIT)
    }
    fn encodes(&self) -> bool {
        self.stream.is_some()
    }
    fn overwrites(&self) -> bool {
        self.is_flat()
    }
    fn sparse_store(&self) -> bool {
        self.stream.is_none() && self.storages.iter().all(|s| s.can_resize())
    }
    /// Other subformats than streamOptimized take compressed writes as plain ones, as with qemu-img.
    fn encode(&self, data: &[u8], scratch: &mut Scratch) -> Result<Option<Vec<u8>>> {
        if self.stream.is_none() {
            return Ok(None);
        }
        self.deflate(data, scratch).map(Some)
    }
    fn place(&self, offset: u64, len: u64, encoded: Option<u64>) -> Result<Placement> {
        self.inside(offset, len)?;
        if let Some(stored) = encoded {
            return self.place_grain(offset, stored);
        }
        if self.stream.is_some() {
            return Err(Error::unsupported("streamOptimized images hold compressed grains only"));
        }
        self.refuse_double_use(offset, len)?;
        self.change_cid(0, &[], false)?;
        let first = self.pieces(offset, len).next();
        let (part, at, len) = first.ok_or_else(|| Error::invalid("an empty run"))?;
        let at = match &part.body {
            Body::Zero => return Err(Error::unsupported("cannot write to an extent of type ZERO")),
            Body::Flat { file, offset, .. } => HostPlace {
                file: *file,
                offset: offset.saturating_add(at),
            },
            Body::Sparse { file, extent } => {
                let place = extent.place_run(at, len)?;
                if extent.tables().dirty_bytes() > self.dirty_limit {
                    extent.flush(false)?;
                }
                HostPlace {
                    file: *file,
                    offset: place,
                }
            }
        };
        Ok(Placement {
            guest: offset,
            at,
            len,
            encoded: false,
        })
    }
    fn store(&self, placement: &Placement, bytes: &[u8]) -> Result<()> {
        if placement.encoded {
            return self.store_grain(placement, bytes);
        }
        let file = self
            .storages
            .get(placement.at.file)
            .ok_or_else(|| Error::invalid("a placement of another image"))?;
        file.write_at(placement.at.offset, bytes)
    }
}

impl SparseExtent {
    /// Neighbouring places for the grains of a run that was never written.
    fn place_run(&self, at: u64, len: u64) -> Result<u64> {
        self.refuse_read_only()?;
        let _growth = self.growth();
        let (run, found) = self.run(at, len)?;
        let before = match run {
            Run::Data(place) if found == len => {
                self.refuse_metadata(place, len)?;
                return Ok(place);
            }
            // A grain larger than the unit, placed when its first unit was.
            Run::Data(place) => Some(place),
            _ => None,
        };
        let done = if before.is_some() { found } else { 0 };
        let (first, within) = ((at + done) / self.grain, (at + done) % self.grain);
        let count = (within + len - done).div_ceil(self.grain);
        let place = self.new_place(count)?;
        let (kind, rest) = self.run(at + done, len - done)?;
        let is_new = rest == len - done && matches!(kind, Run::Unallocated | Run::Zero);
        if !is_new || before.is_some_and(|b| b + found != place) {
            return Err(Error::invalid(format!(
                "a part of the {len} bytes at {at:#x} was written before"
            )));
        }
        self.end.store(place + count * self.grain, Ordering::Release);
        self.set_run(first, count, |n| Entry::at(place + n * self.grain))?;
        Ok(before.unwrap_or(place + within))
    }
}
