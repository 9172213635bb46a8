//! Naming another disk below, or none.
//!
//! Order of writes. The new locator goes to a part of the metadata region that no item uses; it, the entry that points to it and the flags change
//! in one entry of the log. Without a disk below, blocks are whole: sectors that they lack become zero first, which nobody sees, and that
//! entry of the log changes the table too, or names another one where the changed pages are too many.

use zerocopy::IntoBytes;

use super::blocks::Piece;
use super::image::{Space, VhdxImage};
use super::journal::{Page, id_of_commit};
use super::layout::{
    Bitmap, Block, FILE_PARAMETERS, METADATA_ITEMS, MetadataEntry, PARENT_LOCATOR, REGION_TABLES, RawMetadataEntry,
    RawMetadataHeader, Region, encode_table,
};
use super::locator::Parent;
use super::metadata::{Disk, HAS_PARENT};
use super::open::Regions;
use super::write::{ENTRIES, FILE_CHANGED};
use crate::formats::common::{exclusive, lock, shared};
use crate::image::{BackingReference, Image};
use crate::{Error, Result};

/// Changes what lies below an overlay; without `below` its recorded identity stays (the disk was moved or renamed).
pub fn change(image: &VhdxImage, backing: Option<&BackingReference>, below: Option<&dyn Image>) -> Result<()> {
    let Some(old) = shared(&image.parent).clone() else {
        return match backing {
            None => Ok(()),
            Some(_) => Err(Error::unsupported(
                "only a differencing VHDX can have a backing file; convert the image into one",
            )),
        };
    };
    let parent = match backing {
        Some(backing) => {
            let ids = identity(image, backing, below)?.map_or(old.ids, |id| vec![id]);
            Some(Parent::named(ids, &backing.name)?)
        }
        None => None,
    };
    put_parent(image, parent)
}

/// Before a commit into the disk below: lets the disk know it as it will be.
pub fn expect_change(image: &VhdxImage, below: &dyn Image) -> Result<()> {
    let (Some(mut parent), Some(id)) = (shared(&image.parent).clone(), id_of_layer(below)) else {
        return Ok(());
    };
    parent.ids = vec![id_of_commit(id)];
    put_parent(image, Some(parent))
}

/// The data-write id of a disk.
pub fn id_of_layer(image: &dyn Image) -> Option<uuid::Uuid> {
    let id = image.layer_id().filter(|_| image.format() == "vhdx")?;
    uuid::Uuid::parse_str(&id).ok()
}

fn put_parent(image: &VhdxImage, parent: Option<Parent>) -> Result<()> {
    match parent {
        // It is said to show the same.
        Some(_) => image.note_change(FILE_CHANGED, b"backing")?,
        None => image.start(b"backing")?,
    }
    let space = &mut *lock(&image.space);
    image.flush_locked(space)?;
    let table = match parent {
        Some(_) => shared(&image.bat).clone(),
        None => image.whole_blocks()?,
    };
    let (disk, changes) = image.metadata_with(space, parent.as_ref())?;
    let mut pages = image.patched(&changes)?;
    let regions = image.name_table(space, &table, &mut pages)?;
    image.commit(space, &pages)?;
    image.bits.clear();
    space.regions = regions;
    *exclusive(&image.geometry) = disk.geometry;
    *exclusive(&image.disk) = disk;
    *exclusive(&image.parent) = parent;
    *exclusive(&image.bat) = table;
    let entries = usize::try_from(image.geometry().entries()).unwrap_or(usize::MAX);
    exclusive(&image.bat).resize(entries, 0);
    Ok(())
}

/// The id to record; `None` keeps the old one.
fn identity(image: &VhdxImage, backing: &BackingReference, below: Option<&dyn Image>) -> Result<Option<uuid::Uuid>> {
    if let Some(format) = backing.format.as_deref().filter(|f| *f != "vhdx") {
        return Err(Error::unsupported(format!(
            "the disk below a VHDX is a VHDX, not of format '{}'",
            format.escape_debug()
        )));
    }
    let Some(below) = below else { return Ok(None) };
    if below.format() != "vhdx" || below.virtual_size() != image.virtual_size() {
        return Err(Error::unsupported(format!(
            "the disk below a VHDX is a VHDX of the same size, {} bytes; this one is of format '{}' with {} bytes",
            image.virtual_size(),
            below.format(),
            below.virtual_size()
        )));
    }
    Ok(id_of_layer(below))
}

/// Bytes of the file that change: place and value.
type Changes = Vec<(u64, Vec<u8>)>;

impl VhdxImage {
    /// Writes zeroes to the sectors that partially present blocks lack, makes them stable, and gives the table without such blocks.
    fn whole_blocks(&self) -> Result<Vec<u64>> {
        let geometry = self.geometry();
        let mut table = shared(&self.bat).clone();
        let mut put = |index: u64, entry: u64| {
            let slot = usize::try_from(index).ok().and_then(|at| table.get_mut(at));
            slot.into_iter().for_each(|slot| *slot = entry);
        };
        for block in 0..geometry.blocks() {
            put(geometry.bitmap_index(block), Bitmap::NotPresent.encode());
            let Block::Partial(place) = self.block(&geometry, block)? else {
                continue;
            };
            let mut from = 0;
            while from < geometry.block {
                let len = geometry.block - from;
                let (present, len) = self.run(&geometry, Piece { block, from, len })?;
                if !present {
                    self.file.write_zeroes(place + from, len, true)?;
                }
                from += len;
            }
            put(geometry.index(block), Block::Full(place).encode());
        }
        self.file.flush()?;
        Ok(table)
    }

    /// Adds what makes `table` the image's to the pages of one entry of the log.
    fn name_table(&self, space: &mut Space, table: &[u64], pages: &mut Vec<Page>) -> Result<Regions> {
        let changed: Vec<u64> = {
            let now = shared(&self.bat);
            let pages = table
                .chunks(ENTRIES as usize)
                .zip(now.chunks(ENTRIES as usize))
                .zip(0u64..);
            pages.filter(|((new, old), _)| new != old).map(|(_, n)| n).collect()
        };
        if pages.len() + changed.len() <= space.journal.most() {
            for page in changed {
                pages.push(self.table_page(table, space.regions.bat.offset, page)?);
            }
            return Ok(space.regions.clone());
        }
        let regions = self.copy_table(space, table, space.regions.bat.length)?;
        let names = encode_table(&regions.all);
        pages.extend(self.patched(&REGION_TABLES.map(|copy| (copy, names.clone())))?);
        Ok(regions)
    }

    /// What another parent makes of the metadata, and the bytes of the file that change.
    fn metadata_with(&self, space: &Space, parent: Option<&Parent>) -> Result<(Disk, Changes)> {
        let mut disk = shared(&self.disk).clone();
        disk.parent = parent.cloned();
        let of = |id, entries: &[MetadataEntry]| {
            let found = entries.iter().position(|e| e.id == id && !e.user);
            found.ok_or_else(|| Error::corrupt(format!("the metadata have no item {id}")))
        };
        let position = of(PARENT_LOCATOR, &disk.entries)?;
        let region = space.regions.metadata;
        let changes = match parent {
            Some(parent) => {
                let bytes = parent.encode()?;
                let offset = room(&disk.entries, position, bytes.len(), region.length)?;
                if let Some(entry) = disk.entries.get_mut(position) {
                    (entry.offset, entry.length) = (offset, bytes.len());
                }
                vec![
                    (entry_place(&region, position), locator_entry(offset, bytes.len())?),
                    (region.offset + offset, bytes),
                ]
            }
            None => {
                let parameters = of(FILE_PARAMETERS, &disk.entries)?;
                let parameters = disk.entries.get(parameters).map_or(0, |e| e.offset);
                // The last entry takes the place of the one that goes.
                let last = entry_place(&region, disk.entries.len() - 1);
                let moved = crate::storage::read_vec(self.file.as_ref(), last, size_of::<RawMetadataEntry>())?;
                disk.entries.swap_remove(position);
                disk.flags &= !HAS_PARENT;
                disk.geometry.overlay = false;
                let count = u16::try_from(disk.entries.len()).unwrap_or(0);
                vec![
                    (entry_place(&region, position), moved),
                    (last, vec![0; size_of::<RawMetadataEntry>()]),
                    (region.offset + 10, count.to_le_bytes().to_vec()),
                    (region.offset + parameters + 4, disk.flags.to_le_bytes().to_vec()),
                ]
            }
        };
        Ok((disk, changes))
    }
}

/// Place of an entry of the metadata table.
fn entry_place(region: &Region, at: usize) -> u64 {
    region.offset + (size_of::<RawMetadataHeader>() + at * size_of::<RawMetadataEntry>()) as u64
}

/// Where a locator of `len` bytes goes: behind all items; where there is no room left, over the old one.
fn room(entries: &[MetadataEntry], old: usize, len: usize, region: u64) -> Result<u64> {
    let ends = entries.iter().map(|e| e.offset + e.length as u64);
    let offset = ends
        .max()
        .unwrap_or(0)
        .max(u64::from(METADATA_ITEMS))
        .next_multiple_of(8);
    if offset + len as u64 <= region {
        return Ok(offset);
    }
    let old = entries.get(old).filter(|e| len <= e.length);
    old.map(|e| e.offset)
        .ok_or_else(|| Error::unsupported("the metadata region has no room for the name of the disk below"))
}

fn locator_entry(offset: u64, length: usize) -> Result<Vec<u8>> {
    let narrow = |n: u64| u32::try_from(n).map_err(|_| Error::invalid("the name of the disk below is too long"));
    let entry = RawMetadataEntry {
        id: PARENT_LOCATOR.to_bytes_le(),
        offset: narrow(offset)?.into(),
        length: narrow(length as u64)?.into(),
        flags: 4.into(),
        reserved: 0.into(),
    };
    Ok(entry.as_bytes().to_vec())
}
