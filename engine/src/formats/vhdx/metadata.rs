//! What the metadata region says about the disk.

use super::layout::{
    DISK_ID, FILE_PARAMETERS, Geometry, LOGICAL_SECTOR, MAX_SIZE, METADATA_ITEMS, MIB, MetadataEntry, PARENT_LOCATOR,
    PHYSICAL_SECTOR, Region, VIRTUAL_SIZE,
};
use super::locator::Parent;
use crate::storage::read_vec;
use crate::{Error, Result, Storage};

/// The smallest and the largest block.
pub const BLOCKS: std::ops::RangeInclusive<u64> = MIB..=256 * MIB;
/// Flag of the file parameters: space is never given back (a fixed disk).
pub const LEAVE_ALLOCATED: u32 = 1;
/// Flag of the file parameters: there is a disk below.
pub const HAS_PARENT: u32 = 2;

/// The disk's parameters, checked.
#[derive(Debug, Clone)]
pub struct Disk {
    /// Block, sector and virtual size.
    pub geometry: Geometry,
    /// Flags of the file parameters.
    pub flags: u32,
    /// What is below.
    pub parent: Option<Parent>,
    /// All items.
    pub entries: Vec<MetadataEntry>,
}

/// The items of one region.
struct Items<'a> {
    storage: &'a dyn Storage,
    region: &'a Region,
    entries: &'a [MetadataEntry],
}

impl Items<'_> {
    fn find(&self, id: uuid::Uuid) -> Option<&MetadataEntry> {
        self.entries.iter().find(|e| e.id == id && !e.user)
    }
    /// An item of exactly `N` bytes.
    fn get<const N: usize>(&self, id: uuid::Uuid, name: &str) -> Result<Option<[u8; N]>> {
        let Some(entry) = self.find(id) else { return Ok(None) };
        if entry.length < N {
            return Err(Error::corrupt(format!(
                "expected {N} bytes of {name}, found {}",
                entry.length
            )));
        }
        let bytes = read_vec(self.storage, self.region.offset + entry.offset, N)?;
        Ok(bytes.as_slice().try_into().ok())
    }
    fn need<const N: usize>(&self, id: uuid::Uuid, name: &str) -> Result<[u8; N]> {
        self.get(id, name)?
            .ok_or_else(|| Error::corrupt(format!("the metadata have no {name}")))
    }
}

/// Reads and checks the metadata.
///
/// # Errors
/// `Corrupt` and `Unsupported` that name the item.
pub fn read(storage: &dyn Storage, region: &Region) -> Result<Disk> {
    let table = read_vec(storage, region.offset, METADATA_ITEMS as usize)?;
    let entries = MetadataEntry::table(&table, region.length)?;
    refuse_unknown(&entries)?;
    refuse_overlaps(&entries)?;
    let items = Items {
        storage,
        region,
        entries: &entries,
    };
    let parameters: [u8; 8] = items.need(FILE_PARAMETERS, "file parameters")?;
    let [a, b, c, d, e, f, g, h] = parameters;
    let (block, flags) = (
        u64::from(u32::from_le_bytes([a, b, c, d])),
        u32::from_le_bytes([e, f, g, h]),
    );
    if !block.is_power_of_two() || !BLOCKS.contains(&block) {
        return Err(Error::corrupt(format!(
            "expected a block size from 1 to 256 MiB, a power of two, found {block}"
        )));
    }
    let sector = u64::from(u32::from_le_bytes(items.need(LOGICAL_SECTOR, "logical sector size")?));
    let physical = items
        .get(PHYSICAL_SECTOR, "physical sector size")?
        .map(u32::from_le_bytes);
    if !matches!(sector, 512 | 4096) || !matches!(physical, None | Some(512 | 4096)) {
        return Err(Error::corrupt(format!(
            "expected sector sizes of 512 or 4096 bytes, found {sector} and {}",
            physical.unwrap_or(512)
        )));
    }
    let size = u64::from_le_bytes(items.need(VIRTUAL_SIZE, "virtual size")?);
    if size > MAX_SIZE || !size.is_multiple_of(sector) {
        return Err(Error::corrupt(format!(
            "expected a virtual size of whole sectors up to 64 TiB, found {size}"
        )));
    }
    let overlay = flags & HAS_PARENT != 0;
    let parent = match items.find(PARENT_LOCATOR) {
        Some(entry) if overlay => {
            let bytes = read_vec(storage, region.offset + entry.offset, entry.length)?;
            Some(Parent::read(&bytes)?)
        }
        None if overlay => return Err(Error::corrupt("the differencing disk does not name the disk below")),
        _ => None,
    };
    Ok(Disk {
        geometry: Geometry {
            block,
            sector,
            size,
            overlay,
        },
        flags,
        parent,
        entries,
    })
}

fn refuse_overlaps(entries: &[MetadataEntry]) -> Result<()> {
    let mut stored: Vec<_> = entries.iter().filter(|e| e.length > 0).collect();
    stored.sort_unstable_by_key(|e| e.offset);
    for (a, b) in stored.iter().zip(stored.iter().skip(1)) {
        if b.offset - a.offset < a.length as u64 {
            return Err(Error::corrupt(format!(
                "the metadata items {} and {} overlap at {:#x}",
                a.id, b.id, b.offset
            )));
        }
    }
    Ok(())
}

fn refuse_unknown(entries: &[MetadataEntry]) -> Result<()> {
    let known = [
        FILE_PARAMETERS,
        VIRTUAL_SIZE,
        DISK_ID,
        LOGICAL_SECTOR,
        PHYSICAL_SECTOR,
        PARENT_LOCATOR,
    ];
    if let Some(entry) = entries
        .iter()
        .find(|e| e.required && (e.user || !known.contains(&e.id)))
    {
        return Err(Error::unsupported(format!(
            "the metadata item {} must be known, but is not",
            entry.id
        )));
    }
    let mut ids: Vec<_> = entries.iter().map(|e| (e.id, e.user)).collect();
    ids.sort_unstable();
    if let Some(pair) = ids.windows(2).find(|pair| pair.first() == pair.last()) {
        let id = pair.first().map(|(id, _)| id.to_string()).unwrap_or_default();
        return Err(Error::corrupt(format!("the metadata item {id} is there twice")));
    }
    Ok(())
}
