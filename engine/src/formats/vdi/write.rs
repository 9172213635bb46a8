//! Writing. The order that keeps an image whole whatever happens:
//!
//! 1. guest bytes, into blocks that the map in the file does not mention yet or into blocks of the same guest range;
//! 2. flush of the file;
//! 3. the header's count of blocks, and flush: others (QEMU) put the next block behind that many, so it must never be too small;
//! 4. the map's changed sectors, then the header;
//! 5. flush again.
//!
//! 2 to 5 happen in [`flush`](crate::Image::flush): a crash before loses only what was not flushed, and leaves at most blocks
//! behind the last one that the map knows. They are zeroed before they are used again.

use zerocopy::IntoBytes;

use super::image::{Meta, Part, VdiImage};
use super::layout::{Entry, Kind};
use crate::image::Below;
use crate::storage::write_zero_bytes;
use crate::{Error, Result};

/// Place of the count of allocated blocks in the header.
const AT_ALLOCATED: u64 = 0x184;

/// Guest bytes of a block that are copied or zeroed at a time.
const COPY: usize = 1 << 20;

impl VdiImage {
    pub fn write_data(&self, offset: u64, mut buf: &[u8], below: &dyn Below) -> Result<()> {
        let block = self.inside(offset, buf.len() as u64)?;
        for part in Self::parts(block, offset, buf.len()) {
            let (head, rest) = buf.split_at(part.len);
            match self.lookup(part.block) {
                (Entry::Block(_), place) => self.file.write_at(place + part.within, head)?,
                (Entry::Free | Entry::Zero, _) => self.write_new(part, Some(head), below)?,
            }
            buf = rest;
        }
        Ok(())
    }

    pub fn zero(&self, offset: u64, len: u64, unmap: bool, below: &dyn Below) -> Result<()> {
        let block = self.inside(offset, len)?;
        let (mut at, mut left) = (offset, len);
        while left > 0 {
            let within = at % block;
            let len = (block - within).min(left);
            let part = Part {
                block: at / block,
                within,
                len: usize::try_from(len).map_err(|_| Error::limit("a block past the address space"))?,
            };
            match self.lookup(part.block) {
                (Entry::Block(_), place) => self.file.write_zeroes(place + within, len, unmap)?,
                (Entry::Zero, _) => {}
                (Entry::Free, _) if !self.is_overlay() => {}
                (Entry::Free, _) if below.is_zero(at, len)? => {}
                (Entry::Free, _) => self.zero_in_overlay(part, block, below)?,
            }
            at += len;
            left -= len;
        }
        Ok(())
    }

    fn zero_in_overlay(&self, part: Part, block: u64, below: &dyn Below) -> Result<()> {
        let whole = part.within == 0 && (part.len as u64 == block || self.is_end(part, block));
        if !whole {
            return self.write_new(part, None, below);
        }
        let _growth = self.growth();
        self.meta_mut().map.set(part.block, Entry::Zero);
        Ok(())
    }
    fn is_end(&self, part: Part, block: u64) -> bool {
        part.block * block + part.within + part.len as u64 == self.meta().header.size
    }

    pub fn discard_data(&self, offset: u64, len: u64) -> Result<()> {
        let block = self.inside(offset, len)?;
        let (mut at, mut left) = (offset, len);
        while left > 0 {
            let len = (block - at % block).min(left);
            if let (Entry::Block(_), place) = self.lookup(at / block) {
                self.file.discard(place + at % block, len)?;
            }
            at += len;
            left -= len;
        }
        Ok(())
    }

    /// Writes into a block that has no place yet: gives it one, fills what the guest does not write.
    fn write_new(&self, part: Part, data: Option<&[u8]>, below: &dyn Below) -> Result<()> {
        let _growth = self.growth();
        let (entry, place) = self.lookup(part.block);
        if let Entry::Block(_) = entry {
            return match data {
                Some(data) => self.file.write_at(place + part.within, data),
                None => self.file.write_zeroes(place + part.within, part.len as u64, false),
            };
        }
        let (header, index) = {
            let meta = self.meta();
            (meta.header, meta.map.next())
        };
        if index >= header.blocks {
            return Err(self.no_place_left());
        }
        self.clear_block(index)?;
        if entry == Entry::Free && matches!(header.kind, Kind::Overlay { .. }) {
            self.copy_up(part, index, below)?;
        }
        if let Some(data) = data {
            self.file.write_at(header.place(index) + part.within, data)?;
        }
        let index = u32::try_from(index).map_err(|_| Error::corrupt("a block index past 32 bits"))?;
        let mut meta = self.meta_mut();
        meta.map.set(part.block, Entry::Block(index));
        meta.header_dirty = true;
        Ok(())
    }

    /// The error for a block without a place, when there is a place in the file for every block of the image.
    pub fn no_place_left(&self) -> Error {
        let unused = self.meta().map.unused().len();
        Error::corrupt(format!(
            "expected a place behind the last block for one that has none, found {unused} unused places between the others; \
             repairing leaks moves the last blocks there"
        ))
        .at(self.file.name())
    }

    /// Makes a new block read as zeroes: leftovers of a crash may lie there.
    pub fn clear_block(&self, index: u64) -> Result<()> {
        let header = self.meta().header;
        let (start, end) = (header.end(index), header.end(index + 1));
        let len = self.file.len()?;
        if len > start {
            self.file.write_zeroes(start, len.min(end) - start, true)?;
        }
        if len < end { self.file.set_len(end) } else { Ok(()) }
    }

    /// Copies what the layer below has around the guest's part of a block.
    fn copy_up(&self, part: Part, index: u64, below: &dyn Below) -> Result<()> {
        let header = self.meta().header;
        let guest = part.block * header.block;
        let (end, limit) = (part.within + part.len as u64, header.block.min(header.size - guest));
        for (from, to) in [(0, part.within), (end, limit)] {
            let mut at = from;
            while at < to {
                let len = usize::try_from(to - at).unwrap_or(COPY).min(COPY);
                if !below.is_zero(guest + at, len as u64)? {
                    let mut buf = vec![0; len];
                    below.read(guest + at, &mut buf)?;
                    self.file.write_at(header.place(index) + at, &buf)?;
                }
                at += len as u64;
            }
        }
        Ok(())
    }

    /// Steps 2 to 5 of the order above.
    pub fn flush_all(&self) -> Result<()> {
        let _growth = self.growth();
        self.flush_growing()
    }
    /// The same with `growth` held already.
    pub fn flush_growing(&self) -> Result<()> {
        let mut meta = self.meta_mut();
        if !meta.map.is_dirty() && !meta.header_dirty {
            return self.file.flush();
        }
        let end = meta.header.end(meta.map.next());
        if self.file.len()? < end {
            self.file.set_len(end)?;
        }
        self.file.flush()?;
        self.raise_count(&mut meta)?;
        meta.header.allocated = meta.map.next();
        meta.map.write_dirty(self.file.as_ref(), meta.header.map_offset)?;
        self.file.write_at(0, meta.header.to_raw().as_bytes())?;
        self.file.flush()?;
        meta.map.mark_clean();
        meta.header_dirty = false;
        Ok(())
    }

    /// Step 3 of the order above, for a map that is not written yet. While a full image grows, the count is larger than the image: no
    /// other program may put a block where blocks were moved.
    pub fn raise_count(&self, meta: &mut Meta) -> Result<()> {
        let allocated = meta.map.next();
        if meta.header.allocated < allocated {
            let count = u32::try_from(allocated).map_err(|_| Error::unsupported("too many blocks"))?;
            self.file.write_at(AT_ALLOCATED, &count.to_le_bytes())?;
            self.file.flush()?;
            meta.header.allocated = allocated;
        }
        Ok(())
    }

    /// Copies a block of the file to another place of it. Used with `growth` held.
    pub fn copy_block(&self, from: u64, to: u64) -> Result<()> {
        let header = self.meta().header;
        let (mut done, stride) = (0, header.stride());
        let mut buf = vec![0; COPY];
        self.clear_block(to)?;
        while done < stride {
            let part = usize::try_from(stride - done).unwrap_or(COPY).min(COPY);
            let buf = &mut buf[..part];
            crate::storage::read_padded(self.file.as_ref(), header.end(from) + done, buf)?;
            if buf.iter().any(|b| *b != 0) {
                self.file.write_at(header.end(to) + done, buf)?;
            }
            done += part as u64;
        }
        Ok(())
    }

    /// Fills a range of the file with zeroes that take space (preallocation).
    pub fn fill(&self, offset: u64, len: u64) -> Result<()> {
        write_zero_bytes(self.file.as_ref(), offset, len)
    }
}
