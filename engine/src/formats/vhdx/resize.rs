//! Changing the virtual size.
//!
//! Order of writes. Growing: the rest of the last block is zeroed, the table gets its new entries (through the log where it is, or whole as a new
//! region at the end of the file, which the two region tables then name one after the other), and last the virtual size changes through
//! the log. Shrinking: the virtual size first, so that a failure leaves the old disk with all its bytes or the new one; then blocks behind the
//! new end are forgotten. Entries that the size does not need are nobody's, and growing writes them anew.

use std::sync::atomic::Ordering;

use super::image::{Space, VhdxImage};
use super::journal::Page;
use super::layout::{Block, Geometry, MAX_SIZE, MIB, PAGE, REGION_TABLES, VIRTUAL_SIZE, encode_table};
use super::open::Regions;
use crate::formats::common::{check_table, exclusive, lock, shared};
use crate::image::{Preallocation, Resize};
use crate::{Error, Result};

/// Changes the virtual size of an open image.
pub fn resize(image: &VhdxImage, to: &Resize) -> Result<()> {
    let old = image.geometry();
    let size = to.virtual_size;
    if old.overlay {
        return Err(Error::unsupported(
            "a differencing VHDX has the size of the disk below and cannot change it",
        ));
    }
    if !size.is_multiple_of(old.sector) || size > MAX_SIZE {
        return Err(Error::invalid(format!(
            "the size of a VHDX is whole sectors up to 64 TiB, not {size} bytes"
        )));
    }
    if size < old.size && !to.shrink {
        return Err(Error::invalid(format!(
            "shrinking from {} to {size} bytes loses data; allow it explicitly",
            old.size
        )));
    }
    if to.preallocation != Preallocation::Off {
        return Err(Error::unsupported("a VHDX cannot preallocate when it grows"));
    }
    let new = Geometry { size, ..old };
    if size > old.size {
        check_table("the BAT", new.entries() * 8, &image.limits)?;
    }
    image.start(&size.to_le_bytes())?;
    let space = &mut *lock(&image.space);
    if size > old.size {
        image.zero_rest(&old, old.size)?;
        image.unstable.store(true, Ordering::Release);
        image.flush_locked(space)?;
        image.make_room(space, &old, &new)?;
    }
    image.flush_locked(space)?;
    image.put_size(space, size)?;
    if size < old.size {
        image.drop_past(space, &old, size)?;
        image.flush_locked(space)?;
    }
    let entries = usize::try_from(new.entries()).unwrap_or(usize::MAX);
    exclusive(&image.bat).resize(entries, 0);
    if size < old.size {
        image.trim(space)?;
    }
    Ok(())
}

impl VhdxImage {
    /// Changes the virtual size through the log.
    fn put_size(&self, space: &mut Space, size: u64) -> Result<()> {
        let entry = shared(&self.disk)
            .entries
            .iter()
            .find(|e| e.id == VIRTUAL_SIZE && !e.user)
            .copied();
        let entry = entry.ok_or_else(|| Error::corrupt("the metadata have no virtual size"))?;
        let place = space.regions.metadata.offset + entry.offset;
        let pages = self.patched(&[(place, size.to_le_bytes().to_vec())])?;
        self.commit(space, &pages)?;
        exclusive(&self.geometry).size = size;
        Ok(())
    }

    /// Zeroes what the block that holds byte `size` has from there on.
    fn zero_rest(&self, geometry: &Geometry, size: u64) -> Result<()> {
        let rest = size % geometry.block;
        if rest == 0 {
            return Ok(());
        }
        if let Block::Full(place) = self.block(geometry, size / geometry.block)? {
            self.unstable.store(true, Ordering::Release);
            self.file.write_zeroes(place + rest, geometry.block - rest, true)?;
        }
        Ok(())
    }

    fn drop_past(&self, space: &mut Space, geometry: &Geometry, size: u64) -> Result<()> {
        self.zero_rest(geometry, size)?;
        for block in size.div_ceil(geometry.block)..geometry.blocks() {
            if self.block(geometry, block)? != Block::NotPresent {
                self.put_block(space, geometry, block, Block::NotPresent)?;
            }
        }
        Ok(())
    }

    /// Gives the table its entries for a larger disk, in the file as well.
    fn make_room(&self, space: &mut Space, old: &Geometry, new: &Geometry) -> Result<()> {
        let (had, needed) = (old.entries(), new.entries());
        let count = usize::try_from(needed).map_err(|_| Error::limit("the BAT exceeds the address space"))?;
        exclusive(&self.bat).resize(count, 0);
        if needed * 8 <= space.regions.bat.length {
            // What is behind the entries that were needed is nobody's: it may be anything.
            let pages = had * 8 / PAGE..(needed * 8).div_ceil(PAGE);
            space.dirty.extend(pages);
            return Ok(());
        }
        let table = shared(&self.bat).clone();
        let regions = self.copy_table(space, &table, (needed * 8).next_multiple_of(MIB))?;
        let names = encode_table(&regions.all);
        for copy in REGION_TABLES {
            self.file.write_at(copy, &names)?;
            self.file.flush()?;
        }
        space.regions = regions;
        Ok(())
    }

    /// Writes a block allocation table to a new region of `length` bytes, and gives the regions with it.
    pub(super) fn copy_table(&self, space: &mut Space, table: &[u64], length: u64) -> Result<Regions> {
        let place = self.take(space, length)?;
        let bytes: Vec<u8> = table.iter().flat_map(|e| e.to_le_bytes()).collect();
        self.file.write_at(place, &bytes)?;
        self.file.flush()?;
        let mut regions = space.regions.clone();
        let id = regions.bat.id;
        for region in regions.all.iter_mut().filter(|r| r.id == id) {
            (region.offset, region.length) = (place, length);
        }
        (regions.bat.offset, regions.bat.length) = (place, length);
        Ok(regions)
    }

    /// The pages that hold some bytes, with these bytes in them.
    pub(super) fn patched(&self, changes: &[(u64, Vec<u8>)]) -> Result<Vec<Page>> {
        let mut pages: Vec<Page> = Vec::new();
        for (place, bytes) in changes {
            let (mut place, mut bytes) = (*place, bytes.as_slice());
            while !bytes.is_empty() {
                let (start, from) = (place / PAGE * PAGE, (place % PAGE) as usize);
                let (now, rest) = bytes.split_at(bytes.len().min(PAGE as usize - from));
                let known = pages.iter().position(|(at, _)| *at == start);
                let at = match known {
                    Some(at) => at,
                    None => {
                        let mut page = Box::new([0; PAGE as usize]);
                        self.file.read_at(start, page.as_mut_slice())?;
                        pages.push((start, page));
                        pages.len() - 1
                    }
                };
                let part = pages
                    .get_mut(at)
                    .and_then(|(_, page)| page.get_mut(from..from + now.len()));
                if let Some(part) = part {
                    part.copy_from_slice(now);
                }
                place += now.len() as u64;
                bytes = rest;
            }
        }
        Ok(pages)
    }
}
