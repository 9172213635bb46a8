//! What the tests of several drivers share: images in memory, what a guest sees of them ([`bytes`] for lists of operations), and crashes
//! ([`crash`]). Which driver it is about is an argument.

pub(super) mod bytes;
pub(super) mod crash;

use std::ops::Range;
use std::sync::Arc;

use super::FormatDriver;
use crate::env::{CreateSpec, NoSecrets};
use crate::gate::{DenyAll, Gate};
use crate::image::{Below, ExtentKind, Resize};
use crate::options::Options;
use crate::storage::MemoryStorage;
use crate::{CreateEnv, Image, Limits, OpenEnv, Result, StorageRef};

type Driver = &'static dyn FormatDriver;

/// Makes an image on `storage`, at the time 0.
pub(super) fn create_on(
    driver: Driver,
    storage: StorageRef,
    spec: &CreateSpec,
    gate: &dyn Gate,
    random: &dyn Fn(&mut [u8]),
) -> Result<()> {
    let env = CreateEnv {
        gate,
        limits: &Limits::default(),
        secrets: &NoSecrets,
        random,
        now: 0,
    };
    driver.create(storage, spec, &env)
}

/// The bytes of a new image of one file, with sevens for all that is random.
pub(super) fn created(driver: Driver, size: u64, options: Options) -> Vec<u8> {
    let storage = Arc::new(MemoryStorage::empty());
    let spec = CreateSpec {
        virtual_size: size,
        options,
        backing: None,
    };
    create_on(driver, storage.clone(), &spec, &DenyAll, &|bytes| bytes.fill(7)).unwrap();
    storage.contents()
}

/// A file with these bytes.
pub(super) fn file(bytes: Vec<u8>) -> Arc<MemoryStorage> {
    Arc::new(MemoryStorage::new("m", bytes))
}

/// Opens for writing.
pub(super) fn open_on(driver: Driver, storage: StorageRef) -> Result<Box<dyn Image>> {
    let limits = Limits::default();
    driver.open(storage, &Options::new(), &OpenEnv::closed(&limits).writable())
}

/// Opens for writing whatever a check can look at.
pub(super) fn open_to_check(driver: Driver, bytes: Vec<u8>) -> (Arc<MemoryStorage>, Box<dyn Image>) {
    let storage = file(bytes);
    let limits = Limits::default();
    let env = OpenEnv::closed(&limits).writable().for_check();
    (storage.clone(), driver.open(storage, &Options::new(), &env).unwrap())
}

/// An image with the given bytes after `work` was done on it: its bytes then, and what it shows over `below`.
pub(super) fn changed(driver: Driver, bytes: Vec<u8>, below: u8, work: impl Fn(&dyn Image)) -> (Vec<u8>, Vec<u8>) {
    let storage = file(bytes);
    let image = open_on(driver, storage.clone()).unwrap();
    work(image.as_ref());
    image.close().unwrap();
    (storage.contents(), seen(image.as_ref(), below))
}

/// Larger or smaller.
pub(super) fn to_size(virtual_size: u64) -> Resize {
    Resize {
        virtual_size,
        shrink: true,
        ..Resize::default()
    }
}

/// A layer below that is all one byte.
pub(super) struct All(pub u8);

impl Below for All {
    fn read(&self, _offset: u64, buf: &mut [u8]) -> Result<()> {
        buf.fill(self.0);
        Ok(())
    }
    fn is_zero(&self, _offset: u64, _len: u64) -> Result<bool> {
        Ok(self.0 == 0)
    }
}

/// What reading the whole layer gives.
pub(super) fn whole(image: &dyn Image) -> Vec<u8> {
    let mut buf = vec![0xee; image.virtual_size() as usize];
    image.read(0, &mut buf).unwrap();
    buf
}

/// What the guest sees with a layer of the byte `below` under this one. What is told to be zeroes must read so.
pub(super) fn seen(image: &dyn Image, below: u8) -> Vec<u8> {
    seen_in(image, 0..image.virtual_size(), below)
}

/// What it sees in a range.
pub(super) fn seen_in(image: &dyn Image, range: Range<u64>, below: u8) -> Vec<u8> {
    let mut buf = vec![0xee; (range.end - range.start) as usize];
    image.read(range.start, &mut buf).unwrap();
    let mut rest = buf.as_mut_slice();
    let mut at = range.start;
    while at < range.end {
        let extent = image.extent(at, range.end - at).unwrap();
        let (now, later) = rest.split_at_mut(extent.len as usize);
        match extent.kind {
            ExtentKind::Unallocated => now.fill(below),
            ExtentKind::Zero { .. } => assert!(now.iter().all(|b| *b == 0)),
            _ => {}
        }
        at += extent.len;
        rest = later;
    }
    buf
}
