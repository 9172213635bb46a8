//! map: where the data of a disk lies.

use crate::chain::{Chain, ChainExtent, Cursor};
use crate::image::{ExtentKind, HostPlace};
use crate::{Image, Result, StorageRef};

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

/// The storages of one layer, where its data may lie over holes of them.
struct Host<'a> {
    image: &'a dyn Image,
    /// `None`: nobody asked yet. Empty: no need to look.
    storages: Option<Vec<StorageRef>>,
}

impl<'a> Host<'a> {
    fn new(image: &'a dyn Image) -> Self {
        Self { image, storages: None }
    }

    /// Cuts stored data where it passes from data to a hole of its storage or back; what lies over a hole, or past the end, reads as
    /// zeroes. It says more where the storage can tell, and nothing where it cannot.
    fn look_for_holes(&mut self, entry: &mut MapEntry) {
        let Some(place) = entry.place.filter(|_| entry.data) else {
            return;
        };
        let image = self.image;
        let storages = self.storages.get_or_insert_with(|| match image.reserves_space() {
            true => image.storages(),
            false => Vec::new(),
        });
        let Some(storage) = storages.get(place.file) else {
            return;
        };
        if storage.len().is_ok_and(|end| place.offset >= end) {
            entry.zero = true;
        } else if let Ok(found) = storage.extent(place.offset, entry.length) {
            entry.length = entry.length.min(found.len);
            entry.zero = !found.data;
        }
    }
}

/// Iterates over the map of a guest range; neighbours of the same status come merged. Memory does not grow with the map.
pub struct Map<'a> {
    chain: Cursor<'a>,
    hosts: Vec<Host<'a>>,
    next: u64,
    end: u64,
    pending: Option<MapEntry>,
}

/// The map of `length` bytes from `start`, cut to the virtual size.
pub fn map(chain: &Chain, start: u64, length: u64) -> Map<'_> {
    let end = start.saturating_add(length).min(chain.virtual_size());
    Map {
        chain: Cursor::new(chain),
        hosts: chain.layers().iter().map(|l| Host::new(l.as_ref())).collect(),
        next: start,
        end,
        pending: None,
    }
}

impl Map<'_> {
    fn step(&mut self) -> Result<Option<MapEntry>> {
        while self.next < self.end {
            let extent = self.chain.extent(self.next, self.end - self.next)?;
            let mut entry = MapEntry::new(self.next, &extent);
            if let Some(host) = self.hosts.get_mut(entry.depth) {
                host.look_for_holes(&mut entry);
            }
            self.next += entry.length;
            match &mut self.pending {
                None => self.pending = Some(entry),
                Some(last) if last.continues_in(&entry) => last.length += entry.length,
                Some(_) => return Ok(self.pending.replace(entry)),
            }
        }
        Ok(self.pending.take())
    }
}

impl Iterator for Map<'_> {
    type Item = Result<MapEntry>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            (self.next, self.pending) = (self.end, None);
        }
        step.transpose()
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
