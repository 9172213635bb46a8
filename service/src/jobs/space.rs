//! What files of images come to at most: their length, and the space that they take in a pool.

use vdisk_engine::formats::{self, Bound};
use vdisk_engine::ops::measure;
use vdisk_engine::options::Options;
use vdisk_engine::{Chain, Control, Image};

use crate::disk::Layer;
use crate::error::Result;

/// What file systems give space in.
const BLOCK: u64 = 4096;
/// A file system's own block with the places of a file has at least this many runs in it (ext4, where it was split).
const RUNS: u64 = 170;
/// What a run has at least, on a file system that is not badly scattered.
const RUN: u64 = 64 << 10;

/// What a file comes to at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Its length.
    pub len: u64,
    /// Whether it has this length whatever is stored in it.
    pub fixed: bool,
    /// What it takes of the file system.
    pub space: u64,
}

impl Room {
    fn of(bound: Bound, ranges: usize) -> Self {
        let runs = bound.stored.div_ceil(RUN).saturating_add(ranges as u64);
        let blocks = bound.stored.div_ceil(BLOCK).saturating_add(1 + runs.div_ceil(RUNS));
        Self {
            len: bound.len,
            fixed: bound.fixed,
            space: blocks.saturating_mul(BLOCK),
        }
    }
}

/// A new image with data in these ranges; `None` where its format cannot tell.
pub fn new_file(format: &str, size: u64, data: &[(u64, u64)], options: &Options, backing: bool) -> Option<Room> {
    let bound = measure::bound(format, size, data, options, backing).ok()?;
    Some(Room::of(bound, data.len()))
}

/// Bytes that a new image with the content of a chain takes. What compression will save is not known: such a target is said to need
/// nothing.
///
/// # Errors
/// What reading the chain's tables says.
pub fn for_copy(chain: &Chain, format: &str, options: &Options, compress: bool, control: &Control) -> Result<u64> {
    if compress {
        return Ok(0);
    }
    let data = measure::data_ranges(chain, control)?;
    let least = || data.iter().map(|(_, len)| *len).sum();
    let room = new_file(format, chain.virtual_size(), &data, options, false);
    Ok(room.map_or_else(least, |room| room.space))
}

/// The options that an image was made with, as far as they count for the size of its file.
///
/// # Errors
/// What the image says.
pub fn as_made(image: &dyn Image) -> Result<Options> {
    let known = formats::by_name(image.format())?.create_options();
    let info = image.info()?;
    let specific = |key: &str| info.specific.as_ref().and_then(|map| map.get(key)).cloned();
    let unit = info.cluster_size.map(|bytes| bytes.to_string());
    let found = [
        ("cluster_size", unit.clone()),
        ("block_size", unit),
        ("refcount_bits", specific("refcount-bits").map(|bits| bits.to_string())),
        ("extended_l2", specific("extended-l2").map(|on| on.to_string())),
    ];
    let mut options = Options::new();
    for (name, value) in found {
        if let Some(value) = value.filter(|_| known.iter().any(|option| option.name == name)) {
            options.set(name, value);
        }
    }
    Ok(options)
}

/// What the file of an image grows by when these ranges, for which it has no place, are written into it, and the disk then has `size`
/// bytes; `None` where its format cannot tell.
///
/// # Errors
/// What the image says.
pub fn growth(layer: &Layer, image: &dyn Image, size: u64, ranges: &[(u64, u64)]) -> Result<Option<Room>> {
    if ranges.is_empty() && size <= image.virtual_size() {
        return Ok(Some(Room {
            len: 0,
            fixed: true,
            space: 0,
        }));
    }
    let backing = layer.record.image.backing_id.is_some();
    let found = new_file(image.format(), size, ranges, &as_made(image)?, backing);
    Ok(found.map(|room| Room {
        len: match room.fixed {
            true => size.saturating_sub(image.virtual_size()),
            false => room.len,
        },
        ..room
    }))
}
