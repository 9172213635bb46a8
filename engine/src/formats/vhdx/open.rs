//! From the bytes of a file to a checked image.

use std::sync::Arc;

use super::journal::Headers;
use super::layout::{
    BAT_REGION, Bitmap, Block, Geometry, HEADERS, Header, METADATA_REGION, MIB, PAGE, REGION_TABLE, REGION_TABLES,
    Region, has_file_type,
};
use super::log::{self, Replayed};
use super::metadata::{self, Disk};
use crate::formats::findings::{Findings, Fix, Severity};
use crate::storage::{read_padded, read_vec};
use crate::{Error, OpenEnv, Result, Storage, StorageRef};

/// An image as it stands in the file.
#[derive(Debug)]
pub struct Opened {
    /// The file, or what it would be after the replay of its log.
    pub storage: StorageRef,
    /// The header that counts, checked.
    pub header: Header,
    /// The same with its place.
    pub headers: Headers,
    /// All regions.
    pub regions: Regions,
    /// What the metadata say.
    pub disk: Disk,
    /// The table's entries, as many as the disk needs.
    pub bat: Vec<u64>,
    /// The log held something that was not done.
    pub replayed: bool,
    /// What is wrong.
    pub findings: Findings,
}

/// The region table.
#[derive(Debug, Clone)]
pub struct Regions {
    /// All of them.
    pub all: Vec<Region>,
    /// The block allocation table.
    pub bat: Region,
    /// The metadata.
    pub metadata: Region,
}

/// Reads and checks everything but guest data. A log that is in use is replayed: in the file when the image is to be written, else in
/// memory.
///
/// # Errors
/// `NotThisFormat`, `Corrupt`, `Unsupported`, `LimitExceeded`; what only `check` may see goes into the findings.
pub fn read(file: &StorageRef, env: &OpenEnv<'_>) -> Result<Opened> {
    let mut head = [0; 8];
    read_padded(file.as_ref(), 0, &mut head)?;
    if !has_file_type(&head) {
        return Err(Error::not_this_format("expected \"vhdxfile\" at the front of the file"));
    }
    let mut findings = Findings::default();
    let (mut header, mut headers) = current_header(file.as_ref(), &mut findings)?;
    let file_len = file.len()?;
    if header
        .log_offset
        .checked_add(header.log_length)
        .is_none_or(|end| end > file_len)
    {
        return Err(Error::corrupt(format!(
            "the log of {:#x} bytes at {:#x} ends past the end of the file at {file_len:#x}",
            header.log_length, header.log_offset
        )));
    }
    let replay = match log::find(file.as_ref(), &header, env.limits) {
        Err(error) if env.for_check && error.kind() == crate::ErrorKind::Corrupt => {
            findings.add(Severity::Refuse, Fix::None, error.to_string());
            None
        }
        found => found?,
    };
    let mut storage = file.clone();
    let replayed = replay.is_some();
    if let Some(replay) = replay {
        if env.writable {
            // The regions may be what the log changes: only a replay in memory shows whether the result can be opened.
            let preview: StorageRef = Arc::new(Replayed::new(file.clone(), replay.clone()));
            let regions = regions(preview.as_ref(), &header, &mut Findings::default())?;
            metadata::read(preview.as_ref(), &regions.metadata)?;
            replay.apply(file.as_ref())?;
            headers.update(file.as_ref(), |raw| raw.log_guid = [0; 16])?;
            header.raw = headers.raw;
            header.log_in_use = false;
        } else {
            storage = Arc::new(Replayed::new(file.clone(), replay));
        }
    }
    let regions = regions(storage.as_ref(), &header, &mut findings)?;
    let disk = metadata::read(storage.as_ref(), &regions.metadata)?;
    if disk.geometry.size > env.limits.virtual_size {
        return Err(Error::limit(format!(
            "the virtual size {} exceeds the limit of {} bytes",
            disk.geometry.size, env.limits.virtual_size
        )));
    }
    let bat = read_bat(storage.as_ref(), &regions.bat, &disk.geometry, env)?;
    check_bat(
        &bat,
        &disk.geometry,
        &taken(&regions, &header),
        storage.len()?,
        &mut findings,
    );
    Ok(Opened {
        storage,
        header,
        headers,
        regions,
        disk,
        bat,
        replayed,
        findings,
    })
}

/// The sound header with the larger number; of two that are the same the first.
fn current_header(storage: &dyn Storage, findings: &mut Findings) -> Result<(Header, Headers)> {
    let mut sound = Vec::new();
    for (slot, place) in HEADERS.iter().enumerate() {
        let mut page = vec![0; PAGE as usize];
        read_padded(storage, *place, &mut page)?;
        if Header::is_sound(&page) {
            sound.push((slot, page));
        } else {
            findings.add(
                Severity::Note,
                Fix::Copies,
                format!("the header at {place:#x} is damaged"),
            );
        }
    }
    let mut found = Vec::new();
    for (slot, page) in &sound {
        let header = Header::checked(page)?;
        found.push((header.raw.sequence.get(), *slot, header));
    }
    if let [(first, _, a), (second, _, b)] = found.as_slice()
        && first == second
        && a.raw != b.raw
    {
        return Err(Error::corrupt(format!(
            "both headers have the number {first}, but they differ"
        )));
    }
    let best = found
        .into_iter()
        .max_by_key(|(sequence, slot, _)| (*sequence, std::cmp::Reverse(*slot)));
    let (_, slot, header) = best.ok_or_else(|| Error::corrupt("neither of the two headers is sound"))?;
    Ok((header, Headers { raw: header.raw, slot }))
}

fn regions(storage: &dyn Storage, header: &Header, findings: &mut Findings) -> Result<Regions> {
    let mut tables = Vec::new();
    for place in REGION_TABLES {
        let mut bytes = vec![0; REGION_TABLE as usize];
        read_padded(storage, place, &mut bytes)?;
        if Region::is_sound_table(&bytes) {
            tables.push(bytes);
        } else {
            findings.add(
                Severity::Note,
                Fix::Copies,
                format!("the region table at {place:#x} is damaged"),
            );
        }
    }
    if let [first, second] = tables.as_slice()
        && first != second
    {
        // The first is written first, so that a crash in between leaves this.
        findings.add(Severity::Note, Fix::Copies, "the two region tables differ");
    }
    let table = tables
        .first()
        .ok_or_else(|| Error::corrupt("neither of the two region tables is sound"))?;
    let all = Region::table(table)?;
    let known = [BAT_REGION, METADATA_REGION];
    if let Some(region) = all.iter().find(|r| r.required && !known.contains(&r.id)) {
        return Err(Error::unsupported(format!(
            "the region {} must be known, but is not",
            region.id
        )));
    }
    let one = |id: uuid::Uuid, name: &str| {
        let mut found = all.iter().filter(|r| r.id == id);
        match (found.next(), found.next()) {
            (Some(region), None) => Ok(*region),
            (None, _) => Err(Error::corrupt(format!("there is no {name} region"))),
            _ => Err(Error::corrupt(format!("there are several {name} regions"))),
        }
    };
    let (bat, metadata) = (one(BAT_REGION, "BAT")?, one(METADATA_REGION, "metadata")?);
    let regions = Regions { all, bat, metadata };
    let len = storage.len()?;
    let mut taken = taken(&regions, header);
    taken.sort_unstable();
    let overlap = taken.iter().zip(taken.iter().skip(1)).find(|(a, b)| b.0 < a.1);
    if let Some((a, b)) = overlap {
        return Err(Error::corrupt(format!(
            "the regions at {:#x} and {:#x} overlap",
            a.0, b.0
        )));
    }
    if let Some((start, end)) = taken.iter().find(|(_, end)| *end > len) {
        return Err(Error::corrupt(format!(
            "the region from {start:#x} to {end:#x} ends past the end of the file at {len:#x}"
        )));
    }
    Ok(regions)
}

/// Ranges (start, end) that belong to headers, log and regions.
pub fn taken(regions: &Regions, header: &Header) -> Vec<(u64, u64)> {
    let mut taken: Vec<_> = regions.all.iter().map(|r| (r.offset, r.offset + r.length)).collect();
    taken.push((0, MIB));
    taken.push((header.log_offset, header.log_offset + header.log_length));
    taken
}

fn read_bat(storage: &dyn Storage, region: &Region, geometry: &Geometry, env: &OpenEnv<'_>) -> Result<Vec<u64>> {
    let bytes = geometry.entries() * 8;
    if bytes > region.length {
        return Err(Error::corrupt(format!(
            "expected a BAT of at least {bytes} bytes, found {}",
            region.length
        )));
    }
    if bytes > env.limits.table_bytes {
        return Err(Error::limit(format!(
            "a BAT of {bytes} bytes is over the limit of {}",
            env.limits.table_bytes
        )));
    }
    let len = usize::try_from(bytes).map_err(|_| Error::limit("the BAT exceeds the address space"))?;
    let bytes = read_vec(storage, region.offset, len)?;
    Ok(bytes
        .as_chunks::<8>()
        .0
        .iter()
        .map(|b| u64::from_le_bytes(*b))
        .collect())
}

/// Looks for entries that cannot be, and for blocks outside the file, over regions or over each other.
pub fn check_bat(bat: &[u64], geometry: &Geometry, taken: &[(u64, u64)], len: u64, findings: &mut Findings) {
    let mut refuse = |message: String| findings.add(Severity::Refuse, Fix::None, message);
    let mut places: Vec<(u64, u64, u64)> = taken.iter().map(|(start, end)| (*start, *end, u64::MAX)).collect();
    for (index, entry) in (0u64..).zip(bat).filter(|(_, entry)| **entry != 0) {
        let found = if geometry.is_bitmap(index) {
            match Bitmap::decode(*entry) {
                Ok(Bitmap::Present(place)) => Ok(Some((place, place + MIB, MIB))),
                other => other.map(|_| None),
            }
        } else {
            payload(bat, *entry, geometry, geometry.block_of(index))
        };
        match found {
            Err(error) => refuse(format!("BAT entry {index}: {}", error.what())),
            Ok(None) => {}
            Ok(Some((start, _, needed))) if start.checked_add(needed).is_none_or(|end| end > len) => {
                refuse(format!(
                    "BAT entry {index}: the block at {start:#x} ends past the end of the file at {len:#x}"
                ));
            }
            Ok(Some((start, end, _))) => places.push((start, end, index)),
        }
    }
    places.sort_unstable();
    for (a, b) in places.iter().zip(places.iter().skip(1)).filter(|(a, b)| b.0 < a.1) {
        let name = |index: u64| match index {
            u64::MAX => "a region".to_owned(),
            index => format!("entry {index}"),
        };
        refuse(format!(
            "{} and {} of the BAT share the place {:#x}",
            name(a.2),
            name(b.2),
            b.0
        ));
    }
}

/// Start, end and bytes needed of a payload block that has a place.
fn payload(bat: &[u64], entry: u64, geometry: &Geometry, block: u64) -> Result<Option<(u64, u64, u64)>> {
    let decoded = Block::decode(entry)?;
    if let Block::Partial(_) = decoded {
        if !geometry.overlay {
            return Err(Error::corrupt(
                "a block is partially present, but there is no disk below",
            ));
        }
        let index = usize::try_from(geometry.bitmap_index(block)).unwrap_or(usize::MAX);
        let bitmap = bat.get(index).copied().unwrap_or(0);
        if !matches!(Bitmap::decode(bitmap), Ok(Bitmap::Present(_))) {
            return Err(Error::corrupt(
                "a block is partially present, but its sector bitmap is not there",
            ));
        }
    }
    let needed = geometry.size.saturating_sub(block * geometry.block).min(geometry.block);
    let place = decoded.place();
    place
        .map(|start| {
            let end = start.checked_add(geometry.block);
            end.map(|end| (start, end, needed))
                .ok_or_else(|| Error::corrupt(format!("the block at {start:#x} ends past 2^64")))
        })
        .transpose()
}
