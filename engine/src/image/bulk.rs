//! Filling an image fast.

use std::any::Any;

use super::HostPlace;
use crate::{Error, Result};

/// Filling an image fast: encode on any thread, place in guest order on one thread, store on any thread.
///
/// Metadata may stay in memory until [`Image::flush`](super::Image::flush). Used only for units that are not allocated yet, unless the driver says more.
pub trait BulkWrite: Sync {
    /// Guest bytes of one unit (cluster, grain), at most 2 MiB: runs begin and end at multiples of it. A format with larger blocks gives
    /// a smaller unit, and allocates the block when its first unit is placed.
    fn unit(&self) -> u64;
    /// Whether every unit must be encoded (streamOptimized and the like). Elsewhere [`encode`](Self::encode) is called only when the
    /// caller wants compression; without it whole runs of units are placed and stored as they are. An image of which every unit is encoded
    /// is filled from its start to its end: it takes units in rising guest order alone, by plain writes as well.
    fn encodes(&self) -> bool;
    /// Whether units that are allocated already may be placed again (formats with a fixed place for each byte).
    fn overwrites(&self) -> bool {
        false
    }
    /// Whether the place of plain units that were never stored reads as zeroes and bytes are stored as they are: then zero parts of a
    /// placed run need not be stored.
    fn sparse_store(&self) -> bool {
        false
    }
    /// The stored form of one unit, or `None` when it is better stored as is. `scratch` is one worker's own, kept between calls.
    fn encode(&self, data: &[u8], scratch: &mut Scratch) -> Result<Option<Vec<u8>>>;
    /// Gives a run a place: `encoded` is the stored length of one encoded unit, `None` for a run of plain units, of which the placement may
    /// be the beginning alone: the rest has another place then, and is asked for next. Called by one thread at a time, and in rising guest
    /// order where all units are encoded.
    fn place(&self, offset: u64, len: u64, encoded: Option<u64>) -> Result<Placement>;
    /// Writes the bytes of a placement, or of a part of a plain one: any thread, any order.
    fn store(&self, placement: &Placement, bytes: &[u8]) -> Result<()>;
}

/// Buffers and codec contexts that a worker keeps between calls of [`BulkWrite::encode`].
#[derive(Default)]
pub struct Scratch {
    kept: Option<Box<dyn Any + Send>>,
    level: Option<i32>,
}

impl Scratch {
    /// Scratch for a compression level that the user chose.
    pub fn with_level(level: Option<i32>) -> Self {
        Self { kept: None, level }
    }
    /// The compression level to use, where the user chose one.
    pub fn level(&self) -> Option<i32> {
        self.level
    }
    /// The worker's own `T`, made at first use.
    pub fn get<T: Any + Send>(&mut self, make: impl FnOnce() -> Result<T>) -> Result<&mut T> {
        if self.kept.as_ref().is_none_or(|b| !b.is::<T>()) {
            self.kept = Some(Box::new(make()?));
        }
        self.kept
            .as_mut()
            .and_then(|b| b.downcast_mut())
            .ok_or_else(|| Error::invalid("scratch of another type"))
    }
}

/// Where a run of guest bytes goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// First guest byte.
    pub guest: u64,
    /// Which storage and where.
    pub at: HostPlace,
    /// Bytes to store.
    pub len: u64,
    /// Stored in encoded form.
    pub encoded: bool,
}
