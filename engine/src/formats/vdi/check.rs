//! Checking and mending.
//!
//! Corruptions: entries that are no block of the image, two guest blocks in one place, blocks that the file does not hold, a count of
//! blocks in the header that would let a writer overwrite used ones. Leaks: blocks of the file that nothing refers to.
//! Mending keeps every byte there is: shared blocks are copied apart, what is not in the file becomes unallocated, leaks are closed by
//! moving the last blocks down. Data is copied and flushed before the map mentions the copy.

use super::image::VdiImage;
use super::layout::Entry;
use crate::image::{CheckReport, Repair};
use crate::{Control, Result};

/// Findings told one by one; the rest is only counted.
const MESSAGES: usize = 100;

/// What a look at the map and the file's length gave.
#[derive(Debug, Default)]
struct Findings {
    outside: Vec<u64>,
    shared: Vec<u64>,
    /// Guest blocks whose bytes the file ends before.
    missing: Vec<u64>,
    /// The header counts fewer blocks than the map uses.
    count_too_low: bool,
    /// Blocks in the file that nothing refers to, below the next free index.
    leaked: u64,
    /// Whole blocks behind the next free index.
    beyond: u64,
}

impl Findings {
    fn corruptions(&self) -> u64 {
        (self.outside.len() + self.shared.len() + self.missing.len()) as u64 + u64::from(self.count_too_low)
    }
    fn leaks(&self) -> u64 {
        self.leaked + self.beyond
    }
    fn messages(&self) -> Vec<String> {
        let mut all = Vec::new();
        for (blocks, what) in [
            (&self.outside, "is no block of the image"),
            (&self.shared, "is the place of another block, too"),
            (&self.missing, "lies past the end of the file"),
        ] {
            let told = blocks.iter().take(MESSAGES.saturating_sub(all.len()));
            all.extend(told.map(|b| format!("ERROR: the entry of block {b} {what}")));
        }
        if self.count_too_low {
            all.push("ERROR: the header counts fewer blocks than the map uses".into());
        }
        if self.leaks() > 0 {
            all.push(format!("Leaked: {} blocks that nothing refers to", self.leaks()));
        }
        all
    }
}

impl VdiImage {
    pub fn check_all(&self, repair: Repair, control: &Control) -> Result<CheckReport> {
        control.checkpoint(0)?;
        let before = self.look()?;
        let mut report = CheckReport {
            corruptions: before.corruptions(),
            leaks: before.leaks(),
            messages: before.messages(),
            ..CheckReport::default()
        };
        if repair == Repair::No || before.corruptions() + before.leaks() == 0 {
            return Ok(report);
        }
        if repair == Repair::All && before.corruptions() > 0 {
            self.mend(&before, control)?;
        }
        if self.look()?.corruptions() == 0 {
            self.close_leaks(control)?;
        }
        let after = self.look()?;
        report.corruptions = after.corruptions();
        report.leaks = after.leaks();
        report.corruptions_fixed = before.corruptions().saturating_sub(after.corruptions());
        report.leaks_fixed = before.leaks().saturating_sub(after.leaks());
        Ok(report)
    }

    fn look(&self) -> Result<Findings> {
        let (len, meta) = (self.file.len()?, self.meta());
        let damage = meta.map.damage();
        let header = &meta.header;
        let mut findings = Findings {
            outside: damage.outside,
            shared: damage.shared,
            ..Findings::default()
        };
        let (mut used, mut top) = (0u64, 0);
        for (block, entry) in meta.map.entries() {
            let Entry::Block(index) = entry else { continue };
            let index = u64::from(index);
            if index >= meta.map.bound() {
                continue;
            }
            let guest = block * header.block;
            let needed = header.block.min(header.size.saturating_sub(guest));
            if header.place(index) + needed > len {
                findings.missing.push(block);
            }
            used += 1;
            top = top.max(index + 1);
        }
        let distinct = used - findings.shared.len() as u64;
        findings.count_too_low = top > header.allocated && !meta.header_dirty;
        findings.leaked = meta.map.next() - distinct;
        let end = header.end(meta.map.next());
        findings.beyond = len.saturating_sub(end) / header.stride();
        Ok(findings)
    }

    fn mend(&self, findings: &Findings, control: &Control) -> Result<()> {
        {
            let _growth = self.growth();
            let mut meta = self.meta_mut();
            for block in &findings.outside {
                meta.map.set(*block, Entry::Free);
            }
            meta.header_dirty = true;
        }
        for block in &findings.missing {
            self.mend_missing(*block)?;
        }
        // What is unused is so in the file as well: a place that an old entry still names is not filled before.
        self.flush_all()?;
        let unused = self.meta().map.unused();
        for (block, to) in findings.shared.iter().zip(unused) {
            control.checkpoint(self.meta().header.block)?;
            self.part_shared(*block, to)?;
        }
        self.flush_all()
    }

    /// A block that the file cuts keeps what is there, with zeroes behind; one that is not there at all becomes unallocated.
    fn mend_missing(&self, block: u64) -> Result<()> {
        let _growth = self.growth();
        let Entry::Block(index) = self.meta().map.get(block) else {
            return Ok(());
        };
        let (header, len) = (self.meta().header, self.file.len()?);
        if header.place(u64::from(index)) < len {
            let end = header.end(u64::from(index) + 1);
            return if len < end { self.file.set_len(end) } else { Ok(()) };
        }
        self.meta_mut().map.set(block, Entry::Free);
        Ok(())
    }

    /// Copies a block to a place of its own. There is one: an image with a shared place has fewer places in use than blocks.
    fn part_shared(&self, block: u64, to: u64) -> Result<()> {
        let _growth = self.growth();
        let (Entry::Block(from), Ok(entry)) = (self.meta().map.get(block), u32::try_from(to)) else {
            return Ok(());
        };
        self.copy_block(u64::from(from), to)?;
        let mut meta = self.meta_mut();
        meta.map.set(block, Entry::Block(entry));
        meta.header_dirty = true;
        Ok(())
    }

    /// Moves the last blocks into places that nothing refers to, then cuts the file.
    fn close_leaks(&self, control: &Control) -> Result<()> {
        self.flush_all()?;
        let _growth = self.growth();
        let mut owners: Vec<(u64, u64)> = {
            let meta = self.meta();
            let owner = |(block, entry)| match entry {
                Entry::Block(index) => Some((u64::from(index), block)),
                Entry::Free | Entry::Zero => None,
            };
            meta.map.entries().filter_map(owner).collect()
        };
        owners.sort_unstable();
        let used = owners.len() as u64;
        let kept: usize = owners.partition_point(|(index, _)| *index < used);
        let mut taken = owners.iter().take(kept).map(|(index, _)| *index).peekable();
        let holes = (0..used).filter(|index| taken.next_if_eq(index).is_none());
        let moves: Vec<(u64, u64, u64)> = owners
            .iter()
            .skip(kept)
            .zip(holes)
            .map(|((from, block), to)| (*block, *from, to))
            .collect();
        for (_, from, to) in &moves {
            control.checkpoint(self.meta().header.block)?;
            self.copy_block(*from, *to)?;
        }
        self.file.flush()?;
        {
            let mut meta = self.meta_mut();
            for (block, _, to) in &moves {
                if let Ok(to) = u32::try_from(*to) {
                    meta.map.set(*block, Entry::Block(to));
                }
            }
            meta.map.set_next(used);
            meta.header_dirty = true;
        }
        self.flush_growing()?;
        let end = self.meta().header.end(used);
        if self.file.can_resize() {
            self.file.set_len(end)
        } else {
            Ok(())
        }
    }
}
