//! Filling a new image with large writes.

use super::image::VdiImage;
use super::layout::Entry;
use crate::image::{BulkWrite, HostPlace, Placement, Scratch};
use crate::{Error, Result};

impl BulkWrite for VdiImage {
    fn unit(&self) -> u64 {
        self.meta().header.block
    }
    fn encodes(&self) -> bool {
        false
    }
    fn encode(&self, _data: &[u8], _scratch: &mut Scratch) -> Result<Option<Vec<u8>>> {
        Ok(None)
    }
    /// A run of blocks gets neighbouring places: those it has in a static image, new ones at the end in others.
    fn place(&self, offset: u64, len: u64, _encoded: Option<u64>) -> Result<Placement> {
        let block = self.inside(offset, len)?;
        let _growth = self.growth();
        let (first, count) = (offset / block, (offset % block + len).div_ceil(block));
        let (header, start, fresh) = {
            let meta = self.meta();
            match meta.map.get(first) {
                Entry::Block(index) => (meta.header, u64::from(index), false),
                Entry::Free | Entry::Zero => (meta.header, meta.map.next(), true),
            }
        };
        if start + count > header.blocks {
            return Err(Error::corrupt(
                "every block of the image is in use, yet one without a place is written",
            ));
        }
        if fresh && self.file.len()? > header.end(start) {
            (start..start + count).try_for_each(|index| self.clear_block(index))?;
        }
        let mut meta = self.meta_mut();
        let run = (first..first + count).zip(start..);
        for (block, index) in run.clone() {
            let fits = match meta.map.get(block) {
                Entry::Block(found) => !fresh && u64::from(found) == index,
                Entry::Free | Entry::Zero => fresh,
            };
            if !fits {
                return Err(Error::invalid(format!("block {block} was written before")));
            }
        }
        for (block, index) in run.filter(|_| fresh) {
            let index = u32::try_from(index).map_err(|_| Error::corrupt("a block index past 32 bits"))?;
            meta.map.set(block, Entry::Block(index));
        }
        meta.header_dirty |= fresh;
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
