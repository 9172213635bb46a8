//! New images, laid out as qemu-img lays them out: headers, log, table, metadata, and blocks from 4 MiB behind the metadata on.

use zerocopy::IntoBytes;

use super::layout::{
    BAT_REGION, Block, DISK_ID, FILE_PARAMETERS, Geometry, HEADERS, LOGICAL_SECTOR, MAX_SIZE, METADATA, METADATA_ITEMS,
    METADATA_REGION, MIB, PARENT_LOCATOR, PHYSICAL_SECTOR, REGION_TABLES, RawHeader, RawMetadataEntry,
    RawMetadataHeader, Region, VIRTUAL_SIZE, encode_table, file_type,
};
use super::locator::Parent;
use super::metadata::{BLOCKS, HAS_PARENT, LEAVE_ALLOCATED};
use super::open;
use crate::env::{BackingReference, CreateSpec};
use crate::formats::common::{units_touched, with_holes};
use crate::formats::{Bound, MeasureSpec, Measurement};
use crate::gate::{Reference, Role};
use crate::options::Options;
use crate::{CreateEnv, Error, OpenEnv, Result, Storage, StorageRef};

/// Sector size of a new disk.
const SECTOR: u64 = 512;
/// Space between the metadata and the first block.
pub(super) const SLACK: u64 = 4 * MIB;
/// The largest log: what the header can say.
const LARGEST_LOG: u64 = (u32::MAX as u64) / MIB * MIB;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Dynamic,
    Fixed,
    Differencing,
}

/// What the options ask for.
struct Plan {
    kind: Kind,
    geometry: Geometry,
    log: u64,
    /// Blocks begin as zeroes rather than as not present.
    zero: bool,
    parent: Option<Parent>,
}

impl Plan {
    fn bat(&self) -> Region {
        region(
            BAT_REGION,
            MIB + self.log,
            (self.geometry.entries() * 8).next_multiple_of(MIB).max(MIB),
        )
    }
    fn metadata(&self) -> Region {
        let bat = self.bat();
        region(METADATA_REGION, bat.offset + bat.length, MIB)
    }
    fn first_block(&self) -> u64 {
        self.metadata().offset + MIB + SLACK
    }
    /// Length of the file when the disk is all there from the start. Sizes are up to 64 TiB: no sum here can overflow.
    fn fixed_len(&self) -> u64 {
        self.first_block() + self.geometry.size.next_multiple_of(MIB)
    }
}

fn region(id: uuid::Uuid, offset: u64, length: u64) -> Region {
    Region {
        id,
        offset,
        length,
        required: true,
    }
}

/// Makes a new image.
pub fn create(storage: &StorageRef, spec: &CreateSpec, env: &CreateEnv<'_>) -> Result<()> {
    if !storage.can_resize() {
        return Err(Error::unsupported("a VHDX is made in a file, which grows"));
    }
    let plan = plan(storage, spec, env)?;
    let id = || {
        let mut bytes = [0; 16];
        (env.random)(&mut bytes);
        uuid::Builder::from_random_bytes(bytes).into_uuid().to_bytes_le()
    };
    let file = storage.as_ref();
    file.set_len(plan.first_block())?;
    file.write_at(0, &file_type("vdisk"))?;
    let mut header = RawHeader {
        signature: *b"head",
        checksum: 0.into(),
        sequence: 1.into(),
        file_write_guid: id(),
        data_write_guid: id(),
        log_guid: [0; 16],
        log_version: 0.into(),
        version: 1.into(),
        log_length: u32::try_from(plan.log)
            .map_err(|_| Error::invalid("the log is over 4 GiB"))?
            .into(),
        log_offset: MIB.into(),
    };
    for (sequence, place) in (1u64..).zip(HEADERS) {
        header.sequence = sequence.into();
        file.write_at(place, &header.encode())?;
    }
    let table = encode_table(&[plan.bat(), plan.metadata()]);
    for place in REGION_TABLES {
        file.write_at(place, &table)?;
    }
    file.write_at(plan.metadata().offset, &metadata(&plan, id())?)?;
    bat(file, &plan)
}

fn kind_of(options: &Options, backing: bool) -> Result<Kind> {
    match (options.get("subformat"), backing) {
        (None | Some("dynamic"), false) => Ok(Kind::Dynamic),
        (Some("fixed"), false) => Ok(Kind::Fixed),
        (None | Some("differencing"), true) => Ok(Kind::Differencing),
        (Some("differencing"), false) => Err(Error::invalid("a differencing VHDX needs a backing file")),
        (other, _) => Err(Error::invalid(format!(
            "subformat '{}' cannot have a backing file; only 'differencing' can",
            other.unwrap_or("dynamic")
        ))),
    }
}

/// The block size that qemu-img takes for a virtual size.
fn usual_block(size: u64) -> u64 {
    match size {
        s if s > 32 << 40 => 64 * MIB,
        s if s > 100 << 30 => 32 * MIB,
        s if s > 1 << 30 => 16 * MIB,
        _ => 8 * MIB,
    }
}

fn geometry(size: u64, options: &Options, overlay: bool) -> Result<Geometry> {
    let rounded = size.checked_next_multiple_of(SECTOR).filter(|s| *s <= MAX_SIZE);
    let size = rounded.ok_or_else(|| Error::invalid(format!("a VHDX has at most 64 TiB, not {size} bytes")))?;
    let usual = if overlay { 2 * MIB } else { usual_block(size) };
    let block = match options.size("block_size")?.unwrap_or(0) {
        0 => usual,
        asked => asked
            .checked_next_multiple_of(MIB)
            .filter(|b| b.is_power_of_two() && BLOCKS.contains(b))
            .ok_or_else(|| {
                Error::invalid(format!(
                    "the block size is a power of two from 1 to 256 MiB, not {asked}"
                ))
            })?,
    };
    Ok(Geometry {
        block,
        sector: SECTOR,
        size,
        overlay,
    })
}

/// Bytes of the log: what was asked for, in whole MiB.
fn log_size(options: &Options) -> Result<u64> {
    match options.size("log_size")?.unwrap_or(MIB).checked_next_multiple_of(MIB) {
        Some(0) => Err(Error::invalid("Log size must be a multiple of 1 MB")),
        Some(log) if log <= LARGEST_LOG => Ok(log),
        _ => Err(Error::invalid("Log size must be smaller than 4 GB")),
    }
}

fn plan(storage: &StorageRef, spec: &CreateSpec, env: &CreateEnv<'_>) -> Result<Plan> {
    let options = &spec.options;
    let kind = kind_of(options, spec.backing.is_some())?;
    let log = log_size(options)?;
    let zero = options.flag("block_state_zero")?;
    if zero == Some(true) && kind == Kind::Differencing {
        return Err(Error::invalid("block_state_zero would hide the backing file"));
    }
    if spec.virtual_size == 0 {
        return Err(Error::invalid("a VHDX is a disk of at least one sector"));
    }
    let mut geometry = geometry(spec.virtual_size, options, kind == Kind::Differencing)?;
    let parent = match &spec.backing {
        Some(backing) => {
            let (parent, below) = below(storage, backing, env)?;
            if geometry.size != below.size {
                return Err(Error::invalid(format!(
                    "a differencing VHDX has the size of the disk below, {} bytes, not {}",
                    below.size, geometry.size
                )));
            }
            geometry.sector = below.sector;
            Some(parent)
        }
        None => None,
    };
    if geometry.entries() * 8 > env.limits.table_bytes {
        return Err(Error::limit(format!(
            "blocks of {} bytes need a table over the limit of {} bytes; choose a larger block_size",
            geometry.block, env.limits.table_bytes
        )));
    }
    Ok(Plan {
        kind,
        geometry,
        log,
        zero: zero.unwrap_or(kind == Kind::Dynamic),
        parent,
    })
}

/// What an overlay has to know of the disk below.
fn below(storage: &StorageRef, backing: &BackingReference, env: &CreateEnv<'_>) -> Result<(Parent, Geometry)> {
    if let Some(format) = backing.format.as_deref().filter(|f| *f != "vhdx") {
        return Err(Error::unsupported(format!(
            "the disk below a VHDX is a VHDX, not of format '{}'",
            format.escape_debug()
        )));
    }
    let node = env.gate.open(&Reference {
        name: &backing.name,
        format: Some("vhdx"),
        role: Role::Backing,
        from: storage,
        writable: false,
    })?;
    let opened = open::read(&node.storage, &OpenEnv::closed(env.limits)).map_err(|e| e.at(node.storage.name()))?;
    let id = uuid::Uuid::from_bytes_le(opened.header.raw.data_write_guid);
    let parent = Parent::named(vec![id], &backing.name)?;
    Ok((parent, opened.disk.geometry))
}

/// The used part of the metadata region.
fn metadata(plan: &Plan, disk_id: [u8; 16]) -> Result<Vec<u8>> {
    let narrow = |n: u64| u32::try_from(n).map_err(|_| Error::invalid("a number over 32 bits"));
    let mut flags = if plan.kind == Kind::Fixed { LEAVE_ALLOCATED } else { 0 };
    if plan.parent.is_some() {
        flags |= HAS_PARENT;
    }
    let sector = narrow(plan.geometry.sector)?.to_le_bytes();
    let parameters = [narrow(plan.geometry.block)?.to_le_bytes(), flags.to_le_bytes()].concat();
    // Flags: 2 of the virtual disk, 4 must be known.
    let mut items = vec![
        (FILE_PARAMETERS, parameters, 4u32),
        (VIRTUAL_SIZE, plan.geometry.size.to_le_bytes().to_vec(), 6),
        (DISK_ID, disk_id.to_vec(), 6),
        (LOGICAL_SECTOR, sector.to_vec(), 6),
        (PHYSICAL_SECTOR, sector.to_vec(), 6),
    ];
    if let Some(parent) = &plan.parent {
        items.push((PARENT_LOCATOR, parent.encode()?, 4));
    }
    let head = RawMetadataHeader {
        signature: *METADATA,
        reserved: 0.into(),
        count: u16::try_from(items.len()).unwrap_or(0).into(),
        reserved2: [0; 20],
    };
    let (mut table, mut data) = (head.as_bytes().to_vec(), Vec::new());
    for (id, bytes, flags) in items {
        let entry = RawMetadataEntry {
            id: id.to_bytes_le(),
            offset: narrow(u64::from(METADATA_ITEMS) + data.len() as u64)?.into(),
            length: narrow(bytes.len() as u64)?.into(),
            flags: flags.into(),
            reserved: 0.into(),
        };
        table.extend_from_slice(entry.as_bytes());
        data.extend(bytes);
    }
    table.resize(METADATA_ITEMS as usize, 0);
    table.extend(data);
    Ok(table)
}

/// Writes the table where its entries are not zero.
fn bat(file: &dyn Storage, plan: &Plan) -> Result<()> {
    let (geometry, first) = (plan.geometry, plan.first_block());
    if plan.kind == Kind::Fixed {
        file.set_len(plan.fixed_len())?;
    }
    if plan.kind != Kind::Fixed && !plan.zero {
        return Ok(());
    }
    let mut bytes = Vec::new();
    for index in 0..geometry.entries() {
        let block = geometry.block_of(index);
        let entry = match plan.kind {
            _ if geometry.is_bitmap(index) => 0,
            Kind::Fixed if !plan.zero => Block::Full(first + block * geometry.block).encode(),
            _ => Block::Zero.encode(),
        };
        bytes.extend(entry.to_le_bytes());
    }
    file.write_at(plan.bat().offset, &bytes)
}

/// What is measured, as far as no other file must be opened for it.
fn measured(spec: &MeasureSpec<'_>) -> Result<Plan> {
    Ok(Plan {
        kind: kind_of(spec.options, spec.backing)?,
        geometry: geometry(spec.virtual_size, spec.options, spec.backing)?,
        log: log_size(spec.options)?,
        zero: false,
        parent: None,
    })
}

/// Space that a new image needs.
pub fn measure(spec: &MeasureSpec<'_>) -> Result<Measurement> {
    let plan = measured(spec)?;
    let (block, first) = (plan.geometry.block, plan.first_block());
    let bitmaps = if spec.backing {
        plan.geometry.blocks().div_ceil(plan.geometry.chunk()) * MIB
    } else {
        0
    };
    let fully_allocated = first + bitmaps + plan.geometry.blocks() * block;
    let used = units_touched(spec.data, block);
    let required = match plan.kind {
        Kind::Fixed => fully_allocated,
        _ => first + bitmaps.min(used * MIB) + used * block,
    };
    Ok(Measurement {
        required,
        fully_allocated,
        bitmaps: None,
    })
}

/// What the file comes to at most.
pub fn bound(spec: &MeasureSpec<'_>) -> Result<Bound> {
    let plan = measured(spec)?;
    if plan.kind != Kind::Fixed {
        return Ok(Bound::dense(measure(spec)?.required));
    }
    let first = plan.first_block();
    if spec.options.flag("block_state_zero")?.unwrap_or(false) {
        // Blocks that begin as zeroes get their places behind those that were set aside.
        let block = plan.geometry.block;
        return Ok(Bound::dense(plan.fixed_len() + units_touched(spec.data, block) * block));
    }
    Ok(with_holes(plan.fixed_len(), first, first, spec.data))
}
