//! How much space a new image needs: the bytes of all its files.

use super::create::{SparsePlan, Subformat, TABLE_BYTES, hw_version, option_word};
use super::descriptor::NewDescriptor;
use super::layout::{GRAIN_SECTORS, MAX_DESCRIPTOR, SECTOR, TABLE_ENTRIES};
use super::stream::tail_len;
use crate::formats::common::units_touched;
use crate::formats::{MeasureSpec, Measurement};
use crate::{Error, Result};

/// Guest bytes of a grain.
const GRAIN: u64 = GRAIN_SECTORS * SECTOR;
/// Bytes of the longest name of a file, and of the longest path.
const NAME: usize = 255;
const PATH: usize = 4096;

pub(super) fn measure(spec: &MeasureSpec<'_>) -> Result<Measurement> {
    let kind = Subformat::from(spec.options)?;
    let size = spec
        .virtual_size
        .checked_next_multiple_of(SECTOR)
        .ok_or_else(|| Error::invalid(format!("a virtual size of {} bytes is too large", spec.virtual_size)))?;
    let all = [(0, size)];
    let (required, fully_allocated) = match kind {
        _ if kind.flat => (size, size),
        _ if kind.stream => (stream(size, spec.data)?, stream(size, &all)?),
        _ => (sparse(kind, size, spec.data)?, sparse(kind, size, &all)?),
    };
    let descriptor = descriptor(kind, size, spec)?;
    Ok(Measurement {
        required: required.saturating_add(descriptor),
        fully_allocated: fully_allocated.saturating_add(descriptor),
        bitmaps: None,
    })
}

/// Headers with all tables, and the grains.
fn sparse(kind: Subformat, size: u64, data: &[(u64, u64)]) -> Result<u64> {
    let each = kind.extent_len(size);
    let (full, rest) = (size / each, size % each);
    let overhead_of = |len: u64| SparsePlan::new(len).map(|p| p.overhead * SECTOR);
    let overhead = full * overhead_of(each)? + if rest > 0 { overhead_of(rest)? } else { 0 };
    Ok(overhead.saturating_add(units_touched(data, GRAIN).saturating_mul(GRAIN)))
}

/// Header, grains that do not become shorter by being compressed, the tables that they need, and the end.
fn stream(size: u64, data: &[(u64, u64)]) -> Result<u64> {
    let tables = SparsePlan::new(size)?.tables;
    let grains = units_touched(data, GRAIN).saturating_mul(GRAIN + SECTOR);
    let used = units_touched(data, GRAIN * TABLE_ENTRIES).saturating_mul(SECTOR + TABLE_BYTES);
    Ok(grains.saturating_add(used).saturating_add(GRAIN + tail_len(tables)))
}

/// Bytes of a descriptor that is a file of its own, at most: its length goes with that of names that nobody knows yet.
fn descriptor(kind: Subformat, size: u64, spec: &MeasureSpec<'_>) -> Result<u64> {
    if kind.embedded() {
        return Ok(0);
    }
    let (each, path) = (kind.extent_len(size), "p".repeat(PATH));
    let line = kind.line(each.min(size), &"n".repeat(NAME));
    let more = size
        .div_ceil(each)
        .saturating_sub(1)
        .saturating_mul(line.len() as u64 + 1);
    let one = NewDescriptor {
        cid: u32::MAX,
        create_type: kind.name,
        parent: spec.backing.then_some((path.as_str(), u32::MAX - 1)),
        extents: &[line],
        hw_version: &hw_version(spec.options)?,
        tools_version: option_word(spec.options, "toolsversion", "2147483647")?,
        adapter: spec.options.get("adapter_type").unwrap_or("ide"),
        size,
    };
    Ok((one.text().len() as u64).saturating_add(more).min(MAX_DESCRIPTOR))
}
