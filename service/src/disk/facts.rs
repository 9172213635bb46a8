use std::fs::File;

use rustix::fs::Stat;
use sha2::{Digest, Sha256};
use vdisk_engine::{Image, ops};

use super::Layer;
use crate::error::{ErrorCode, Result, ServiceError};
use crate::pool::{Access, PoolFolder};
use crate::store::images::FileFacts;

/// What the inventory keeps of an open layer whose file lies in `pool` under `file`.
pub fn file_facts(image: &dyn Image, pool: &PoolFolder, file: &str) -> Result<FileFacts> {
    let description = ops::info::describe(image)?;
    let stat = pool.stat(file)?.ok_or_else(|| gone(file))?;
    Ok(FileFacts {
        format: description.format.to_owned(),
        virtual_size: description.virtual_size,
        allocated_size: u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512),
        file_size: u64::try_from(stat.st_size).unwrap_or(0),
        encrypted: description.image.encrypted,
        stamp: file_stamp(&stat),
    })
}

/// Tells a file that somebody changed from the one we left: length, time of the last change, inode.
pub fn file_stamp(stat: &Stat) -> String {
    format!(
        "{}:{}.{:09}:{}",
        stat.st_size, stat.st_mtime, stat.st_mtime_nsec, stat.st_ino
    )
}

/// The stamp of a file; `None` when it is gone.
pub(super) fn stamp_of(pool: &PoolFolder, file: &str) -> Result<Option<String>> {
    Ok(pool.stat(file)?.as_ref().map(file_stamp))
}

/// What an image shows depends on this: its layers, with generation and file as they are now.
pub fn fingerprint(layers: &[Layer]) -> Result<String> {
    let mut all = String::new();
    for layer in layers {
        let stamp = stamp_of(&layer.pool, &layer.record.file)?.ok_or_else(|| gone(&layer.record.file))?;
        all.push_str(&format!(
            "{}@{}[{stamp}];",
            layer.record.image.id, layer.record.image.generation
        ));
    }
    Ok(all)
}

/// The fingerprint as a number: other layers, other generations or other files give another.
pub fn version(layers: &[Layer]) -> Result<u64> {
    let digest = Sha256::digest(fingerprint(layers)?);
    Ok(digest.iter().take(8).fold(0, |all, byte| all << 8 | u64::from(*byte)))
}

/// Opens the file of an image on record.
///
/// # Errors
/// `image_not_ready` when it is gone; those of the folder.
pub fn open_file(pool: &PoolFolder, file: &str, access: Access) -> Result<File> {
    pool.open_file(file, access).map_err(|error| match error.code {
        ErrorCode::NotFound => gone(file),
        _ => error,
    })
}

fn gone(file: &str) -> ServiceError {
    ServiceError::new(
        ErrorCode::ImageNotReady,
        format!("the file '{file}' is gone from its pool"),
    )
}
