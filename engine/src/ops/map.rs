//! map: where the data of a disk lies.

use crate::chain::{Chain, ChainExtent, Cursor};
use crate::image::{ExtentKind, HostPlace};
use crate::{Image, Result};

/// One guest range of one status; the fields are those of `qemu-img map --output=json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapEntry {
    /// First guest byte.
    pub start: u64,
    /// Guest bytes.
    pub length: u64,
    /// The layer that decides; 0 is the top.
    pub depth: usize,
    /// Whether a layer has the range.
    pub present: bool,
    /// Whether it reads as zeroes.
    pub zero: bool,
    /// Whether bytes are stored for it.
    pub data: bool,
    /// Whether they are stored compressed.
    pub compressed: bool,
    /// Where in the layer's storages, if the range has one place there.
    pub place: Option<HostPlace>,
}

impl MapEntry {
    fn new(start: u64, extent: &ChainExtent) -> Self {
        Self {
            start,
            length: extent.len,
            depth: extent.depth,
            present: extent.present,
            zero: extent.is_zero(),
            data: matches!(extent.kind, ExtentKind::Data { .. } | ExtentKind::Compressed),
            compressed: extent.kind == ExtentKind::Compressed,
            place: extent.place(),
        }
    }

    /// Whether `next` goes on where this ends, with the same status at the following place.
    fn continues_in(&self, next: &Self) -> bool {
        let follows = match (self.place, next.place) {
            (None, None) => true,
            (Some(a), Some(b)) => a.file == b.file && a.offset.checked_add(self.length) == Some(b.offset),
            _ => false,
        };
        let status = |e: &Self| (e.depth, e.present, e.zero, e.data, e.compressed);
        follows && status(self) == status(next)
    }
}

/// Where a layer's storages end.
#[derive(Default)]
struct Ends {
    storages: Option<Vec<u64>>,
    /// Whether the layer sets space aside, so that its data may lie past them.
    passable: Option<bool>,
}

impl Ends {
    /// Whether data that was only set aside lies past the end of its file.
    fn are_before(&mut self, image: &dyn Image, place: HostPlace) -> bool {
        let ends = self
            .storages
            .get_or_insert_with(|| image.storages().iter().map(|s| s.len().unwrap_or(u64::MAX)).collect());
        let past = ends.get(place.file).is_some_and(|end| place.offset >= *end);
        past && *self.passable.get_or_insert_with(|| image.reserves_space())
    }
}

/// What a step of a [`Map`] came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapStep {
    /// An entry is complete.
    Entry(MapEntry),
    /// More has been looked at, and no entry is complete yet.
    Onward,
    /// The range is through.
    End,
}

/// Iterates over the map of a guest range; neighbours of the same status come merged. Memory does not grow with the map.
pub struct Map<'a> {
    cursor: Cursor<'a>,
    layers: &'a [Box<dyn Image>],
    ends: Vec<Ends>,
    next: u64,
    end: u64,
    pending: Option<MapEntry>,
}

/// The map of `length` bytes from `start`, cut to the virtual size.
pub fn map(chain: &Chain, start: u64, length: u64) -> Map<'_> {
    let end = start.saturating_add(length).min(chain.virtual_size());
    Map {
        cursor: Cursor::new(chain),
        layers: chain.layers(),
        ends: chain.layers().iter().map(|_| Ends::default()).collect(),
        next: start,
        end,
        pending: None,
    }
}

impl Map<'_> {
    fn is_past_the_end(&mut self, entry: &MapEntry) -> bool {
        let place = entry.place.filter(|_| entry.data);
        let layer = self.layers.get(entry.depth).zip(self.ends.get_mut(entry.depth));
        place
            .zip(layer)
            .is_some_and(|(place, (image, ends))| ends.are_before(image.as_ref(), place))
    }

    /// Looks at one more extent of one layer. An entry may take any number of steps, so who must stop in time steps.
    ///
    /// # Errors
    /// What the chain says; nothing follows then.
    pub fn step(&mut self) -> Result<MapStep> {
        let step = self.try_step();
        if step.is_err() {
            (self.next, self.pending) = (self.end, None);
        }
        step
    }

    /// The entry on its way, as far as it was looked at: what follows starts at its end and may have the same status.
    pub fn cut(self) -> Option<MapEntry> {
        self.pending
    }

    fn try_step(&mut self) -> Result<MapStep> {
        if self.next >= self.end {
            return Ok(self.pending.take().map_or(MapStep::End, MapStep::Entry));
        }
        let extent = self.cursor.extent(self.next, self.end - self.next)?;
        let mut entry = MapEntry::new(self.next, &extent);
        entry.zero |= self.is_past_the_end(&entry);
        self.next += entry.length;
        match &mut self.pending {
            Some(last) if last.continues_in(&entry) => last.length += entry.length,
            pending => {
                if let Some(complete) = pending.replace(entry) {
                    return Ok(MapStep::Entry(complete));
                }
            }
        }
        Ok(MapStep::Onward)
    }
}

impl Iterator for Map<'_> {
    type Item = Result<MapEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.step() {
                Ok(MapStep::Entry(entry)) => return Some(Ok(entry)),
                Ok(MapStep::Onward) => {}
                Ok(MapStep::End) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::gate::Node;
    use crate::storage::{FileOptions, FileStorage, Storage};
    use crate::{Limits, OpenEnv};

    #[test]
    fn a_raw_file_shows_its_holes_as_qemu_does() {
        let dir = tempfile::tempdir().unwrap();
        let file = FileStorage::create_new(&dir.path().join("r"), FileOptions::write()).unwrap();
        file.set_len(100_000).unwrap();
        file.write_at(70_000, b"x").unwrap();
        let limits = Limits::default();
        let chain = Chain::open(Node::new(Arc::new(file), "raw"), &OpenEnv::closed(&limits)).unwrap();
        let found: Vec<_> = map(&chain, 0, u64::MAX)
            .map(|e| e.unwrap())
            .map(|e| (e.start, e.length, e.data, e.place.unwrap().offset))
            .collect();
        // As printed by qemu-img 10.0.2 for the same file.
        assert_eq!(
            found,
            [
                (0, 69_632, false, 0),
                (69_632, 4096, true, 69_632),
                (73_728, 26_624, false, 73_728)
            ]
        );
    }
}
