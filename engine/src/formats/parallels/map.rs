//! The BAT: runs of clusters, taking and freeing space, ordered writing out.
//!
//! Changes of the BAT stay in memory until a flush: guest data, flush, BAT, flush. A freed cluster is used again only after the BAT
//! that no longer names it is stable.

use std::collections::BTreeSet;

use super::layout::{HEADER_LEN, Header};
use crate::formats::common::{exclusive, lock, shared};
use crate::formats::parallels::open::ParallelsImage;
use crate::{Error, Result};

/// BAT entries that are written out together.
const BLOCK: usize = 128;

/// The BAT in memory.
pub(super) struct Bat {
    pub entries: Vec<u32>,
    pub dirty: BTreeSet<usize>,
}

impl Bat {
    pub(super) fn set(&mut self, index: u64, value: u32) {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        if let Some(entry) = self.entries.get_mut(index) {
            *entry = value;
            self.dirty.insert(index / BLOCK);
        }
    }
    fn get(&self, index: u64) -> u32 {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        self.entries.get(index).copied().unwrap_or(0)
    }
}

/// What the holder of the space lock knows.
#[derive(Debug, Default)]
pub(super) struct Space {
    /// End of the used file.
    pub end: u64,
    /// Clusters that the BAT in the file may still name.
    pub freed: Vec<u64>,
    /// Clusters that nothing names.
    pub free: Vec<u64>,
    /// A flush failed: what is stable is not known.
    pub broken: bool,
}

/// Where a cluster is; `None`: nowhere.
pub(super) type Place = Option<u64>;

/// A cluster of the guest that the file has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placed {
    pub cluster: u64,
    /// Offset in the file.
    pub at: u64,
}

impl ParallelsImage {
    /// Pairs of clusters that have bytes of the file in common: the one that can stay there, and one that cannot.
    pub(super) fn clusters_that_meet(&self, header: &Header) -> Vec<(Placed, Placed)> {
        let end = self.end();
        let place = |(cluster, entry): (u64, &u32)| {
            let at = self.place_of(header, *entry, end).ok()??;
            Some(Placed { cluster, at })
        };
        let mut placed: Vec<Placed> = (0..).zip(&shared(&self.bat).entries).filter_map(place).collect();
        placed.sort_unstable_by_key(|placed| (placed.at, placed.cluster));
        let mut stays: Option<Placed> = None;
        let mut meet = Vec::new();
        for next in placed {
            match stays {
                Some(before) if next.at - before.at < header.cluster => meet.push((before, next)),
                _ => stays = Some(next),
            }
        }
        meet
    }

    /// The place that a BAT entry names.
    ///
    /// # Errors
    /// `Corrupt` when it lies in the tables or past the end of the file.
    pub(super) fn place_of(&self, header: &Header, entry: u32, end: u64) -> Result<Place> {
        if entry == 0 {
            return Ok(None);
        }
        let at = u64::from(entry) * header.step;
        let inside = at >= header.data_start && at.checked_add(header.cluster).is_some_and(|e| e <= end);
        if inside {
            return Ok(Some(at));
        }
        Err(Error::corrupt(format!(
            "BAT entry {entry:#x} names a cluster at {at:#x}, outside of {:#x}..{end:#x}",
            header.data_start
        )))
    }

    /// Where `cluster` is, and how many clusters up to `max` continue it.
    pub(super) fn run(&self, cluster: u64, max: u64) -> Result<(Place, u64)> {
        let header = self.header();
        let end = self.end();
        let bat = shared(&self.bat);
        let first = self
            .place_of(&header, bat.get(cluster), end)
            .map_err(|e| e.at(format!("{}: cluster {cluster}", self.file.name())))?;
        let mut count = 1;
        while count < max {
            let entry = bat.get(cluster + count);
            let fits = match first {
                None => entry == 0,
                Some(at) => entry != 0 && u64::from(entry) * header.step == at + count * header.cluster,
            };
            if !fits || self.place_of(&header, entry, end).is_err() {
                break;
            }
            count += 1;
        }
        Ok((first, count))
    }

    /// Takes space for `count` clusters that follow each other; fewer when freed ones are used up first.
    pub(super) fn take(&self, space: &mut Space, count: u64) -> Result<(u64, u64)> {
        if let Some(at) = space.free.pop() {
            return Ok((at, 1));
        }
        let header = self.header();
        let at = space.end.max(header.data_start).checked_next_multiple_of(header.step);
        let end = at.and_then(|at| at.checked_add(count * header.cluster));
        let last_entry = end.map(|e| e / header.step);
        let (Some(at), Some(end), true) = (at, end, last_entry.is_some_and(|e| u32::try_from(e).is_ok())) else {
            return Err(Error::limit(
                "the file would become too large for the entries of its BAT",
            ));
        };
        space.end = end;
        self.set_end(end);
        Ok((at, count))
    }

    /// Lets the BAT name `count` clusters from `at` on.
    pub(super) fn assign(&self, cluster: u64, count: u64, at: u64) {
        let header = self.header();
        let mut bat = exclusive(&self.bat);
        for n in 0..count {
            let entry = (at + n * header.cluster) / header.step;
            bat.set(cluster + n, u32::try_from(entry).unwrap_or(0));
        }
    }

    /// Forgets clusters; their space can be used again after the next flush.
    pub(super) fn forget(&self, space: &mut Space, cluster: u64, count: u64) -> Result<()> {
        let header = self.header();
        let end = self.end();
        let mut bat = exclusive(&self.bat);
        for index in cluster..cluster + count {
            if let Some(at) = self.place_of(&header, bat.get(index), end)? {
                space.freed.push(at);
                bat.set(index, 0);
            }
        }
        Ok(())
    }

    /// Writes out what changed, in order, and returns when it is stable.
    pub(super) fn write_out(&self) -> Result<()> {
        let mut space = lock(&self.space);
        if space.broken {
            return Err(Error::io(
                "an earlier flush failed: what is stable is not known",
                std::io::Error::from(std::io::ErrorKind::Other),
            )
            .at(self.file.name()));
        }
        let result = self.write_bat(space.end);
        space.broken = result.is_err();
        result?;
        let cluster = self.header().cluster;
        for at in std::mem::take(&mut space.freed) {
            self.file.discard(at, cluster)?;
            space.free.push(at);
        }
        Ok(())
    }

    fn write_bat(&self, end: u64) -> Result<()> {
        if self.file.can_resize() && self.file.len()? < end {
            self.file.set_len(end)?;
        }
        self.file.flush()?;
        let blocks: Vec<(usize, Vec<u8>)> = {
            let bat = shared(&self.bat);
            let block = |n: &usize| {
                let entries = bat.entries.chunks(BLOCK).nth(*n).unwrap_or_default();
                (*n, entries.iter().flat_map(|e| e.to_le_bytes()).collect())
            };
            bat.dirty.iter().map(block).collect()
        };
        for (number, bytes) in &blocks {
            let at = HEADER_LEN + number * BLOCK * 4;
            self.file.write_at(at as u64, bytes)?;
        }
        if !blocks.is_empty() {
            self.file.flush()?;
            exclusive(&self.bat).dirty.clear();
        }
        Ok(())
    }
}
