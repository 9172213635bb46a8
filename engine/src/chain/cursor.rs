//! Walking along a chain: what each layer said last is kept, so that a step through hundreds of layers asks few of them.

use super::host::Host;
use super::{Chain, ChainExtent};
use crate::image::{Extent, ExtentKind, HostPlace};
use crate::storage::StorageExtent;
use crate::{Image, Result};

/// Answers [`Chain::extent`] for rising offsets. Layers must not change ahead of it.
pub struct Cursor<'a> {
    layers: Vec<Layer<'a>>,
}

struct Layer<'a> {
    image: &'a dyn Image,
    size: u64,
    start: u64,
    extent: Option<Extent>,
    host: Host,
}

impl<'a> Cursor<'a> {
    /// At the start of `chain`.
    pub fn new(chain: &'a Chain) -> Self {
        Self::over(chain.layers())
    }

    /// At the start of some layers, top first.
    pub(super) fn over(layers: &'a [Box<dyn Image>]) -> Self {
        let layer = |image: &'a dyn Image| Layer {
            image,
            size: image.virtual_size(),
            start: 0,
            extent: None,
            host: Host::default(),
        };
        Self {
            layers: layers.iter().map(|l| layer(l.as_ref())).collect(),
        }
    }

    /// What the range from `offset` begins with; see [`Chain::extent`]. Where a layer sets space aside, its data are cut further where
    /// they pass from data to a hole of its storage or back.
    ///
    /// # Errors
    /// What the layers say.
    pub fn extent(&mut self, offset: u64, len: u64) -> Result<ChainExtent> {
        let mut len = len;
        let mut depth = 0;
        for (d, layer) in self.layers.iter_mut().enumerate() {
            if d > 0 && offset >= layer.size {
                break; // A shorter layer below: the rest reads as zeroes.
            }
            depth = d;
            let extent = layer.at(offset, if d > 0 { len.min(layer.size - offset) } else { len })?;
            len = extent.len;
            if extent.kind != ExtentKind::Unallocated {
                let found = layer.hole(&extent);
                return Ok(ChainExtent {
                    len: found.map_or(len, |found| len.min(found.len)),
                    depth,
                    present: true,
                    kind: extent.kind,
                    hole: found.is_some_and(|found| !found.data),
                });
            }
        }
        Ok(ChainExtent {
            len,
            depth,
            present: false,
            kind: ExtentKind::Unallocated,
            hole: false,
        })
    }
}

impl Layer<'_> {
    /// This layer's extent from `offset` on, cut to `len`; from memory where what was said last reaches that far.
    fn at(&mut self, offset: u64, len: u64) -> Result<Extent> {
        let known = self
            .extent
            .filter(|e| self.start <= offset && offset - self.start < e.len);
        let (start, extent) = match known {
            Some(extent) => (self.start, extent),
            // To the end of the layer, not of the question: the answer will serve the next ones.
            None => (
                offset,
                self.image.extent(offset, self.size.saturating_sub(offset).max(len))?,
            ),
        };
        (self.start, self.extent) = (start, Some(extent));
        let passed = offset - start;
        Ok(Extent {
            len: (extent.len - passed).min(len),
            kind: advanced(extent.kind, passed),
        })
    }

    /// What the storage says about stored bytes that are the guest's: others, encrypted ones for one, are no zeroes over a hole.
    fn hole(&mut self, extent: &Extent) -> Option<StorageExtent> {
        match extent.kind {
            ExtentKind::Data {
                at: Some(place),
                direct: true,
            } => self.host.hole(self.image, place),
            _ => None,
        }
    }
}

/// The kind of an extent's rest after `bytes` of it.
fn advanced(kind: ExtentKind, bytes: u64) -> ExtentKind {
    let moved = |at: Option<HostPlace>| {
        at.map(|p| HostPlace {
            offset: p.offset + bytes,
            ..p
        })
    };
    match kind {
        ExtentKind::Zero { at } => ExtentKind::Zero { at: moved(at) },
        ExtentKind::Data { at, direct } => ExtentKind::Data { at: moved(at), direct },
        ExtentKind::Unallocated | ExtentKind::Compressed => kind,
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
    fn a_cursor_says_what_the_chain_says() {
        let dir = tempfile::tempdir().unwrap();
        let file = FileStorage::create_new(&dir.path().join("r"), FileOptions::write()).unwrap();
        file.set_len(1 << 20).unwrap();
        for i in [1, 3, 4, 9, 100] {
            file.write_at(i * 8192, &[1; 4096]).unwrap();
        }
        let limits = Limits::default();
        let chain = Chain::open(Node::new(Arc::new(file), "raw"), &OpenEnv::closed(&limits)).unwrap();
        let mut cursor = Cursor::new(&chain);
        for offset in (0..1 << 20).step_by(1536) {
            let len = (1 << 20) - offset;
            assert_eq!(
                cursor.extent(offset, len.min(10_000)).unwrap(),
                chain.extent(offset, len.min(10_000)).unwrap(),
                "{offset}"
            );
        }
    }
}
