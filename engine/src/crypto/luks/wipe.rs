//! Garbage over key material: without it no passphrase opens anything, whatever the header says.

use crate::storage::read_padded;
use crate::{Result, Storage};

const PIECE: u64 = 64 << 10;

/// Garbage over a range, made stable.
pub(super) fn overwrite(storage: &dyn Storage, range: (u64, u64), random: &dyn Fn(&mut [u8])) -> Result<()> {
    for_each_piece(range, |at, piece| {
        random(piece);
        storage.write_at(at, piece)
    })?;
    storage.flush()
}

/// The same for what lies in a range that belongs to no key: zeroes, and what is past the end of the file, stay as they are.
pub(super) fn overwrite_remains(storage: &dyn Storage, range: (u64, u64), random: &dyn Fn(&mut [u8])) -> Result<()> {
    let end = range.1.min(storage.len()?);
    for_each_piece((range.0, end), |at, piece| {
        read_padded(storage, at, piece)?;
        if piece.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        random(piece);
        storage.write_at(at, piece)
    })?;
    storage.flush()
}

fn for_each_piece((mut at, end): (u64, u64), work: impl Fn(u64, &mut [u8]) -> Result<()>) -> Result<()> {
    let mut buffer = vec![0; PIECE as usize];
    while at < end {
        let now = (end - at).min(PIECE);
        work(at, buffer.get_mut(..now as usize).unwrap_or_default())?;
        at += now;
    }
    Ok(())
}
