//! The space that a new image would need, by the same sums as qemu-img's.

use super::create::Plan;
use super::layout::header::MAX_L1_BYTES;
use crate::formats::common::BLOCK;
use crate::formats::{Bound, MeasureSpec, Measurement};
use crate::image::Preallocation;
use crate::{Error, Result};

/// Tells the space for some data under some create options.
pub(super) fn measure(spec: &MeasureSpec<'_>) -> Result<Measurement> {
    let plan = Plan::new(spec.options, spec.backing)?;
    let size = 1u64 << plan.cluster_bits;
    let virtual_size = spec.virtual_size.checked_next_multiple_of(size).unwrap_or(!(size - 1));
    let entry = if plan.extended_l2 { 16 } else { 8 };
    if virtual_size.div_ceil(size).div_ceil(size / entry) * 8 > MAX_L1_BYTES {
        return Err(Error::limit(
            "the image size is too large (try using a larger cluster size)",
        ));
    }
    let luks = plan.encryption.as_ref().map_or(Ok(0), |e| e.header_len())?;
    let fully_allocated = whole_file(&plan, virtual_size).saturating_add(luks.next_multiple_of(size));
    let reserved = matches!(plan.preallocation, Preallocation::Falloc | Preallocation::Full);
    // With a layer below nobody can tell what will be stored here: as much as there is.
    let data = if reserved || spec.backing && !spec.data.is_empty() {
        virtual_size
    } else {
        data_clusters(spec.data, size)
    };
    Ok(Measurement {
        required: fully_allocated.saturating_sub(virtual_size).saturating_add(data),
        fully_allocated,
        bitmaps: None,
    })
}

/// What the file comes to at most. With all tables there beforehand it is as long as the disk, and what nothing is written to stays a hole.
pub(super) fn bound(spec: &MeasureSpec<'_>) -> Result<Bound> {
    let (plan, measured) = (Plan::new(spec.options, spec.backing)?, measure(spec)?);
    let size = 1u64 << plan.cluster_bits;
    let more = refcount_tables_left(measured.fully_allocated, size, plan.refcount_order);
    let mut bound = Bound::dense(measured.required.saturating_add(more));
    if plan.preallocation == Preallocation::Metadata {
        bound.len = measured.fully_allocated.saturating_add(more);
        if size < BLOCK {
            // Each table, and each end of a range, may have a block of the file system to itself, which has a record of each then.
            let virtual_size = spec.virtual_size.next_multiple_of(size);
            let tables = bound.len.saturating_sub(virtual_size) / size;
            let alone = (tables + 2 * spec.data.len() as u64).saturating_mul(BLOCK);
            bound.stored = bound.stored.saturating_add(alone);
        }
    }
    Ok(bound)
}

/// Bytes that a file which grows to `len` has for refcount tables that became too short, and in the last one for growth to come.
fn refcount_tables_left(len: u64, size: u64, order: u32) -> u64 {
    let per_block = (size * 8) >> order;
    let tables = (len / size).div_ceil(per_block).div_ceil(size / 8);
    // A new image has one cluster of them. Each table is half as long again as the one before it.
    if tables < 2 {
        0
    } else {
        (3 * tables + 2).saturating_mul(size)
    }
}

/// Bytes of the clusters that hold data.
fn data_clusters(data: &[(u64, u64)], size: u64) -> u64 {
    let mut counted = 0;
    let mut end = 0;
    for (offset, len) in data {
        let last = offset.saturating_add(*len);
        let first = end.max(*offset);
        if first >= last {
            continue;
        }
        end = last.checked_next_multiple_of(size).unwrap_or(u64::MAX);
        counted += end - first / size * size;
    }
    counted
}

/// Bytes of a file with every cluster allocated.
fn whole_file(plan: &Plan, virtual_size: u64) -> u64 {
    let size = 1u64 << plan.cluster_bits;
    let entry = if plan.extended_l2 { 16 } else { 8 };
    let clusters = virtual_size.div_ceil(size);
    let l2_entries = clusters.next_multiple_of(size / entry);
    let l2_bytes = l2_entries * entry;
    let l1_bytes = (l2_bytes / size).next_multiple_of(size / 8) * 8;
    let others = 1 + (l2_bytes + l1_bytes) / size + clusters;
    (others + refcount_clusters(others, size, plan.refcount_order)).saturating_mul(size)
}

/// Clusters of refcount blocks and table for so many others and for themselves.
fn refcount_clusters(others: u64, size: u64, order: u32) -> u64 {
    let per_block = (size * 8) >> order;
    let (mut blocks, mut table) = (0, 0);
    loop {
        let new_blocks = (others + blocks + table).div_ceil(per_block);
        let new_table = new_blocks.div_ceil(size / 8);
        if (new_blocks, new_table) == (blocks, table) {
            return blocks + table;
        }
        (blocks, table) = (new_blocks, new_table);
    }
}
