//! Opening: the header, the key, and where the data lies.

use super::image::{DataSize, LuksImage};
use crate::crypto::SectorCipher;
use crate::crypto::luks::{KeyWork, LuksHeader, LuksVolume, VolumeLayout};
use crate::gate::{Reference, Role};
use crate::options::Options;
use crate::{Error, ErrorKind, Image, OpenEnv, Result, StorageRef};

pub(super) fn open(storage: StorageRef, options: &Options, env: &OpenEnv<'_>) -> Result<Box<dyn Image>> {
    let cancelled = || env.secrets.cancelled();
    let work = KeyWork {
        cancelled: &cancelled,
        ..KeyWork::within(env.limits)
    };
    let detached = match options.get("header") {
        Some(name) => Some(header_storage(&storage, name, env)?),
        None => None,
    };
    let header = LuksHeader::read(detached.as_ref().unwrap_or(&storage).clone(), &work)?;
    let layout = header.layout()?;
    let (header, cipher) = unlock(header, options, env, &work)?;
    let size = data_size(&storage, &layout, detached.is_some(), env)?;
    Ok(Box::new(LuksImage::new(
        storage, detached, header, cipher, layout, size,
    )))
}

fn header_storage(storage: &StorageRef, name: &str, env: &OpenEnv<'_>) -> Result<StorageRef> {
    let reference = Reference {
        name,
        format: Some("raw"),
        role: Role::Extent,
        from: storage,
        writable: env.writable,
    };
    Ok(env.gate.open(&reference)?.storage)
}

/// Takes the key if there is one to be had; only metadata and checks do without.
fn unlock(
    header: LuksHeader,
    options: &Options,
    env: &OpenEnv<'_>,
    work: &KeyWork<'_>,
) -> Result<(LuksHeader, Option<SectorCipher>)> {
    match options.get("key-secret") {
        _ if env.metadata_only => Ok((header, None)),
        None if env.for_check => Ok((header, None)),
        None => {
            let text = "the image is encrypted: name its passphrase with option 'key-secret'";
            Err(Error::new(ErrorKind::WrongKey, text).at(header.storage().name()))
        }
        Some(id) => {
            let passphrase = env.secrets.get(id)?;
            let (header, cipher, _) = LuksVolume::unlock(header, &passphrase, None, work)?.into_parts();
            Ok((header, Some(cipher)))
        }
    }
}

/// Bytes of data, in whole sectors. A file counts in sectors of 512 bytes, as with QEMU: the last one of them may be there in part.
fn data_size(storage: &StorageRef, layout: &VolumeLayout, detached: bool, env: &OpenEnv<'_>) -> Result<DataSize> {
    let len = storage.len()?;
    if layout.payload_offset == 0 && !detached {
        if env.metadata_only {
            return Ok(DataSize { bytes: 0, whole: 0 });
        }
        let text = "the header is detached: open the file with the data, and name this one with option 'header'";
        return Err(Error::invalid(text).at(storage.name()));
    }
    let there = len.checked_sub(layout.payload_offset).ok_or_else(|| {
        let payload = layout.payload_offset;
        Error::corrupt(format!(
            "the payload begins at {payload:#x}, past the end of the file at {len:#x}"
        ))
        .at(storage.name())
    })?;
    let size = match layout.payload_len {
        Some(wanted) if wanted > there => {
            let text = format!("the payload has {wanted} bytes, the file ends after {there} of them");
            return Err(Error::corrupt(text).at(storage.name()));
        }
        Some(wanted) => wanted,
        None => there.saturating_add(there.wrapping_neg() % 512),
    };
    let sector = u64::from(layout.sector_size);
    let (size, whole) = (size - size % sector, there - there % sector);
    if size > env.limits.virtual_size {
        return Err(Error::limit(format!(
            "the virtual size {size} exceeds the limit of {}",
            env.limits.virtual_size
        )));
    }
    Ok(DataSize { bytes: size, whole })
}
