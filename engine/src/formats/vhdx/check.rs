//! `check`: headers, log, region tables, and whether every block has a place of its own.

use super::create::SLACK;
use super::image::VhdxImage;
use super::layout::{BAT_REGION, Block, HEADERS, METADATA_REGION, REGION_TABLES, encode_table};
use super::metadata::LEAVE_ALLOCATED;
use super::open;
use crate::formats::common::{lock, shared};
use crate::formats::findings::{Findings, Fix};
use crate::image::{CheckReport, Image, Repair};
use crate::{Control, Limits, OpenEnv, Result};

/// Checks an open image.
pub fn check(image: &VhdxImage, repair: Repair, control: &Control) -> Result<CheckReport> {
    control.checkpoint(0)?;
    image.flush()?;
    let found = again(image)?;
    let mut report = CheckReport {
        corruptions: found.count,
        messages: found.iter().map(|f| f.message.clone()).collect(),
        ..CheckReport::default()
    };
    if image.replayed {
        // Replayed in the file when the image was opened for writing, else only in memory.
        let done = image.writable;
        report.messages.push(format!(
            "the log held changes that were not done{}",
            if done { "; they are now" } else { "" }
        ));
        *(if done {
            &mut report.corruptions_fixed
        } else {
            &mut report.corruptions
        }) += 1;
    }
    if repair == Repair::All && found.any(Fix::Copies) && !found.refuse() {
        mend(image)?;
        let left = again(image)?.count;
        report.corruptions_fixed += found.count.saturating_sub(left);
        report.corruptions = left;
    }
    count(image, &mut report);
    leaks(image, repair, &mut report)?;
    report.image_end_offset = Some(image.file.len()?);
    Ok(report)
}

fn again(image: &VhdxImage) -> Result<Findings> {
    let limits = Limits::default();
    Ok(open::read(&image.file, &OpenEnv::closed(&limits).for_check())?.findings)
}

/// Writes the copies of headers and region tables again.
fn mend(image: &VhdxImage) -> Result<()> {
    let mut space = lock(&image.space);
    let space = &mut *space;
    let file = image.file.as_ref();
    for _ in HEADERS {
        space.journal.headers.update(file, |_| ())?;
    }
    let table = encode_table(&space.regions.all);
    for place in REGION_TABLES {
        file.write_at(place, &table)?;
        file.flush()?;
    }
    Ok(())
}

fn count(image: &VhdxImage, report: &mut CheckReport) {
    let geometry = image.geometry();
    let mut allocated = 0;
    let (mut fragments, mut next) = (0, None);
    for (index, entry) in (0u64..).zip(shared(&image.bat).iter()) {
        let place = Block::decode(*entry).ok().and_then(Block::place);
        let Some(place) = place.filter(|_| !geometry.is_bitmap(index)) else {
            continue;
        };
        allocated += 1;
        fragments += u64::from(next.is_some_and(|next| next != place));
        next = place.checked_add(geometry.block);
    }
    report.total_clusters = Some(geometry.blocks());
    report.allocated_clusters = Some(allocated);
    report.fragmented_clusters = Some(fragments);
    report.compressed_clusters = Some(0);
}

/// Space at the end of the file that nothing refers to. What QEMU leaves free behind the metadata, and the space of a fixed disk, are none.
fn leaks(image: &VhdxImage, repair: Repair, report: &mut CheckReport) -> Result<()> {
    let mut space = lock(&image.space);
    let fixed = shared(&image.disk).flags & LEAVE_ALLOCATED != 0;
    if report.corruptions > 0 || fixed {
        return Ok(());
    }
    let regions = space
        .regions
        .all
        .iter()
        .filter(|r| r.id == BAT_REGION || r.id == METADATA_REGION);
    let slack = regions.map(|r| r.offset + r.length + SLACK).max().unwrap_or(0);
    let used = image.used_end(&space).max(slack);
    let block = image.geometry().block;
    report.leaks = image.file.len()?.saturating_sub(used) / block;
    if report.leaks > 0 {
        report
            .messages
            .push(format!("the file ends {} blocks behind what is in use", report.leaks));
    }
    if repair != Repair::No && report.leaks > 0 {
        image.trim(&mut space)?;
        report.leaks_fixed = report.leaks;
        report.leaks = 0;
    }
    Ok(())
}
