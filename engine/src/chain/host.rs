//! What the storage says about the places of a layer's data.

use crate::image::HostPlace;
use crate::storage::StorageExtent;
use crate::{Image, StorageRef};

/// The storages of one layer, where its data may lie over holes of them.
#[derive(Default)]
pub(super) struct Host {
    /// `None`: nobody asked yet. Empty: no need to look.
    storages: Option<Vec<StorageRef>>,
    /// What was said last, and of which place.
    known: Option<(HostPlace, StorageExtent)>,
}

impl Host {
    /// Whether data stored at `place` lies over a hole, and for how many bytes that is so; `None` where nothing is set aside or the storage
    /// cannot tell. Past the end of a file there is no hole: what was cut off is not to be taken for zeroes.
    pub(super) fn hole(&mut self, image: &dyn Image, place: HostPlace) -> Option<StorageExtent> {
        let storages = self.storages.get_or_insert_with(|| match image.reserves_space() {
            true => image.storages(),
            false => Vec::new(),
        });
        let storage = storages.get(place.file)?;
        let passed = |(at, run): &(HostPlace, StorageExtent)| {
            let passed = place.offset.checked_sub(at.offset).filter(|_| at.file == place.file)?;
            (passed < run.len).then_some(passed)
        };
        if self.known.as_ref().and_then(passed).is_none() {
            let to_the_end = storage.len().ok()?.checked_sub(place.offset)?;
            self.known = Some((place, storage.extent(place.offset, to_the_end).ok()?));
        }
        let known = self.known.as_ref()?;
        Some(StorageExtent {
            len: known.1.len - passed(known)?,
            data: known.1.data,
        })
    }
}
