//! Whose the sectors of a file are, and what follows from that. All functions take places in the order of the file.

use super::entry::Entry;
use super::layout::SECTOR;

/// Whose a run of sectors is. What comes first keeps its place where two share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Owner {
    Metadata,
    /// A guest grain.
    Grain(u32),
    /// A guest grain that only the redundant table has.
    Spare(u32),
    /// A guest grain has it after the redundant table, and another after the primary one.
    Other,
}

/// A run of sectors of the file with its owner.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub at: u64,
    pub sectors: u32,
    pub owner: Owner,
}

impl Place {
    fn len(&self) -> u64 {
        u64::from(self.sectors) * SECTOR
    }
    /// The sector behind it.
    fn end(&self) -> u64 {
        self.at.saturating_add(self.sectors.into())
    }
    fn grain(&self) -> Option<u32> {
        match self.owner {
            Owner::Grain(grain) => Some(grain),
            Owner::Metadata | Owner::Spare(_) | Owner::Other => None,
        }
    }
    fn is_twins(&self) -> bool {
        matches!(self.owner, Owner::Spare(_) | Owner::Other)
    }
}

/// Guest grains whose place something else has, in rising order.
pub(super) fn shared(places: &[Place]) -> Vec<u64> {
    let (mut found, mut end, mut owner) = (Vec::new(), 0, None);
    for place in places.iter().filter(|p| !p.is_twins()) {
        if place.at < end {
            // Of a grain and a table the grain gives way, whichever begins first.
            found.extend(place.grain().or_else(|| owner.take()).map(u64::from));
        }
        if place.end() > end {
            end = place.end();
            owner = place.grain();
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Entries that only redundant tables have, of places that are nobody else's.
pub(super) fn spare(places: &[Place]) -> Vec<(u64, Entry)> {
    let (mut found, mut end) = (Vec::new(), 0);
    for (n, place) in places.iter().enumerate() {
        let free = place.at >= end && places.get(n + 1).is_none_or(|next| next.at >= place.end());
        if let (Owner::Spare(grain), true) = (place.owner, free) {
            found.push((grain.into(), Entry::at(place.at * SECTOR)));
        }
        end = end.max(place.end());
    }
    found
}

/// The byte behind the last of them.
pub(super) fn end(places: &[Place]) -> u64 {
    places.iter().map(|p| p.end() * SECTOR).max().unwrap_or(0)
}

/// Whole grains of so many bytes between the places of all that is in use, from `first` to the end of the file. Less than one is what lies
/// beside a table.
pub(super) fn gaps(places: &[Place], first: u64, len: u64, grain: u64) -> u64 {
    let (mut end, mut gaps) = (first, 0);
    for place in places {
        let at = place.at.saturating_mul(SECTOR);
        gaps += at.min(len).saturating_sub(end) / grain;
        end = end.max(at.saturating_add(place.len()));
    }
    gaps + len.saturating_sub(end) / grain
}
