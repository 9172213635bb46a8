//! The packed form of an image: little-endian, byte 0 flags (1: the rest is packed, 2: checksums stay as they are, 4 and 8: over a
//! new volume, see [`unpack_over`]), bytes 1 to 4 the length
//! of the file in sectors, bytes 5 and 6 bytes more, byte 7 the number of records; each record is a sector (4 bytes), a length (2 bytes) and
//! that many bytes. What follows says what to do with the image.

use std::sync::Arc;

use vdisk_engine::Storage;

use super::SparseStorage;

const SECTOR: u64 = 512;
/// Flags.
const PACKED: u8 = 1;
const UNSEALED: u8 = 2;
const MOST: usize = u16::MAX as usize;

/// An unpacked image.
pub struct Input<'a> {
    /// Its bytes.
    pub storage: Arc<SparseStorage>,
    /// Whether checksums are to be put right.
    pub sealed: bool,
    /// What follows.
    pub rest: &'a [u8],
}

fn take<'a, const N: usize>(data: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (head, rest) = data.split_first_chunk()?;
    *data = rest;
    Some(head)
}

/// Unpacks; `None` for what is shorter than the head.
pub fn unpack(data: &[u8]) -> Option<Input<'_>> {
    unpack_over(data, |_| SparseStorage::default())
}

/// Unpacks over the file that the input's flags ask for.
pub fn unpack_over(mut data: &[u8], base: impl Fn(u8) -> SparseStorage) -> Option<Input<'_>> {
    let [flags, sectors @ .., more, more_high, records] = *take::<8>(&mut data)?;
    let storage = base(flags);
    let more = u64::from(u16::from_le_bytes([more, more_high]));
    let _ = storage.set_len(u64::from(u32::from_le_bytes(sectors)) * SECTOR + more);
    for _ in 0..records {
        let (Some(sector), Some(len)) = (take(&mut data), take(&mut data)) else {
            break;
        };
        let len = usize::from(u16::from_le_bytes(*len)).min(data.len());
        let (bytes, rest) = data.split_at(len);
        let _ = storage.write_at(u64::from(u32::from_le_bytes(*sector)) * SECTOR, bytes);
        data = rest;
    }
    Some(Input {
        storage: Arc::new(storage),
        sealed: flags & UNSEALED == 0,
        rest: data,
    })
}

/// Packs an image with at most 255 runs of bytes; `None` where it has more.
pub fn pack(bytes: &[u8], then: &[u8]) -> Option<Vec<u8>> {
    let runs = runs(bytes);
    let mut out = vec![PACKED];
    out.extend(u32::try_from(bytes.len() as u64 / SECTOR).ok()?.to_le_bytes());
    out.extend(u16::try_from(bytes.len() as u64 % SECTOR).ok()?.to_le_bytes());
    out.push(u8::try_from(runs.len()).ok()?);
    for (sector, run) in runs {
        out.extend(u32::try_from(sector).ok()?.to_le_bytes());
        out.extend(u16::try_from(run.len()).ok()?.to_le_bytes());
        out.extend(run);
    }
    out.extend(then);
    Some(out)
}

/// Runs of sectors that are not zero, without the zeroes at their ends.
fn runs(bytes: &[u8]) -> Vec<(usize, Vec<u8>)> {
    let mut runs: Vec<(usize, Vec<u8>)> = Vec::new();
    for (sector, part) in bytes.chunks(SECTOR as usize).enumerate() {
        if part.iter().all(|b| *b == 0) {
            continue;
        }
        match runs.last_mut() {
            Some((first, run)) if *first + run.len() / SECTOR as usize == sector && run.len() + part.len() <= MOST => {
                run.extend(part);
            }
            _ => runs.push((sector, part.to_vec())),
        }
    }
    for (_, run) in &mut runs {
        let end = run.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
        run.truncate(end);
    }
    runs
}
