//! Bytes that come from elsewhere, stored as they are.

use vdisk_engine::storage::HttpBody;
use vdisk_engine::{Control, Storage, StorageRef};

use crate::error::Result;

/// Bytes copied at once.
const STEP: u64 = 1 << 20;

/// Copies a file that can be read anywhere.
pub fn copy(source: &dyn Storage, target: &StorageRef, control: &Control) -> Result<()> {
    let len = source.len()?;
    control.set_total(len);
    target.set_len(len)?;
    let mut buffer = vec![0; usize::try_from(STEP.min(len)).unwrap_or(0)];
    let mut offset = 0;
    while offset < len {
        let step = STEP.min(len - offset);
        control.checkpoint(step)?;
        let piece = buffer.get_mut(..usize::try_from(step).unwrap_or(0)).unwrap_or_default();
        source.read_at(offset, piece)?;
        write(target, offset, piece)?;
        control.advance(step);
        offset += step;
    }
    Ok(())
}

/// Takes in a file that comes as it comes, and may begin anew on its way.
pub fn pour(source: &HttpBody, target: &StorageRef, control: &Control) -> Result<()> {
    if let Some(len) = source.announced() {
        control.set_total(len);
    }
    let mut counted = 0;
    let len = source.read(&mut |offset, piece| {
        let step = piece.len() as u64;
        control.checkpoint(step)?;
        if offset == 0 {
            target.set_len(0)?;
        }
        write(target, offset, piece)?;
        // What comes for the second time has been counted.
        let end = offset + step;
        control.advance(end.saturating_sub(counted));
        counted = counted.max(end);
        Ok(())
    })?;
    target.set_len(len)?;
    control.set_total(len);
    Ok(())
}

/// Leaves holes where there are only zeroes.
fn write(target: &StorageRef, offset: u64, piece: &[u8]) -> vdisk_engine::Result<()> {
    if piece.iter().any(|byte| *byte != 0) {
        target.write_at(offset, piece)?;
    }
    Ok(())
}
