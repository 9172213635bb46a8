//! Opening: header, map, and whether they can be true.

use std::sync::{Mutex, RwLock};

use zerocopy::{FromZeros, IntoBytes};

use super::image::{Meta, VdiImage};
use super::layout::RawHeader;
use super::map::BlockMap;
use crate::{Error, OpenEnv, Result, StorageRef};

pub(super) fn open(file: StorageRef, env: &OpenEnv<'_>) -> Result<VdiImage> {
    let mut raw = RawHeader::new_zeroed();
    if file.len()? < raw.as_bytes().len() as u64 {
        return Err(Error::not_this_format("the file is too short for a VDI header"));
    }
    file.read_at(0, raw.as_mut_bytes())?;
    let header = raw.checked()?;
    if header.size > env.limits.virtual_size {
        return Err(Error::limit(format!("a virtual size of {} bytes", header.size)).at("header.disk_size"));
    }
    let map = BlockMap::read(&file, &header, env.limits)?;
    if !env.for_check {
        if header.allocated > map.bound() {
            return Err(header.counts_too_many());
        }
        let damage = map.damage();
        if let Some(block) = damage.outside.first() {
            let found = map.get(*block).encode();
            return Err(Error::corrupt(format!(
                "the entry of block {block} is {found:#x}, the image has {} blocks; check can repair it",
                header.blocks
            ))
            .at("block map"));
        }
        if let Some(block) = damage.shared.first() {
            return Err(Error::corrupt(format!(
                "block {block} has the place of another block; check can repair it"
            ))
            .at("block map"));
        }
    }
    Ok(VdiImage {
        file,
        meta: RwLock::new(Meta {
            header,
            map,
            header_dirty: false,
        }),
        growth: Mutex::new(()),
        limits: env.limits.clone(),
    })
}
