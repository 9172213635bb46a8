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

/// Tells a file that somebody changed from the one we left: length and time of the last change, which a copy that comes back from a backup
/// has too.
pub fn file_stamp(stat: &Stat) -> String {
    format!("{}:{}.{:09}", stat.st_size, stat.st_mtime, stat.st_mtime_nsec)
}

/// Whether a file is as it was when a stamp was taken of it. In stamps of earlier versions the inode follows, which a copy does not have.
pub fn is_as_left(stat: &Stat, stamp: &str) -> bool {
    let behind = stamp.strip_prefix(&file_stamp(stat));
    behind.is_some_and(|behind| behind.is_empty() || behind.starts_with(':'))
}

/// The file of a layer as it lies in its pool.
///
/// # Errors
/// `image_not_ready` when it is gone.
pub(super) fn stat_of(layer: &Layer) -> Result<Stat> {
    let file = &layer.record.file;
    layer.pool.stat(file)?.ok_or_else(|| gone(file))
}

/// What an image shows depends on this: its layers, with generation and file as they are now. The time of a file's last change of any
/// kind is part of it: nobody can set that back, as the time of the last write can be.
pub fn fingerprint(layers: &[Layer]) -> Result<String> {
    let mut all = String::new();
    for layer in layers {
        let (image, stat) = (&layer.record.image, stat_of(layer)?);
        all.push_str(&format!(
            "{}@{}[{}:{}:{}.{:09}];",
            image.id,
            image.generation,
            file_stamp(&stat),
            stat.st_ino,
            stat.st_ctime,
            stat.st_ctime_nsec
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_keeps_the_time_is_the_same_file() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        std::fs::write(&one, "one").unwrap();
        std::fs::copy(&one, &two).unwrap();
        let time = std::fs::metadata(&one).unwrap().modified().unwrap();
        let copy = File::options().write(true).open(&two).unwrap();
        copy.set_modified(time).unwrap();
        let stat = |path| rustix::fs::stat(path).unwrap();
        let (stamp, stat) = (file_stamp(&stat(&one)), stat(&two));
        assert!(is_as_left(&stat, &stamp));
        // As earlier versions wrote it.
        assert!(is_as_left(&stat, &format!("{stamp}:4711")));
        assert!(!is_as_left(&stat, &format!("{stamp}1")));
        copy.set_modified(time + std::time::Duration::from_nanos(1)).unwrap();
        assert!(!is_as_left(&rustix::fs::stat(&two).unwrap(), &stamp));
    }
}
