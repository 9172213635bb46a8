//! Creating, with qemu-img's layout: header, map at 512, data in the next sector.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromZeros, IntoBytes};

use super::layout::{DEFAULT_BLOCK, Entry, MAX_BLOCKS, RawHeader, SECTOR, SIGNATURE, VERSION_1_1, checked_block_size};
use super::map::check_size;
use crate::env::CreateSpec;
use crate::formats::common::with_holes;
use crate::formats::{Bound, MeasureSpec, Measurement};
use crate::options::Options;
use crate::{CreateEnv, Error, Result, StorageRef};

const TEXT: &[u8] = b"<<< vdiskd VirtualBox Disk Image >>>\n";

/// Sizes of a new image.
struct Plan {
    size: u64,
    block: u64,
    blocks: u64,
    fixed: bool,
}

impl Plan {
    fn new(virtual_size: u64, options: &Options) -> Result<Self> {
        let block = options.size("block_size")?.unwrap_or(DEFAULT_BLOCK);
        let block = u32::try_from(block)
            .map_err(|_| Error::invalid(format!("a block size of {block} bytes is too large")))
            .and_then(checked_block_size)
            .map_err(|e| Error::invalid(e.what()))?;
        let max = MAX_BLOCKS * block;
        let size = virtual_size.checked_next_multiple_of(SECTOR).filter(|s| *s <= max);
        let Some(size) = size else {
            return Err(Error::invalid(format!(
                "Unsupported VDI image size (size is {virtual_size:#x}, max supported is {max:#x})"
            )));
        };
        let fixed = options.flag("static")?.unwrap_or(false);
        Ok(Self {
            size,
            block,
            blocks: size.div_ceil(block),
            fixed,
        })
    }
    fn data_offset(&self) -> u64 {
        SECTOR + (self.blocks * 4).next_multiple_of(SECTOR)
    }
    fn end(&self) -> u64 {
        self.data_offset() + if self.fixed { self.blocks * self.block } else { 0 }
    }
}

pub(super) fn create(file: &StorageRef, spec: &CreateSpec, env: &CreateEnv<'_>) -> Result<()> {
    if spec.backing.is_some() {
        return Err(Error::unsupported("Backing file not supported for file format 'vdi'"));
    }
    let plan = Plan::new(spec.virtual_size, &spec.options)?;
    check_size(plan.blocks, env.limits)?;
    file.write_at(0, header(&plan, env).as_bytes())?;
    write_map(file, &plan)?;
    if file.can_resize() {
        file.set_len(plan.end())?;
    } else if plan.fixed {
        // What a device held before must not become the disk's content.
        file.write_zeroes(plan.data_offset(), plan.end() - plan.data_offset(), false)?;
    }
    file.flush()
}

fn header(plan: &Plan, env: &CreateEnv<'_>) -> RawHeader {
    let low = |v: u64| U32::new(u32::try_from(v).unwrap_or(u32::MAX)); // Bounded by MAX_BLOCKS.
    let mut raw = RawHeader::new_zeroed();
    raw.text.iter_mut().zip(TEXT).for_each(|(to, from)| *to = *from);
    raw.signature = U32::new(SIGNATURE);
    raw.version = U32::new(VERSION_1_1);
    raw.header_size = U32::new(0x180);
    raw.image_type = U32::new(if plan.fixed { 2 } else { 1 });
    raw.offset_map = low(SECTOR);
    raw.offset_data = low(plan.data_offset());
    raw.sector_size = low(SECTOR);
    raw.disk_size = U64::new(plan.size);
    raw.block_size = low(plan.block);
    raw.blocks_in_image = low(plan.blocks);
    raw.blocks_allocated = low(if plan.fixed { plan.blocks } else { 0 });
    raw.uuid_image = random_uuid(env);
    raw.uuid_modify = random_uuid(env);
    raw
}

fn random_uuid(env: &CreateEnv<'_>) -> [u8; 16] {
    let mut bytes = [0; 16];
    (env.random)(&mut bytes);
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_bytes_le()
}

fn write_map(file: &StorageRef, plan: &Plan) -> Result<()> {
    const CHUNK: u64 = 1 << 18;
    let mut block = 0;
    while block < plan.blocks {
        let end = (block + CHUNK).min(plan.blocks);
        let entry = |index| match u32::try_from(index) {
            Ok(index) if plan.fixed => Entry::Block(index),
            _ => Entry::Free,
        };
        let bytes: Vec<u8> = (block..end).flat_map(|i| entry(i).encode().to_le_bytes()).collect();
        file.write_at(SECTOR + block * 4, &bytes)?;
        block = end;
    }
    let padding = plan.data_offset() - SECTOR - plan.blocks * 4;
    file.write_zeroes(SECTOR + plan.blocks * 4, padding, false)
}

/// What the file comes to at most.
pub(super) fn bound(spec: &MeasureSpec<'_>) -> Result<Bound> {
    let (plan, len) = (Plan::new(spec.virtual_size, spec.options)?, measure(spec)?.required);
    Ok(match plan.fixed {
        true => with_holes(len, plan.data_offset(), plan.data_offset(), spec.data),
        false => Bound::dense(len),
    })
}

pub(super) fn measure(spec: &MeasureSpec<'_>) -> Result<Measurement> {
    if spec.backing {
        return Err(Error::unsupported("Backing file not supported for file format 'vdi'"));
    }
    let plan = Plan::new(spec.virtual_size, spec.options)?;
    let fully_allocated = plan.data_offset() + plan.blocks * plan.block;
    let (mut touched, mut counted_to) = (0, 0);
    for (offset, len) in spec.data {
        let first = (offset / plan.block).max(counted_to);
        let end = offset.saturating_add(*len).div_ceil(plan.block).min(plan.blocks);
        touched += end.saturating_sub(first);
        counted_to = counted_to.max(end);
    }
    let required = if plan.fixed {
        fully_allocated
    } else {
        plan.data_offset() + touched * plan.block
    };
    Ok(Measurement {
        required,
        fully_allocated,
        bitmaps: None,
    })
}
