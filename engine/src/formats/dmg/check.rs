//! Verifying checksums: of the data fork as stored, of each part of the disk, and of these checksums together; and that the block tables
//! cover the disk to its end.

use super::layout::Kind;
use super::open::DmgImage;
use super::table::{Chunk, Part};
use crate::image::{CheckReport, Image};
use crate::{Control, Result};

const CHUNK: u64 = 1 << 20;

pub(super) fn check(image: &DmgImage, control: &Control) -> Result<CheckReport> {
    let mut report = CheckReport {
        total_clusters: Some(image.table.chunks.len() as u64),
        ..CheckReport::default()
    };
    let ends = image.table.parts.iter().map(|part| part.start + part.len);
    let covered = ends.chain(image.table.chunks.iter().map(Chunk::end)).max().unwrap_or(0);
    if covered < image.size {
        report.corruptions += 1;
        report.messages.push(format!(
            "the trailer claims a disk of {} bytes, of which the block tables cover {covered}",
            image.size
        ));
    }
    if let Some(expected) = image.koly.data_checksum.crc32() {
        let (start, len) = (image.koly.data_offset.get(), image.koly.data_len.get());
        let sum = crc(&[(start, len)], control, |at, buf| image.file.read_at(at, buf));
        compare(&mut report, "the data fork", expected, sum);
    }
    for (number, part) in image.table.parts.iter().enumerate() {
        if let Some(expected) = part.crc32 {
            let sum = crc(&counted(image, part), control, |at, buf| image.read(at, buf));
            compare(&mut report, &format!("part {number} of the disk"), expected, sum);
        }
    }
    control.check_cancelled()?;
    let sums: Option<Vec<u8>> = sums(&image.table.parts);
    if let (Some(expected), Some(sums)) = (image.koly.master_checksum.crc32(), sums) {
        compare(&mut report, "the master checksum", expected, Ok(crc32fast::hash(&sums)));
    }
    Ok(report)
}

/// The checksums of all parts one after the other, where every part has one.
pub(super) fn sums(parts: &[Part]) -> Option<Vec<u8>> {
    let sums: Option<Vec<[u8; 4]>> = parts.iter().map(|p| p.crc32.map(u32::to_be_bytes)).collect();
    sums.map(|s| s.concat()).filter(|s| !s.is_empty())
}

/// The ranges of a part that its checksum covers: all but ignored chunks.
fn counted(image: &DmgImage, part: &Part) -> Vec<(u64, u64)> {
    let end = part.start + part.len;
    let inside = image
        .table
        .chunks
        .iter()
        .filter(|c| c.start >= part.start && c.end() <= end);
    inside
        .filter(|c| c.kind != Kind::Ignore)
        .map(|c| (c.start, c.len))
        .collect()
}

fn crc(ranges: &[(u64, u64)], control: &Control, read: impl Fn(u64, &mut [u8]) -> Result<()>) -> Result<u32> {
    let mut hasher = crc32fast::Hasher::new();
    let mut buf = vec![0; usize::try_from(CHUNK).unwrap_or(0)];
    for (mut at, mut len) in ranges.iter().copied() {
        while len > 0 {
            control.check_cancelled()?;
            let n = len.min(CHUNK);
            let part = buf.get_mut(..usize::try_from(n).unwrap_or(0)).unwrap_or_default();
            read(at, part)?;
            hasher.update(part);
            control.advance(n);
            at += n;
            len -= n;
        }
    }
    Ok(hasher.finalize())
}

fn compare(report: &mut CheckReport, what: &str, expected: u32, sum: Result<u32>) {
    match sum {
        Ok(sum) if sum == expected => {}
        Ok(sum) => {
            report.corruptions += 1;
            report.messages.push(format!(
                "{what} has the checksum {sum:#010x}, {expected:#010x} was expected"
            ));
        }
        Err(e) => {
            report.check_errors += 1;
            report.messages.push(format!("{what} cannot be read: {e}"));
        }
    }
}
