//! New images, as qemu-img makes them: footer, header and table of a dynamic disk without gaps, blocks of 2 MiB.

use zerocopy::big_endian::U16;
use zerocopy::{FromZeros, IntoBytes};

use super::geometry::{Geometry, SizeRule};
use super::layout::{
    DiskKind, EPOCH, FOOTER, FOOTER_COOKIE, HEADER, HEADER_COOKIE, MAX_SECTORS, NOWHERE, RawFooter, RawHeader, SECTOR,
    UNUSED, VERSION,
};
use super::{locator, open};
use crate::env::{BackingReference, CreateSpec};
use crate::formats::common::{check_table, with_holes};
use crate::formats::{Bound, MeasureSpec, Measurement};
use crate::gate::{Reference, Role};
use crate::options::Options;
use crate::{CreateEnv, Error, Result, StorageRef};

/// Guest bytes of a block in a new image.
const BLOCK: u32 = 2 << 20;
/// Bytes before the first structure of variable size.
const FIXED_PART: u64 = FOOTER + HEADER;

/// What the options ask for.
struct Plan {
    kind: DiskKind,
    geometry: Geometry,
    size: u64,
    /// Whether the size is in the size field alone.
    exact: bool,
    parent: Option<Parent>,
}

struct Parent {
    name: String,
    id: [u8; 16],
}

/// Makes a new image.
pub fn create(storage: &StorageRef, spec: &CreateSpec, env: &CreateEnv<'_>) -> Result<()> {
    if !storage.can_resize() {
        return Err(Error::unsupported(
            "a VHD is made in a file, which has its footer at the end",
        ));
    }
    let plan = plan(storage, spec, env)?;
    if plan.kind != DiskKind::Fixed {
        check_table("the table", entries(plan.size) * 4, env.limits)?;
    }
    let footer = footer(&plan, env);
    let end = match plan.kind {
        DiskKind::Fixed => plan.size,
        _ => sparse(storage, &plan, &footer)?,
    };
    storage.write_at(end, footer.as_bytes())
}

fn kind_of(options: &Options, backing: bool) -> Result<DiskKind> {
    match (options.get("subformat"), backing) {
        (None | Some("dynamic"), false) => Ok(DiskKind::Dynamic),
        (Some("fixed"), false) => Ok(DiskKind::Fixed),
        (None | Some("differencing"), true) => Ok(DiskKind::Differencing),
        (Some("differencing"), false) => Err(Error::invalid("a differencing VHD needs a backing file")),
        (other, _) => Err(Error::invalid(format!(
            "subformat '{}' cannot have a backing file; only 'differencing' can",
            other.unwrap_or("dynamic")
        ))),
    }
}

fn plan(storage: &StorageRef, spec: &CreateSpec, env: &CreateEnv<'_>) -> Result<Plan> {
    let kind = kind_of(&spec.options, spec.backing.is_some())?;
    if let Some(backing) = &spec.backing {
        return overlay(storage, backing, spec, env);
    }
    let exact = spec.options.flag("force_size")?.unwrap_or(false);
    let (geometry, sectors) = rounded(spec.virtual_size, exact)?;
    Ok(Plan {
        kind,
        geometry,
        size: sectors * SECTOR,
        exact,
        parent: None,
    })
}

/// Geometry and sectors for a size in bytes.
fn rounded(size: u64, exact: bool) -> Result<(Geometry, u64)> {
    let sectors = size.div_ceil(SECTOR);
    let (geometry, total) = if exact {
        (Geometry::MAX, sectors)
    } else {
        Geometry::holding(sectors)
    };
    if sectors > MAX_SECTORS {
        return Err(Error::invalid(format!("a VHD has at most 2040 GiB, not {size} bytes")));
    }
    if sectors == 0 && !exact {
        let none = Geometry {
            cylinders: 0,
            heads: 0,
            sectors: 0,
        };
        return Ok((none, 0));
    }
    Ok((geometry, total))
}

/// An overlay has the size and the geometry of the disk below, and its id.
fn overlay(storage: &StorageRef, backing: &BackingReference, spec: &CreateSpec, env: &CreateEnv<'_>) -> Result<Plan> {
    let format = backing.format.as_deref().unwrap_or("vpc");
    if !matches!(format, "vpc" | "vhd") {
        return Err(Error::unsupported(format!(
            "the disk below a VHD is a VHD, not of format '{}'",
            format.escape_debug()
        )));
    }
    let node = env.gate.open(&Reference {
        name: &backing.name,
        format: Some("vpc"),
        role: Role::Backing,
        from: storage,
        writable: false,
    })?;
    let below = open::read(node.storage.as_ref(), SizeRule::Creator, env.limits)
        .map_err(|e| e.at(node.storage.name().to_owned()))?;
    let wanted = spec.virtual_size.next_multiple_of(SECTOR);
    if wanted != below.size {
        return Err(Error::invalid(format!(
            "a differencing VHD has the size of the disk below, {} bytes, not {wanted}",
            below.size
        )));
    }
    let geometry = below.footer.raw.geometry();
    Ok(Plan {
        kind: DiskKind::Differencing,
        geometry,
        size: below.size,
        exact: geometry.total() * SECTOR != below.size,
        parent: Some(Parent {
            name: backing.name.clone(),
            id: below.footer.raw.unique_id,
        }),
    })
}

fn footer(plan: &Plan, env: &CreateEnv<'_>) -> RawFooter {
    let mut unique_id = [0; 16];
    (env.random)(&mut unique_id);
    let data_offset = if plan.kind == DiskKind::Fixed { NOWHERE } else { FOOTER };
    RawFooter {
        cookie: *FOOTER_COOKIE,
        features: 2.into(),
        version: VERSION.into(),
        data_offset: data_offset.into(),
        timestamp: u32::try_from(env.now.saturating_sub(EPOCH)).unwrap_or(u32::MAX).into(),
        creator: if plan.exact { *b"qem2" } else { *b"qemu" },
        creator_version: 0x0005_0003.into(),
        creator_os: *b"Wi2k",
        original_size: plan.size.into(),
        current_size: plan.size.into(),
        cylinders: plan.geometry.cylinders.into(),
        heads: plan.geometry.heads,
        sectors: plan.geometry.sectors,
        disk_type: plan.kind.code().into(),
        checksum: 0.into(),
        unique_id: uuid::Builder::from_random_bytes(unique_id).into_uuid().into_bytes(),
        saved_state: 0,
        reserved: [0; 427],
    }
    .sealed()
}

fn entries(size: u64) -> u64 {
    size.div_ceil(u64::from(BLOCK))
}

/// Writes front footer, header, names and table; gives where the footer at the end goes.
fn sparse(storage: &StorageRef, plan: &Plan, footer: &RawFooter) -> Result<u64> {
    let mut header = RawHeader::new_zeroed();
    let mut table_offset = FIXED_PART;
    if let Some(parent) = &plan.parent {
        let (platform, name) = locator::to_stored(&parent.name)?;
        storage.write_at(table_offset, &name)?;
        let space = (name.len() as u64).next_multiple_of(SECTOR);
        let narrow = |n: u64| u32::try_from(n).map_err(|_| Error::invalid("the name of the disk below is too long"));
        header.parent_unique_id = parent.id;
        header.parent_name = locator::header_name(&parent.name);
        if let Some(first) = header.locators.first_mut() {
            first.platform = platform;
            first.space = narrow(space)?.into();
            first.length = narrow(name.len() as u64)?.into();
            first.offset = table_offset.into();
        }
        table_offset += space;
    } else {
        header.parent_name = [U16::ZERO; 256];
    }
    let entries = entries(plan.size);
    header.cookie = *HEADER_COOKIE;
    header.data_offset = NOWHERE.into();
    header.table_offset = table_offset.into();
    header.version = VERSION.into();
    header.max_table_entries = u32::try_from(entries).unwrap_or(UNUSED).into();
    header.block_size = BLOCK.into();
    storage.write_at(0, footer.as_bytes())?;
    storage.write_at(FOOTER, header.sealed().as_bytes())?;
    let table_len = (entries * 4).next_multiple_of(SECTOR);
    let table =
        vec![0xff; usize::try_from(table_len).map_err(|_| Error::limit("the table exceeds the address space"))?];
    storage.write_at(table_offset, &table)?;
    Ok(table_offset + table_len)
}

/// Space that a new image needs.
pub fn measure(spec: &MeasureSpec<'_>) -> Result<Measurement> {
    let exact = spec.options.flag("force_size")?.unwrap_or(false);
    let size = rounded(spec.virtual_size, exact)?.1 * SECTOR;
    if kind_of(spec.options, spec.backing)? == DiskKind::Fixed {
        return Ok(Measurement {
            required: size + FOOTER,
            fully_allocated: size + FOOTER,
            bitmaps: None,
        });
    }
    let block = u64::from(BLOCK);
    let (mut used, mut next) = (0, 0);
    for (offset, len) in spec.data.iter().filter(|(_, len)| *len > 0) {
        let first = (offset / block).max(next);
        let last = offset.saturating_add(*len).div_ceil(block);
        used += last.saturating_sub(first);
        next = next.max(last);
    }
    let metadata = FIXED_PART + (entries(size) * 4).next_multiple_of(SECTOR) + FOOTER;
    let stored = block + SECTOR;
    Ok(Measurement {
        required: metadata + used * stored,
        fully_allocated: metadata + entries(size) * stored,
        bitmaps: None,
    })
}

/// What the file comes to at most.
pub fn bound(spec: &MeasureSpec<'_>) -> Result<Bound> {
    let len = measure(spec)?.required;
    Ok(match kind_of(spec.options, spec.backing)? {
        DiskKind::Fixed => with_holes(len, FOOTER, 0, spec.data),
        _ => Bound::dense(len),
    })
}
