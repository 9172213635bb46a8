//! Growing. A crash at any write leaves the old image or the new one.
//!
//! Where the map has room before the first block, the new entries are written there, flushed, and then the header's sector makes
//! them true. Otherwise the first blocks of the file give way: they are copied to the end, the header counts the copies, the map is pointed
//! at them and flushed, a new map is written where they were, flushed, and the header's sector switches to it.
//!
//! Nobody else writes to the image meanwhile: that is the caller's to see to.

use zerocopy::IntoBytes;

use super::image::VdiImage;
use super::layout::{Entry, Header, Kind, MAX_BLOCKS, SECTOR};
use super::map::{BlockMap, check_size};
use crate::image::{Preallocation, Resize};
use crate::{Error, Result};

impl VdiImage {
    pub fn grow(&self, to: &Resize) -> Result<()> {
        let old = self.meta().header;
        let size = to.virtual_size.checked_next_multiple_of(SECTOR);
        let Some(size) = size.filter(|s| s.div_ceil(old.block) <= MAX_BLOCKS) else {
            return Err(Error::invalid(format!(
                "{} bytes are too much for VDI",
                to.virtual_size
            )));
        };
        if size < old.size {
            return Err(Error::unsupported("VDI images cannot shrink"));
        }
        if to.preallocation != Preallocation::Off && old.kind != Kind::Static {
            return Err(Error::unsupported("only static VDI images can be preallocated"));
        }
        let blocks = size.div_ceil(old.block).max(old.blocks);
        check_size(blocks, &self.limits)?;
        let _growth = self.growth();
        self.flush_growing()?;
        self.clear_tail(&old, size)?;
        if blocks * 4 > old.data_offset - old.map_offset {
            self.make_room(blocks)?;
        }
        self.extend_map(blocks, size)?;
        if old.kind == Kind::Static {
            self.fill_static(old.blocks, blocks, to.preallocation)?;
        }
        self.flush_growing()
    }

    /// The bytes of the old blocks past the old end become visible: nobody said what they are, or that the file reaches that far.
    fn clear_tail(&self, old: &Header, size: u64) -> Result<()> {
        let (mut at, end) = (old.size, size.min(old.blocks * old.block));
        while at < end {
            let within = at % old.block;
            let len = (old.block - within).min(end - at);
            if let (Entry::Block(_), place) = self.lookup(at / old.block) {
                self.file.write_zeroes(place + within, len, false)?;
            }
            at += len;
        }
        Ok(())
    }

    /// Writes the new entries behind the old ones, then lets the header say so.
    fn extend_map(&self, blocks: u64, size: u64) -> Result<()> {
        let mut meta = self.meta_mut();
        let old = meta.header;
        let added =
            usize::try_from((blocks - old.blocks) * 4).map_err(|_| Error::limit("a map past the address space"))?;
        self.file
            .write_at(old.map_offset + old.blocks * 4, &vec![0xff; added])?;
        self.file.flush()?;
        let header = Header { blocks, size, ..old };
        self.file.write_at(0, header.to_raw().as_bytes())?;
        self.file.flush()?;
        meta.header = header;
        meta.map.grow(blocks);
        Ok(())
    }

    /// Moves the map to where the first blocks are, with room for `blocks` entries.
    fn make_room(&self, blocks: u64) -> Result<()> {
        let old = self.meta().header;
        let needed = (blocks * 4).next_multiple_of(SECTOR);
        let given = needed.div_ceil(old.stride());
        let data_offset = old.data_offset + given * old.stride();
        if u32::try_from(data_offset).is_err() {
            return Err(Error::unsupported("the block map would end past 4 GiB"));
        }
        self.evacuate(given)?;
        let mut meta = self.meta_mut();
        let mut room = shifted_map(&meta.map, given)?;
        let entries = room.len();
        room.resize(
            usize::try_from(needed).map_err(|_| Error::limit("a map past the address space"))?,
            0xff,
        );
        let next = meta.map.next().max(given);
        if self.file.len()? < old.end(next) {
            self.file.set_len(old.end(next))?;
        }
        self.file.write_at(old.data_offset, &room)?;
        self.file.flush()?;
        let header = Header {
            map_offset: old.data_offset,
            data_offset,
            allocated: next - given,
            ..old
        };
        self.file.write_at(0, header.to_raw().as_bytes())?;
        self.file.flush()?;
        room.truncate(entries);
        meta.map = BlockMap::from_bytes(&room, header.allocated, meta.map.bound());
        meta.header = header;
        Ok(())
    }

    /// Copies the blocks with an index below `given` behind all others and points the map at the copies.
    fn evacuate(&self, given: u64) -> Result<()> {
        let victims: Vec<(u64, u64)> = {
            let meta = self.meta();
            let low = |(block, entry)| match entry {
                Entry::Block(index) if u64::from(index) < given => Some((block, u64::from(index))),
                _ => None,
            };
            meta.map.entries().filter_map(low).collect()
        };
        let first = self.meta().map.next().max(given);
        for (to, (_, from)) in (first..).zip(&victims) {
            self.copy_block(*from, to)?;
        }
        self.file.flush()?;
        let mut meta = self.meta_mut();
        for (to, (block, _)) in (first..).zip(&victims) {
            let to = u32::try_from(to).map_err(|_| Error::unsupported("too many blocks to move"))?;
            meta.map.set(*block, Entry::Block(to));
        }
        self.raise_count(&mut meta)?;
        meta.map.write_dirty(self.file.as_ref(), meta.header.map_offset)?;
        self.file.flush()?;
        meta.map.mark_clean();
        Ok(())
    }

    fn fill_static(&self, old_blocks: u64, blocks: u64, how: Preallocation) -> Result<()> {
        for block in old_blocks..blocks {
            let (header, index) = {
                let meta = self.meta();
                (meta.header, meta.map.next())
            };
            self.clear_block(index)?;
            match how {
                Preallocation::Full => self.fill(header.end(index), header.stride())?,
                Preallocation::Falloc => self.file.allocate(header.end(index), header.stride())?,
                Preallocation::Off | Preallocation::Metadata => {}
            }
            let index = u32::try_from(index).map_err(|_| Error::unsupported("too many blocks"))?;
            let mut meta = self.meta_mut();
            meta.map.set(block, Entry::Block(index));
            meta.header_dirty = true;
        }
        Ok(())
    }
}

/// The map with every index lower by `given`.
fn shifted_map(map: &BlockMap, given: u64) -> Result<Vec<u8>> {
    let given = u32::try_from(given).map_err(|_| Error::unsupported("too many blocks to move"))?;
    let mut bytes = Vec::with_capacity(map.bytes().len());
    for (block, entry) in map.entries() {
        let entry = match entry {
            Entry::Block(index) => Entry::Block(
                index
                    .checked_sub(given)
                    .ok_or_else(|| Error::corrupt(format!("block {block} still lies where the map goes")))?,
            ),
            other => other,
        };
        bytes.extend_from_slice(&entry.encode().to_le_bytes());
    }
    Ok(bytes)
}
