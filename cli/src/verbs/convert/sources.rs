//! What is copied: one or several images, a snapshot, and reading on after errors.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use vdisk_engine::chain::Cursor;
use vdisk_engine::ops::{GuestSource, SourceExtent, SourceKind, Walk};
use vdisk_engine::{Chain, Result};

/// The top layer of a chain above its backing image: what lies below is left to the target's own backing image.
pub struct TopLayer<'a> {
    /// The source.
    pub chain: &'a Chain,
    /// Bytes of the target's backing image: past it the target reads as zeroes anyway.
    pub covered: u64,
}

impl GuestSource for TopLayer<'_> {
    fn len(&self) -> u64 {
        self.chain.virtual_size()
    }
    fn walk(&self) -> Box<dyn Walk + '_> {
        let mut cursor = Cursor::new(self.chain);
        let below = self.chain.layers().get(1).map_or(0, |l| l.virtual_size());
        Box::new(move |offset, len: u64| {
            // Up to where the target's backing image ends, and from there on, are two runs.
            let len = if offset < self.covered {
                len.min(self.covered - offset)
            } else {
                len
            };
            let extent = cursor.extent(offset, len)?;
            let absent = extent.depth > 0 || (!extent.present && (offset < below || offset >= self.covered));
            Ok(match absent {
                true => SourceExtent::of(extent.len, SourceKind::Absent),
                false => extent.into(),
            })
        })
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.chain.read(offset, buf)
    }
    fn read_data(&self, layer: usize, offset: u64, buf: &mut [u8]) -> Result<()> {
        GuestSource::read_data(self.chain, layer, offset, buf)
    }
}

/// A source that remembers where it could not be read.
pub struct Located<'a> {
    inner: &'a dyn GuestSource,
    failed: Mutex<Option<Place>>,
}

/// What could not be read, and at which guest offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// What is stored there.
    Status(u64),
    /// The data: the first byte of the request that failed.
    Data(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(at) => write!(f, "block status at offset {at}"),
            Self::Data(at) => write!(f, "at byte {at}"),
        }
    }
}

impl<'a> Located<'a> {
    /// Nothing failed yet.
    pub fn new(inner: &'a dyn GuestSource) -> Self {
        let failed = Mutex::new(None);
        Self { inner, failed }
    }
    /// The first failure.
    pub fn failed(&self) -> Option<Place> {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
    fn note<T>(&self, place: Place, done: Result<T>) -> Result<T> {
        done.inspect_err(|_| {
            let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            failed.get_or_insert(place);
        })
    }
}

impl GuestSource for Located<'_> {
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn walk(&self) -> Box<dyn Walk + '_> {
        let mut walk = self.inner.walk();
        Box::new(move |offset, len: u64| self.note(Place::Status(offset), walk.extent(offset, len)))
    }
    fn read_data(&self, layer: usize, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.note(Place::Data(offset), self.inner.read_data(layer, offset, buf))
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.note(Place::Data(offset), self.inner.read(offset, buf))
    }
}

/// A source whose unreadable parts read as zeroes; each read that fails is told.
pub struct Salvage<'a>(pub &'a dyn GuestSource);

/// The smallest part that is given up.
const SECTOR: usize = 512;

impl GuestSource for Salvage<'_> {
    fn len(&self) -> u64 {
        self.0.len()
    }
    fn walk(&self) -> Box<dyn Walk + '_> {
        let mut walk = self.0.walk();
        let mut told = None;
        Box::new(move |offset, len: u64| match walk.extent(offset, len) {
            Ok(extent) => Ok(SourceExtent { layer: None, ..extent }),
            // Where the map cannot be read the data may be: reading tells.
            Err(error) => {
                if told.replace(offset) != Some(offset) {
                    warn(&format!("error while reading block status at offset {offset}"), &error);
                }
                Ok(SourceExtent::of(len.min(SECTOR as u64), SourceKind::Data))
            }
        })
    }
    fn read_data(&self, _layer: usize, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.read(offset, buf)
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        if self.0.read(offset, buf).is_ok() {
            return Ok(());
        }
        for (i, part) in buf.chunks_mut(SECTOR).enumerate() {
            let at = offset + (i * SECTOR) as u64;
            if let Err(error) = self.0.read(at, part) {
                warn(&format!("error while reading offset {at}"), &error);
                part.fill(0);
            }
        }
        Ok(())
    }
}

fn warn(what: &str, error: &vdisk_engine::Error) {
    crate::app::warning(&format!("{what}: {}", crate::app::reason(error)));
}
