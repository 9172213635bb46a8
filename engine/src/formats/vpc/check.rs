//! `check`: footers, sums, and whether every block has a place of its own.

use std::sync::atomic::Ordering;

use zerocopy::IntoBytes;

use super::blocks::Blocks;
use super::image::{VpcImage, lock, reading};
use super::layout::{FOOTER, HEADER, SECTOR, UNUSED};
use super::locator;
use crate::formats::findings::{Findings, Fix};
use crate::image::{CheckReport, Image, Repair};
use crate::{Control, Limits, Result};

/// Checks an open image.
pub fn check(image: &VpcImage, repair: Repair, control: &Control) -> Result<CheckReport> {
    control.checkpoint(0)?;
    image.flush()?;
    let again = || super::open::read(image.file.as_ref(), image.rule, &Limits::default()).map(|o| o.findings);
    let findings = again()?;
    let mut report = CheckReport {
        corruptions: findings.count,
        messages: findings.iter().map(|f| f.message.clone()).collect(),
        ..CheckReport::default()
    };
    if repair == Repair::All && (findings.any(Fix::Copies) || findings.any(Fix::Sum)) {
        mend(image, &findings)?;
        report.corruptions = again()?.count;
        report.corruptions_fixed = findings.count.saturating_sub(report.corruptions);
    }
    if let Some(blocks) = &image.blocks {
        blocks.count(&mut report)?;
        if repair != Repair::No && report.leaks > 0 {
            report.leaks_fixed = blocks.cut_leaks()?;
            report.leaks = 0;
        }
    }
    report.image_end_offset = Some(image.file.len()?);
    Ok(report)
}

/// Writes the footers and the header again, sums included.
fn mend(image: &VpcImage, findings: &Findings) -> Result<()> {
    let footer = reading(&image.footer).raw.sealed();
    if let Some(blocks) = &image.blocks {
        let space = lock(&blocks.space);
        if findings.any(Fix::Sum) {
            let header = *reading(&blocks.header);
            image.file.write_at(header.offset, header.raw.sealed().as_bytes())?;
        }
        if findings.any(Fix::Copies) {
            image.file.write_at(0, footer.as_bytes())?;
            image.file.flush()?;
            image.file.write_at(space.end, footer.as_bytes())?;
        }
        return image.file.flush();
    }
    let end = image.file.len()?.saturating_sub(FOOTER);
    image.file.write_at(end, footer.as_bytes())?;
    image.file.flush()
}

impl Blocks {
    /// Where the last byte in use is, at most at `end`.
    pub(super) fn used_end(&self, end: u64) -> u64 {
        let header = *reading(&self.header);
        let stored = header.stored_block();
        let table = reading(&self.table);
        let last = table.iter().filter(|e| **e != UNUSED).max();
        (header.offset + HEADER)
            .max(header.table_offset + header.table_bytes())
            .max(locator::end(&header.raw).min(end))
            .max(last.map_or(0, |sector| u64::from(*sector) * SECTOR + stored))
            .max(self.hidden_end.load(Ordering::Acquire))
            .next_multiple_of(SECTOR)
    }

    fn count(&self, report: &mut CheckReport) -> Result<()> {
        let end = lock(&self.space).end;
        let used = self.used_end(end);
        let table = reading(&self.table);
        let places: Vec<u32> = table.iter().copied().filter(|e| *e != UNUSED).collect();
        let stored = (self.bitmap_size + self.block_size()) / SECTOR;
        let follows = |pair: &[u32]| matches!(pair, [a, b] if u64::from(*a) + stored == u64::from(*b));
        report.total_clusters = Some(table.len() as u64);
        report.allocated_clusters = Some(places.len() as u64);
        report.fragmented_clusters = Some(places.windows(2).filter(|pair| !follows(pair)).count() as u64);
        report.compressed_clusters = Some(0);
        // Less than a block is what other programs leave free to align their blocks.
        report.leaks = end.saturating_sub(used) / (stored * SECTOR);
        if report.corruptions > 0 {
            report.leaks = 0;
        }
        if report.leaks > 0 {
            report
                .messages
                .push(format!("{} bytes before the footer are not in use", end - used));
        }
        Ok(())
    }

    /// Moves the footer down to what is in use.
    fn cut_leaks(&self) -> Result<u64> {
        let mut space = lock(&self.space);
        if self.hidden_end.load(Ordering::Acquire) == 0 {
            self.forget_past()?;
        }
        let used = self.used_end(space.end);
        let leaked = space.end.saturating_sub(used) / (self.bitmap_size + self.block_size());
        self.file.write_at(used, space.footer.raw.as_bytes())?;
        self.file.flush()?;
        self.file.set_len(used + FOOTER)?;
        space.end = used;
        self.file.flush()?;
        Ok(leaked)
    }
}
