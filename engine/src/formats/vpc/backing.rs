//! Naming another disk below, or none.
//!
//! Order of writes. Header and name are written anew behind everything else and made stable; then the footers, which say where the header
//! is, change as in a resize. A crash leaves the old pair or the new one.

use zerocopy::big_endian::U16;
use zerocopy::{FromZeros, IntoBytes};

use super::blocks::{Blocks, Space};
use super::image::{VpcImage, lock, reading, writing};
use super::layout::{DiskKind, Footer, HEADER, Header, RawLocator, SECTOR, UNUSED};
use super::locator;
use crate::image::{BackingReference, Image};
use crate::{Error, Result};

/// Changes what lies below an overlay; without `below` its recorded identity stays (the disk was moved or renamed).
pub fn change(image: &VpcImage, backing: Option<&BackingReference>, below: Option<&dyn Image>) -> Result<()> {
    let Some(blocks) = image.blocks.as_ref().filter(|b| b.is_overlay()) else {
        return match backing {
            None => Ok(()),
            Some(_) => Err(Error::unsupported(
                "only a differencing VHD can have a backing file; convert the image into one",
            )),
        };
    };
    let mut space = lock(&blocks.space);
    blocks.flush_locked(&mut space)?;
    let mut header = *reading(&blocks.header);
    let mut footer = *reading(&image.footer);
    let name = match backing {
        Some(backing) => {
            let id = identity(image, backing, below)?;
            header.raw.parent_unique_id = id.unwrap_or(header.raw.parent_unique_id);
            header.raw.parent_name = locator::header_name(&backing.name);
            Some(locator::to_stored(&backing.name)?)
        }
        None => {
            blocks.zero_what_is_below()?;
            header.raw.parent_unique_id = [0; 16];
            header.raw.parent_name = [U16::ZERO; 256];
            footer.kind = DiskKind::Dynamic;
            footer.raw.disk_type = footer.kind.code().into();
            None
        }
    };
    blocks.write_header(&mut space, header, name, &mut footer)?;
    blocks.publish(&mut space, footer)?;
    *writing(&image.footer) = footer;
    *writing(&blocks.parent) = backing.map(|b| vec![b.name.clone()]);
    Ok(())
}

/// The id to record; `None` keeps the old one.
fn identity(image: &VpcImage, backing: &BackingReference, below: Option<&dyn Image>) -> Result<Option<[u8; 16]>> {
    if let Some(format) = backing.format.as_deref().filter(|f| !matches!(*f, "vpc" | "vhd")) {
        return Err(Error::unsupported(format!(
            "the disk below a VHD is a VHD, not of format '{}'",
            format.escape_debug()
        )));
    }
    let Some(below) = below else {
        return Ok(None);
    };
    if below.format() != "vpc" || below.virtual_size() != image.virtual_size() {
        return Err(Error::unsupported(format!(
            "the disk below a VHD is a VHD of the same size, {} bytes; this one is of format '{}' with {} bytes",
            image.virtual_size(),
            below.format(),
            below.virtual_size()
        )));
    }
    let id = below.layer_id().and_then(|text| uuid::Uuid::parse_str(&text).ok());
    Ok(id.map(uuid::Uuid::into_bytes))
}

impl Blocks {
    /// Zeroes the sectors that are not in this layer: as a disk without anything below it, it shows whole blocks.
    fn zero_what_is_below(&self) -> Result<()> {
        let table = reading(&self.table).clone();
        for block in (0..table.len()).filter(|b| table.get(*b).is_some_and(|e| *e != UNUSED)) {
            let Some(place) = self.place_of(block)? else { continue };
            let bits = self.bitmaps.get(self.file.as_ref(), block, place)?;
            let mut at = 0;
            while at < self.block_size() {
                let run = bits.run(at, self.block_size() - at);
                if !run.present {
                    self.file.write_zeroes(place + self.bitmap_size + at, run.len, true)?;
                }
                at += run.len;
            }
        }
        self.file.flush()
    }

    /// Writes name and header at the end of the file, where the footer is to say they are.
    fn write_header(
        &self,
        space: &mut Space,
        mut header: Header,
        name: Option<([u8; 4], Vec<u8>)>,
        footer: &mut Footer,
    ) -> Result<()> {
        let at = space.end;
        header.raw.locators = [RawLocator::new_zeroed(); 8];
        header.offset = at;
        let mut bytes = Vec::new();
        if let (Some((platform, text)), Some(first)) = (name, header.raw.locators.first_mut()) {
            let narrow =
                |n: usize| u32::try_from(n).map_err(|_| Error::invalid("the name of the disk below is too long"));
            first.platform = platform;
            first.length = narrow(text.len())?.into();
            first.offset = at.into();
            bytes = text;
            bytes.resize(bytes.len().next_multiple_of(SECTOR as usize), 0);
            first.space = narrow(bytes.len())?.into();
            header.offset += bytes.len() as u64;
        }
        header.raw = header.raw.sealed();
        bytes.extend_from_slice(header.raw.as_bytes());
        let end = header.offset + HEADER;
        self.touched();
        self.file.write_at(end, space.footer.raw.as_bytes())?;
        self.file.write_at(at, &bytes)?;
        self.file.flush()?;
        space.end = end;
        footer.raw.data_offset = header.offset.into();
        footer.raw = footer.raw.sealed();
        *writing(&self.header) = header;
        Ok(())
    }

    /// Makes another footer the one that counts: the old one at the end is cut off, the copy at the front written, then a new one at the end.
    /// Two sound footers never differ.
    pub(super) fn publish(&self, space: &mut Space, footer: Footer) -> Result<()> {
        self.file.set_len(space.end)?;
        self.file.flush()?;
        self.file.write_at(0, footer.raw.as_bytes())?;
        self.file.flush()?;
        self.file.write_at(space.end, footer.raw.as_bytes())?;
        self.file.flush()?;
        space.footer = footer;
        Ok(())
    }
}
