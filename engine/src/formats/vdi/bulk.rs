//! Filling a new image with large writes.

use super::image::VdiImage;
use super::layout::{Entry, Kind};
use crate::image::{BulkWrite, HostPlace, Placement, Scratch};
use crate::{Error, Result};

/// Larger units are not wanted by the pipeline: a larger block is placed when its first unit is.
const MAX_UNIT: u64 = 2 << 20;

impl BulkWrite for VdiImage {
    fn unit(&self) -> u64 {
        self.meta().header.block.min(MAX_UNIT)
    }
    fn encodes(&self) -> bool {
        false
    }
    fn overwrites(&self) -> bool {
        self.meta().header.kind == Kind::Static
    }
    fn sparse_store(&self) -> bool {
        self.file.can_resize()
    }
    fn encode(&self, _data: &[u8], _scratch: &mut Scratch) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }
    /// A run of blocks gets neighbouring places: those that it has, then new ones at the end.
    fn place(&self, offset: u64, len: u64, _encoded: Option<u64>) -> Result<Placement> {
        let block = self.inside(offset, len)?;
        let _growth = self.growth();
        let (first, count) = (offset / block, (offset % block + len).div_ceil(block));
        let (header, start) = {
            let meta = self.meta();
            match meta.map.get(first) {
                Entry::Block(index) => (meta.header, u64::from(index)),
                Entry::Free | Entry::Zero => (meta.header, meta.map.next()),
            }
        };
        if start + count > header.blocks {
            return Err(Error::corrupt(
                "every block of the image is in use, yet one without a place is written",
            ));
        }
        let fresh = self.fresh_blocks(first, count, start)?;
        if self.file.len()? > header.end(start + count - fresh) {
            (start + count - fresh..start + count).try_for_each(|index| self.clear_block(index))?;
        }
        let mut meta = self.meta_mut();
        for (block, index) in (first..first + count)
            .zip(start..)
            .skip(usize::try_from(count - fresh).unwrap_or(usize::MAX))
        {
            let index = u32::try_from(index).map_err(|_| Error::corrupt("a block index past 32 bits"))?;
            meta.map.set(block, Entry::Block(index));
        }
        meta.header_dirty |= fresh > 0;
        Ok(Placement {
            guest: offset,
            at: HostPlace {
                file: 0,
                offset: header.place(start) + offset % block,
            },
            len,
            encoded: false,
        })
    }
    fn store(&self, placement: &Placement, bytes: &[u8]) -> Result<()> {
        self.file.write_at(placement.at.offset, bytes)
    }
}

impl VdiImage {
    /// How many blocks at the end of a run have no place yet. Those before must lie one after the other from `start` on, up to the
    /// last block of the file where new ones follow.
    fn fresh_blocks(&self, first: u64, count: u64, start: u64) -> Result<u64> {
        let meta = self.meta();
        let (mut fresh, mut good) = (0, true);
        for (block, index) in (first..first + count).zip(start..) {
            match meta.map.get(block) {
                Entry::Block(found) => good &= fresh == 0 && u64::from(found) == index,
                Entry::Free | Entry::Zero => {
                    good &= fresh > 0 || index == meta.map.next();
                    fresh += 1;
                }
            }
        }
        if good {
            return Ok(fresh);
        }
        Err(Error::invalid(format!(
            "the blocks from {first} on were written before, at different places"
        )))
    }
}
