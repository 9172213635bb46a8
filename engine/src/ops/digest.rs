//! digest: one short value for what the guest sees, equal for the same content in any format.

use sha2::{Digest, Sha256};

use crate::storage::PageBuffer;
use crate::{Chain, Control, Result};

/// Bytes that are left out together when they are all zero.
pub const BLOCK: u64 = 64 << 10;

/// How [`nonzero`] and [`full`] are called where users see them.
pub const NONZERO_KIND: &str = "sha256-nonzero-64k";

/// SHA-256 over the offset (8 bytes, little-endian) and the data of every 64 KiB block before `end` that is not all zero, so that
/// holes cost nothing. What ends inside a block counts as filled up with zeroes: formats round sizes up. In lower-case hex digits.
///
/// # Errors
/// What the layers say; `Cancelled`.
pub fn nonzero(chain: &Chain, end: u64, control: &Control) -> Result<String> {
    let (end, mut offset, mut hash) = (chain.virtual_size().min(end), 0, Sha256::new());
    let mut block = PageBuffer::new(BLOCK as usize);
    control.set_total(end);
    while offset < end {
        let there = BLOCK.min(end - offset);
        let extent = chain.extent(offset, end - offset)?;
        if extent.is_zero() && extent.len >= there {
            // Whole blocks only: what is left of the run may belong to a block with data.
            let whole = if offset + extent.len == end {
                extent.len
            } else {
                extent.len / BLOCK * BLOCK
            };
            let passed = whole.max(there);
            offset += passed;
            control.check_cancelled()?;
            control.advance(passed);
            continue;
        }
        control.checkpoint(there)?;
        let (data, rest) = block.split_at_mut(there as usize);
        chain.read(offset, data)?;
        rest.fill(0);
        if data.iter().any(|byte| *byte != 0) {
            hash.update(offset.to_le_bytes());
            hash.update(&*data);
            hash.update(&*rest);
        }
        offset += there;
        control.advance(there);
    }
    Ok(hex(&hash.finalize()))
}

/// SHA-256 of every byte: that of the disk as a raw file.
///
/// # Errors
/// As [`nonzero`].
pub fn full(chain: &Chain, control: &Control) -> Result<String> {
    let (end, mut offset, mut hash) = (chain.virtual_size(), 0, Sha256::new());
    let mut block = PageBuffer::new(BLOCK as usize);
    control.set_total(end);
    while offset < end {
        let there = BLOCK.min(end - offset);
        control.checkpoint(there)?;
        let data = &mut block[..there as usize];
        chain.read(offset, data)?;
        hash.update(&*data);
        offset += there;
        control.advance(there);
    }
    Ok(hex(&hash.finalize()))
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
