//! Check and repair, with QEMU's findings: an image that was not closed, a wrong data offset, clusters outside of the file, clusters
//! used twice, space behind the last cluster.

use std::collections::HashMap;

use super::layout::Header;
use super::map::Placed;
use super::open::ParallelsImage;
use super::resize::copy;
use crate::formats::common::{exclusive, lock, shared};
use crate::image::{CheckReport, Image, Repair};
use crate::{Control, Result};

/// Sentences that a report holds at most.
const MAX_MESSAGES: usize = 100;

struct Checker<'a> {
    image: &'a ParallelsImage,
    control: &'a Control,
    fix: bool,
    /// End of the last cluster that the file cuts.
    cut_end: u64,
    report: CheckReport,
}

pub(super) fn check(image: &ParallelsImage, repair: Repair, control: &Control) -> Result<CheckReport> {
    image.flush()?;
    let mut checker = Checker {
        image,
        control,
        fix: repair == Repair::All,
        cut_end: 0,
        report: CheckReport::default(),
    };
    checker.check_bat()?;
    checker.check_end(repair != Repair::No)?;
    checker.check_header()?; // Last: the image is called clean only when the rest is mended.
    Ok(checker.report)
}

impl Checker<'_> {
    fn contradiction(&mut self, message: String) {
        self.count(message, self.fix);
    }
    fn count(&mut self, message: String, fixed: bool) {
        if self.report.messages.len() < MAX_MESSAGES {
            self.report.messages.push(message);
        }
        if fixed {
            self.report.corruptions_fixed += 1;
        } else {
            self.report.corruptions += 1;
        }
    }

    fn check_header(&mut self) -> Result<()> {
        let header = self.image.header();
        if header.in_use() {
            self.contradiction("the image was not closed correctly".to_owned());
        }
        if header.data_off_is_wrong {
            self.contradiction(format!("the data offset {:#x} is wrong", header.raw.data_off));
        }
        if !self.fix || !(header.in_use() || header.data_off_is_wrong) {
            return Ok(());
        }
        let sectors = u32::try_from(header.data_start / 512).unwrap_or(u32::MAX);
        self.image.change_header(|header| {
            header.raw.in_use = 0.into();
            if std::mem::take(&mut header.data_off_is_wrong) {
                header.raw.data_off = sectors.into();
            }
        })
    }

    fn check_bat(&mut self) -> Result<()> {
        let header = self.image.header();
        let entries = shared(&self.image.bat).entries.clone();
        self.complete(&header, &entries)?;
        let len = self.image.file.len()?;
        let meet = self.image.clusters_that_meet(&header);
        let others: HashMap<u64, Placed> = meet.iter().map(|(stays, other)| (other.cluster, *stays)).collect();
        let (mut allocated, mut fragmented, mut last) = (0, 0, 0);
        for (cluster, entry) in (0..).zip(&entries) {
            if cluster % 4096 == 0 {
                self.control.check_cancelled()?;
            }
            let at = match self.image.place_of(&header, *entry, self.image.end()) {
                Ok(None) => continue,
                Ok(Some(at)) => at,
                Err(_) if cut_end(&header, *entry, len).is_some() => continue,
                Err(e) => {
                    self.contradiction(format!("cluster {cluster} is outside image: {}", e.what()));
                    self.clear(cluster);
                    continue;
                }
            };
            if let Some(other) = others.get(&cluster) {
                self.contradiction(format!(
                    "cluster {cluster} is at {at:#x}, where cluster {} at {:#x} has bytes as well",
                    other.cluster, other.at
                ));
                self.separate(&header, cluster, at)?;
            }
            allocated += 1;
            fragmented += u64::from(last != 0 && last + header.cluster != at);
            last = at;
        }
        self.report.total_clusters = Some(entries.len() as u64);
        self.report.allocated_clusters = Some(allocated);
        self.report.fragmented_clusters = Some(fragmented);
        if self.fix {
            self.image.flush()?;
        }
        Ok(())
    }

    /// What is there of clusters that the file cuts stays, with zeroes behind; and no other cluster gets their place.
    fn complete(&mut self, header: &Header, entries: &[u32]) -> Result<()> {
        let len = self.image.file.len()?;
        let fix = self.fix && self.image.file.can_resize();
        for (cluster, entry) in entries.iter().enumerate() {
            if let Some(end) = cut_end(header, *entry, len) {
                self.count(format!("cluster {cluster} is cut by the end of the file"), fix);
                self.cut_end = self.cut_end.max(end);
            }
        }
        if fix && self.cut_end > 0 {
            self.image.file.set_len(self.cut_end)?;
            self.image.restart_space(self.cut_end);
        }
        Ok(())
    }

    fn clear(&self, cluster: u64) {
        if self.fix {
            exclusive(&self.image.bat).set(cluster, 0);
        }
    }

    /// Gives the second user of a cluster its own copy.
    fn separate(&self, header: &Header, cluster: u64, at: u64) -> Result<()> {
        if !self.fix {
            return Ok(());
        }
        let (to, _) = self.image.take(&mut lock(&self.image.space), 1)?;
        copy(self.image, at, to, header.cluster)?;
        self.image.assign(cluster, 1, to);
        Ok(())
    }

    /// Space behind the last cluster is a leak.
    fn check_end(&mut self, fix: bool) -> Result<()> {
        let header = self.image.header();
        let used = used_end(self.image).max(self.cut_end);
        self.report.image_end_offset = Some(used);
        let extension = header.raw.ext_off.get() != 0;
        let file_len = self.image.file.len()?;
        if extension || file_len <= used {
            return Ok(());
        }
        let clusters = (file_len - used).div_ceil(header.cluster);
        self.report.leaks = clusters;
        // While something is wrong, what seems to be free may belong to it.
        if fix && self.report.corruptions == 0 && self.image.file.can_resize() {
            cut(self.image, used)?;
            self.report.leaks = 0;
            self.report.leaks_fixed = clusters;
        }
        Ok(())
    }
}

/// The end of a cluster that begins inside a file of this length and ends outside.
fn cut_end(header: &Header, entry: u32, len: u64) -> Option<u64> {
    let at = u64::from(entry) * header.step;
    let end = at.checked_add(header.cluster)?;
    (entry != 0 && (header.data_start..len).contains(&at) && end > len).then_some(end)
}

/// End of the last cluster that the BAT names.
pub(super) fn used_end(image: &ParallelsImage) -> u64 {
    let (header, end) = (image.header(), image.end());
    let bat = shared(&image.bat);
    let last = bat
        .entries
        .iter()
        .filter_map(|e| image.place_of(&header, *e, end).ok()?)
        .max();
    last.map_or(header.data_start, |at| at + header.cluster)
}

/// Ends the file behind the last cluster that is used, where this session freed those behind it.
pub(super) fn cut_free_end(image: &ParallelsImage) -> Result<()> {
    let space = &mut *lock(&image.space);
    let used = used_end(image);
    let freed = space.free.iter().any(|at| *at >= used);
    // Bitmaps of the format extension may lie behind the last cluster.
    if !freed || used >= space.end || image.header().raw.ext_off.get() != 0 || !image.file.can_resize() {
        return Ok(());
    }
    image.file.set_len(used)?;
    space.free.retain(|at| *at < used);
    space.end = used;
    image.set_end(used);
    image.file.flush()
}

/// Ends the file at `used`; nothing behind it may be named any more.
pub(super) fn cut(image: &ParallelsImage, used: u64) -> Result<()> {
    image.file.set_len(used)?;
    image.file.flush()?;
    image.restart_space(used);
    Ok(())
}
