//! Check and repair: each cluster of the file has at most one user, and each offset lies where it may.
//!
//! A table or cluster that cannot be where the tables say is dropped by a repair (the range reads through the layer below again), as
//! QEMU does. Two users of one cluster cannot be told apart and stay a corruption. Leaks cannot be freed: the format has no free list.

use super::layout::NEED_CHECK;
use super::open::QedImage;
use crate::formats::common::lock;
use crate::formats::two_level::Users;
use crate::image::{CheckReport, Repair};
use crate::{Control, Result};

/// Sentences that a report holds at most.
const MAX_MESSAGES: usize = 100;
/// Bytes of a table handled at once.
const CHUNK: u64 = 64 << 10;

struct Checker<'a> {
    image: &'a QedImage,
    fix: bool,
    report: CheckReport,
    users: Users,
    clusters: u64,
    cluster: u64,
    last: u64,
}

/// Walks all tables. With `Repair::All` bad entries are cleared; an image without contradictions loses its need-check bit.
pub(super) fn check(image: &QedImage, repair: Repair, control: &Control) -> Result<CheckReport> {
    image.map.flush()?;
    let header = *lock(&image.header);
    let clusters = image.map.file().len()? / header.cluster;
    let mut checker = Checker {
        image,
        fix: repair == Repair::All,
        report: CheckReport {
            total_clusters: Some(header.size.div_ceil(header.cluster)),
            allocated_clusters: Some(0),
            fragmented_clusters: Some(0),
            ..CheckReport::default()
        },
        users: Users::new(header.cluster),
        clusters,
        cluster: header.cluster,
        last: 0,
    };
    let l1 = header.raw.l1_table_offset.get();
    let l1_bytes = header.table_bytes.min((clusters * header.cluster).saturating_sub(l1));
    checker.users.own(l1, l1_bytes);
    checker.walk_l1(l1, header.table_bytes, control)?;
    checker.count_leaks(header.header_bytes);
    let report = checker.report;
    if report.corruptions_fixed > 0 {
        image.map.reload()?;
    }
    if repair != Repair::No && header.has(NEED_CHECK) && report.corruptions == 0 && report.check_errors == 0 {
        image.map.file().flush()?;
        image.change_header(|h| h.raw.features = (h.raw.features.get() & !NEED_CHECK).into())?;
    }
    Ok(report)
}

impl Checker<'_> {
    fn say(&mut self, message: String) {
        if self.report.messages.len() < MAX_MESSAGES {
            self.report.messages.push(message);
        }
    }

    fn walk_l1(&mut self, l1_at: u64, table_bytes: u64, control: &Control) -> Result<()> {
        for (index, table) in self.image.map.l1().into_iter().enumerate() {
            control.check_cancelled()?;
            if table == 0 {
                continue;
            }
            if let Err(e) = self.image.map.check_l2_offset(table) {
                self.contradiction(format!("L1 entry {index}: {}", e.what()), l1_at + index as u64 * 8)?;
                continue;
            }
            if !self.users.own(table, table_bytes) {
                self.report.corruptions += 1;
                self.say(format!("L1 entry {index}: L2 table at {table:#x} is used twice"));
                continue;
            }
            self.walk_l2(table, table_bytes, control)?;
        }
        Ok(())
    }

    fn walk_l2(&mut self, table: u64, table_bytes: u64, control: &Control) -> Result<()> {
        self.last = 0;
        let mut chunk = vec![0; usize::try_from(CHUNK.min(table_bytes)).unwrap_or(0)];
        for start in (0..table_bytes).step_by(chunk.len().max(1)) {
            control.check_cancelled()?;
            self.image.map.file().read_at(table + start, &mut chunk)?;
            for (n, raw) in chunk.chunks_exact(8).enumerate() {
                let entry = crate::formats::common::be64(raw).swap_bytes();
                self.entry(entry, table + start + n as u64 * 8)?;
            }
        }
        Ok(())
    }

    /// Counts like QEMU: an entry that leads nowhere is an allocated cluster, too.
    fn entry(&mut self, entry: u64, place: u64) -> Result<()> {
        if entry <= 1 {
            return Ok(());
        }
        *self.report.allocated_clusters.get_or_insert(0) += 1;
        if self.last != 0 && self.last.wrapping_add(self.cluster) != entry {
            *self.report.fragmented_clusters.get_or_insert(0) += 1;
        }
        self.last = entry;
        if let Err(e) = self.image.map.slot(entry) {
            return self.contradiction(format!("L2 entry at {place:#x}: {}", e.what()), place);
        }
        if !self.users.own(entry, self.cluster) {
            self.report.corruptions += 1;
            self.say(format!("L2 entry at {place:#x}: cluster at {entry:#x} is used twice"));
        }
        Ok(())
    }

    /// An entry that leads nowhere: cleared by a repair.
    fn contradiction(&mut self, message: String, place: u64) -> Result<()> {
        self.say(message);
        if !self.fix {
            self.report.corruptions += 1;
            return Ok(());
        }
        self.image.map.file().write_at(place, &[0; 8])?;
        self.report.corruptions_fixed += 1;
        Ok(())
    }

    fn count_leaks(&mut self, header_bytes: u64) {
        self.report.leaks = self
            .clusters
            .saturating_sub(header_bytes / self.cluster)
            .saturating_sub(self.users.owned_from(header_bytes));
    }
}
