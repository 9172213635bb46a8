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
    /// A run of blocks gets neighbouring places: those that it has, then new ones at the end. It ends where the next place is another one.
    fn place(&self, offset: u64, len: u64, _encoded: Option<u64>) -> Result<Placement> {
        let block = self.inside(offset, len)?;
        let _growth = self.growth();
        let (first, within) = (offset / block, offset % block);
        let (header, start) = {
            let meta = self.meta();
            match meta.map.get(first) {
                Entry::Block(index) => (meta.header, u64::from(index)),
                Entry::Free | Entry::Zero => (meta.header, meta.map.next()),
            }
        };
        let (had, fresh) = self.neighbours(first, (within + len).div_ceil(block), start);
        let end = start + had + fresh;
        if end > header.blocks {
            return Err(self.no_place_left());
        }
        if self.file.len()? > header.end(end - fresh) {
            (end - fresh..end).try_for_each(|index| self.clear_block(index))?;
        }
        let mut meta = self.meta_mut();
        for (block, index) in (first + had..).zip(start + had..end) {
            let index = u32::try_from(index).map_err(|_| Error::corrupt("a block index past 32 bits"))?;
            meta.map.set(block, Entry::Block(index));
        }
        meta.header_dirty |= fresh > 0;
        Ok(Placement {
            guest: offset,
            at: HostPlace {
                file: 0,
                offset: header.place(start) + within,
            },
            len: len.min((had + fresh) * block - within),
            encoded: false,
        })
    }
    fn store(&self, placement: &Placement, bytes: &[u8]) -> Result<()> {
        self.file.write_at(placement.at.offset, bytes)
    }
}

impl VdiImage {
    /// How many blocks from `first` on have places one after the other from `start` on, and how many behind those, which have none, can get
    /// the next ones.
    fn neighbours(&self, first: u64, count: u64, start: u64) -> (u64, u64) {
        let meta = self.meta();
        let (mut had, mut fresh) = (0, 0);
        for (block, index) in (first..first + count).zip(start..) {
            match meta.map.get(block) {
                Entry::Block(found) if fresh == 0 && u64::from(found) == index => had += 1,
                Entry::Free | Entry::Zero if fresh > 0 || index == meta.map.next() => fresh += 1,
                Entry::Block(_) | Entry::Free | Entry::Zero => break,
            }
        }
        (had, fresh)
    }
}
