//! Looking through all tables: places lie where they may, and no two of them over each other.
//!
//! A write to a cluster that two entries name would change the disk in two places: the first write in place looks for that.

use std::sync::atomic::Ordering;

use super::users::Users;
use super::{Codec, Slot, TwoLevel, tables};
use crate::image::CheckReport;
use crate::{Control, Error, Result};

/// Sentences that a report holds at most.
const MAX_MESSAGES: usize = 100;
/// Bytes of L2 tables that a first write looks through; larger images are left to `check`.
const MOST_BYTES: u64 = 64 << 20;

struct Checker<'a, C> {
    map: &'a TwoLevel<C>,
    report: CheckReport,
    users: Users,
    /// Where the next cluster would be if the disk lay in the file in order.
    next: Option<u64>,
    /// The first place that has two users.
    shared: Option<String>,
}

impl<C: Codec> TwoLevel<C> {
    /// Walks all tables and mends nothing. `name` is the place of the backing file's name; no place that an entry may name lies in the header or
    /// over the L1 table. Space that nobody uses is not counted.
    pub(in crate::formats) fn check(&self, name: Option<(u64, u64)>, control: &Control) -> Result<CheckReport> {
        self.flush()?;
        let mut checker = Checker::new(self);
        if let Some((at, len)) = name {
            checker.users.own(at, len);
        }
        checker.walk(control)?;
        Ok(checker.report)
    }

    /// Looks once, before the first write in place, whether that would change two places.
    ///
    /// # Errors
    /// `Corrupt` when two entries name one place.
    pub(super) fn refuse_double_use(&self) -> Result<()> {
        if self.looked.load(Ordering::Acquire) {
            return Ok(());
        }
        let tables = self.l1().iter().filter(|at| **at != 0).count() as u64;
        if tables * self.shape.l2_entries * 8 <= MOST_BYTES {
            let mut checker = Checker::new(self);
            checker.walk(&Control::default())?;
            if let Some(message) = checker.shared {
                let text = format!("a write would change two places: {message}; read the disk into a new image");
                return Err(Error::corrupt(text).at(self.file.name()));
            }
        }
        self.looked.store(true, Ordering::Release);
        Ok(())
    }
}

impl<'a, C: Codec> Checker<'a, C> {
    fn new(map: &'a TwoLevel<C>) -> Self {
        Self {
            map,
            report: CheckReport {
                total_clusters: Some(map.size().div_ceil(map.cluster())),
                allocated_clusters: Some(0),
                fragmented_clusters: Some(0),
                compressed_clusters: Some(0),
                ..CheckReport::default()
            },
            users: Users::new(map.shape.accepted_alignment),
            next: None,
            shared: None,
        }
    }

    fn walk(&mut self, control: &Control) -> Result<()> {
        let bytes = self.map.shape.l2_entries * 8;
        for (index, table) in self.map.l1().into_iter().enumerate() {
            control.check_cancelled()?;
            if table == 0 {
                continue;
            }
            if let Err(e) = self.map.check_l2_offset(table) {
                self.wrong(format!("L1 entry {index}: {}", e.what()));
            } else if self.users.own(table, bytes) {
                self.table(index, table, bytes)?;
            } else {
                self.twice(format!(
                    "L1 entry {index}: L2 table at {table:#x} lies over something else"
                ));
            }
        }
        Ok(())
    }

    fn wrong(&mut self, message: String) {
        self.report.corruptions += 1;
        if self.report.messages.len() < MAX_MESSAGES {
            self.report.messages.push(message);
        }
    }

    fn twice(&mut self, message: String) {
        self.shared.get_or_insert_with(|| message.clone());
        self.wrong(message);
    }

    fn table(&mut self, index: usize, table: u64, bytes: u64) -> Result<()> {
        let end = self.map.file.len()?;
        if table.saturating_add(bytes) > end {
            // A new one that nobody has written yet.
            return Ok(());
        }
        let mut raw = vec![0; usize::try_from(bytes).unwrap_or(0)];
        self.map.file.read_at(table, &mut raw)?;
        for (n, entry) in tables::decode_entries(&raw, self.map.shape.little_endian)
            .into_iter()
            .enumerate()
        {
            self.entry(entry, &format_args!("L2 table of L1 entry {index}, entry {n}"));
        }
        Ok(())
    }

    fn entry(&mut self, entry: u64, place: &std::fmt::Arguments<'_>) {
        let count = |number: &mut Option<u64>| *number.get_or_insert(0) += 1;
        let cluster = self.map.cluster();
        match self.map.slot(entry) {
            Ok(Slot::Unallocated | Slot::Zero) => {}
            Ok(Slot::Data(at)) => {
                count(&mut self.report.allocated_clusters);
                if self.next.is_some_and(|next| next != at) {
                    count(&mut self.report.fragmented_clusters);
                }
                self.next = at.checked_add(cluster);
                if !self.users.own(at, cluster) {
                    self.twice(format!("{place}: cluster at {at:#x} lies over something else"));
                }
            }
            Ok(Slot::Compressed { at, len }) => {
                count(&mut self.report.allocated_clusters);
                count(&mut self.report.compressed_clusters);
                if !self.users.pack(at, len) {
                    self.twice(format!(
                        "{place}: compressed cluster of {len} bytes at {at:#x} lies over something else"
                    ));
                }
            }
            Err(e) => self.wrong(format!("{place}: {}", e.what())),
        }
    }
}
