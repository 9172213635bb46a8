//! Creating: the header with one key, then the space for the data.

use std::ops::Range;

use uuid::Builder;

use crate::crypto::luks::{KeyEnv, KeyWork, LuksVolume, NewLuks, new_luks};
use crate::env::CreateSpec;
use crate::formats::{Bound, MeasureSpec, Measurement};
use crate::{CreateEnv, Error, Limits, Result, Storage, StorageRef};

/// The file gets its length first, then key material, and the header last: a file without a header is no LUKS volume.
pub(super) fn create(storage: StorageRef, spec: &CreateSpec, env: &CreateEnv<'_>) -> Result<()> {
    let secret = spec.options.get("key-secret");
    let id = secret.ok_or_else(|| Error::invalid("name the passphrase with option 'key-secret'"))?;
    let passphrase = env.secrets.get(id)?;
    let mut bytes = [0; 16];
    (env.random)(&mut bytes);
    let (cancelled, elapsed) = (|| env.secrets.cancelled(), || env.secrets.elapsed());
    let work = KeyWork {
        limits: env.limits,
        cancelled: &cancelled,
        elapsed: &elapsed,
    };
    let mut new = new_luks(&spec.options, &work)?;
    new.uuid = Builder::from_random_bytes(bytes).into_uuid();
    let header_len = new.header_len()?;
    let data = reserve(&storage, &new, header_len, spec)?;
    let volume = LuksVolume::create(storage.clone(), &new, &passphrase, &work_env(work, env))?;
    let whole = spec.virtual_size - spec.virtual_size % u64::from(new.sector_size);
    let from = match spec.options.get("preallocation") {
        Some("full") => 0,
        Some("falloc") => {
            storage.allocate(header_len, data)?;
            whole
        }
        _ => whole,
    };
    // At the least the sector that the disk ends in: what is written to a part of it would stand beside the noise that zeroes decrypt to.
    fill(storage.as_ref(), &volume, header_len, from..data)
}

fn work_env<'a>(work: KeyWork<'a>, env: &CreateEnv<'a>) -> KeyEnv<'a> {
    KeyEnv {
        work,
        random: env.random,
    }
}

/// Bytes of the data in whole sectors: none where the header is detached.
fn data_len(new: &NewLuks, virtual_size: u64) -> Result<u64> {
    if new.detached {
        return Ok(0);
    }
    let sectors = virtual_size.checked_next_multiple_of(u64::from(new.sector_size));
    sectors.ok_or_else(too_large)
}

fn too_large() -> Error {
    Error::limit("the virtual size is too large")
}

/// Gives the storage its final length. Gives the bytes of data in it.
fn reserve(storage: &StorageRef, new: &NewLuks, header_len: u64, spec: &CreateSpec) -> Result<u64> {
    let data = data_len(new, spec.virtual_size)?;
    let len = header_len.checked_add(data).ok_or_else(too_large)?;
    if storage.can_resize() {
        storage.set_len(len)?;
    } else if storage.len()? < len {
        let there = storage.len()?;
        return Err(Error::invalid(format!("expected a device of {len} bytes, found {there}")).at(storage.name()));
    }
    Ok(data)
}

/// Writes encrypted zeroes into a range of the data, which begins at `start`.
fn fill(storage: &dyn Storage, volume: &LuksVolume, start: u64, range: Range<u64>) -> Result<()> {
    let mut offset = range.start;
    let mut piece = Vec::new();
    while offset < range.end {
        let now = (range.end - offset).min(1 << 20);
        piece.clear();
        piece.resize(now as usize, 0);
        volume.cipher().encrypt(offset, &mut piece)?;
        storage.write_at(start + offset, &piece)?;
        offset += now;
    }
    Ok(())
}

/// Every byte is stored: zeroes are encrypted like the rest.
pub(super) fn measure(spec: &MeasureSpec<'_>) -> Result<Measurement> {
    let limits = Limits::default();
    let new = new_luks(spec.options, &KeyWork::within(&limits))?;
    let data = data_len(&new, spec.virtual_size)?;
    let bytes = new.header_len()?.checked_add(data).ok_or_else(too_large)?;
    Ok(Measurement {
        required: bytes,
        fully_allocated: bytes,
        bitmaps: None,
    })
}

/// The file is as long as measured, and every byte of it is stored.
pub(super) fn bound(spec: &MeasureSpec<'_>) -> Result<Bound> {
    let len = measure(spec)?.required;
    Ok(Bound {
        len,
        fixed: true,
        stored: len,
    })
}
