//! Changing the virtual size.
//!
//! Order of writes. Of a disk that is not fixed: the table gets its room; then the footer at the end is cut off, the one at the front is
//! written, and a new one at the end: two sound footers never differ. Data past a smaller end are dropped after that, so that a failure leaves
//! the old disk with all its bytes or the new one. Of a fixed disk that
//! grows: the footer is written behind the new end before the old one is zeroed, and says the new size after that; of one that shrinks: the new footer
//! is written over the part to be cut off before it is cut off.
//!
//! Where other programs take the disk for a larger one and have data past its end, its size does not change: see [`VpcImage::refuse_hidden`].

use std::sync::atomic::Ordering;

use zerocopy::IntoBytes;

use super::blocks::{Blocks, Space};
use super::geometry::{Geometry, is_exact};
use super::image::{VpcImage, lock, reading, writing};
use super::layout::{DiskKind, FOOTER, Footer, MAX_SECTORS, SECTOR, UNUSED};
use crate::formats::common::check_table;
use crate::image::{Image, Preallocation, Resize};
use crate::storage::read_vec;
use crate::{Error, Result};

/// Program that QEMU names when the size field counts.
const QEMU_EXACT: [u8; 4] = *b"qem2";

/// Changes the virtual size of an open image.
pub fn resize(image: &VpcImage, to: &Resize) -> Result<()> {
    let (now, size) = (image.virtual_size(), to.virtual_size);
    if image.kind() == DiskKind::Differencing {
        return Err(Error::unsupported(
            "a differencing VHD has the size of the disk below and cannot change it",
        ));
    }
    if !size.is_multiple_of(SECTOR) || size > MAX_SECTORS * SECTOR {
        return Err(Error::invalid(format!(
            "the size of a VHD is whole sectors, at most 2040 GiB, not {size} bytes"
        )));
    }
    if size < now && !to.shrink {
        return Err(Error::invalid(format!(
            "shrinking from {now} to {size} bytes loses data; allow it explicitly"
        )));
    }
    match (to.preallocation, &image.blocks) {
        (Preallocation::Off, _) | (Preallocation::Falloc | Preallocation::Full, None) => {}
        (how, _) => {
            return Err(Error::unsupported(format!(
                "a VHD of this kind cannot preallocate ({how:?}) when it grows"
            )));
        }
    }
    if size == now {
        return Ok(());
    }
    if let Some(blocks) = image.blocks.as_ref().filter(|_| size > now) {
        let entries = size.div_ceil(blocks.block_size());
        check_table("the table", entries * 4, &image.limits)?;
    }
    image.refuse_hidden()?;
    let footer = with_size(reading(&image.footer).to_owned(), size);
    match &image.blocks {
        Some(blocks) => blocks.resize(now, size, footer),
        None => fixed(image, now, to, footer),
    }?;
    *writing(&image.footer) = footer;
    image.size.store(size, Ordering::Release);
    match &image.blocks {
        Some(blocks) if size < now => blocks.drop_past(size),
        _ => Ok(()),
    }
}

/// A footer for another size. Where the program that made it has the size follow from the geometry and no geometry fits, the image becomes one
/// whose size field counts.
fn with_size(footer: Footer, size: u64) -> Footer {
    let mut raw = footer.raw;
    let (mut geometry, total) = Geometry::holding(size / SECTOR);
    if raw.geometry() == Geometry::MAX && is_exact(raw.creator) {
        geometry = Geometry::MAX;
    } else if total * SECTOR != size && !is_exact(raw.creator) {
        raw.creator = QEMU_EXACT;
    }
    raw.current_size = size.into();
    raw.cylinders = geometry.cylinders.into();
    (raw.heads, raw.sectors) = (geometry.heads, geometry.sectors);
    Footer {
        raw: raw.sealed(),
        ..footer
    }
}

fn fixed(image: &VpcImage, now: u64, to: &Resize, footer: Footer) -> Result<()> {
    let (file, size) = (image.file.as_ref(), to.virtual_size);
    let old_footer = file.len()?.saturating_sub(FOOTER);
    let grows = size > now;
    let first = if grows { *reading(&image.footer) } else { footer };
    file.write_at(size, first.raw.as_bytes())?;
    file.flush()?;
    if grows {
        // Old footer, and what was between the data and it.
        let end = size.min(old_footer + FOOTER);
        if end > now {
            file.write_zeroes(now, end - now, true)?;
        }
        match to.preallocation {
            Preallocation::Off | Preallocation::Metadata => {}
            Preallocation::Falloc => file.allocate(now, size - now)?,
            Preallocation::Full => crate::storage::write_zero_bytes(file, now, size - now)?,
        }
    }
    // The data end where the geometry says, and the file may have gone on: the footer that counts is the one at its end.
    if file.len()? > size + FOOTER {
        file.set_len(size + FOOTER)?;
    }
    file.flush()?;
    if grows {
        file.write_at(size, footer.raw.as_bytes())?;
        file.flush()?;
    }
    Ok(())
}

impl Blocks {
    fn resize(&self, now: u64, size: u64, footer: Footer) -> Result<()> {
        let mut space = lock(&self.space);
        if size > now {
            self.zero_rest(now)?;
        }
        self.flush_locked(&mut space)?;
        if size > now {
            self.forget_past()?;
            self.make_room(&mut space, size)?;
        }
        self.publish(&mut space, footer)
    }

    /// Takes the entries out of the table in the file that are past the disk's end: other programs look at them, too.
    pub(super) fn forget_past(&self) -> Result<()> {
        let header = *reading(&self.header);
        let known = reading(&self.table).len() as u64 * 4;
        let len = usize::try_from(header.table_bytes().saturating_sub(known))
            .map_err(|_| Error::limit("the table exceeds the address space"))?;
        let at = header.table_offset + known;
        if read_vec(self.file.as_ref(), at, len)?.iter().any(|byte| *byte != 0xff) {
            self.file.write_at(at, &vec![0xff; len])?;
            self.file.flush()?;
        }
        self.hidden_end.store(0, Ordering::Release);
        Ok(())
    }

    /// Zeroes what the last block has past the end of a disk, so that growing shows zeroes.
    fn zero_rest(&self, size: u64) -> Result<()> {
        let rest = size % self.block_size();
        if rest > 0 {
            let block = usize::try_from(size / self.block_size()).unwrap_or(usize::MAX);
            if let Some(place) = self.place_of(block)? {
                self.touched();
                self.file
                    .write_zeroes(place + self.bitmap_size + rest, self.block_size() - rest, true)?;
            }
        }
        Ok(())
    }

    /// Forgets the blocks behind the end and gives back what space they have at the end of the file.
    fn drop_past(&self, size: u64) -> Result<()> {
        let space = &mut *lock(&self.space);
        self.zero_rest(size)?;
        let keep = usize::try_from(size.div_ceil(self.block_size())).unwrap_or(usize::MAX);
        for (block, entry) in writing(&self.table).iter_mut().enumerate().skip(keep) {
            if *entry != UNUSED {
                *entry = UNUSED;
                space.dirty.insert(block as u64 * 4 / SECTOR);
            }
        }
        self.flush_locked(space)?;
        self.forget_past()?;
        writing(&self.table).truncate(keep);
        let end = self.used_end(space.end);
        if end < space.end {
            space.end = end;
            self.publish(space, space.footer)?;
        }
        Ok(())
    }

    /// Makes the table large enough: where it is if nothing is behind it, else as a new one at the end of the file.
    fn make_room(&self, space: &mut Space, size: u64) -> Result<()> {
        let mut header = *reading(&self.header);
        let needed = size.div_ceil(self.block_size());
        let table = &mut *writing(&self.table);
        let count = |n: u64| usize::try_from(n).map_err(|_| Error::limit("the table exceeds the address space"));
        table.resize(count(needed.max(table.len() as u64))?, UNUSED);
        let bytes: Vec<u8> = table.iter().flat_map(|e| e.to_be_bytes()).collect();
        let padded = (needed * 4).next_multiple_of(SECTOR);
        let pad = vec![0xff; count(padded - needed * 4)?];
        if needed > header.entries {
            let at = space.end;
            self.file.write_at(at + padded, space.footer.raw.as_bytes())?;
            self.file.write_at(at, &[bytes, pad].concat())?;
            self.file.flush()?;
            space.end = at + padded;
            header.table_offset = at;
            header.entries = needed;
            header.raw.table_offset = at.into();
            header.raw.max_table_entries = u32::try_from(needed)
                .map_err(|_| Error::limit("a VHD has at most 2^32 blocks"))?
                .into();
            header.raw = header.raw.sealed();
            self.file.write_at(header.offset, header.raw.as_bytes())?;
        } else {
            self.file.write_at(header.table_offset, &bytes)?;
        }
        self.file.flush()?;
        *writing(&self.header) = header;
        Ok(())
    }
}
