//! Tables of formats with two levels (qed, qcow) that are read while others are written.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};

use vdisk_engine::image::NothingBelow;
use vdisk_engine::options::Options;
use vdisk_engine::storage::{MemoryStorage, StorageExtent};
use vdisk_engine::{Limits, OpenEnv, Result, Storage, formats};

use crate::support::{created, open_rw};

/// Memory whose first reader at one place waits, with what it read in its hands.
#[derive(Debug)]
struct PausedStorage {
    inner: Arc<MemoryStorage>,
    at: u64,
    read: AtomicBool,
    /// Passed once by that reader and by the test: it has read, it may go on.
    gates: [Barrier; 2],
}

impl Storage for PausedStorage {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn len(&self) -> Result<u64> {
        self.inner.len()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.inner.read_at(offset, buf)?;
        if offset == self.at && !self.read.swap(true, Ordering::Relaxed) {
            for gate in &self.gates {
                gate.wait();
            }
        }
        Ok(())
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.inner.write_at(offset, buf)
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.inner.write_zeroes(offset, len, unmap)
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.discard(offset, len)
    }
    fn set_len(&self, len: u64) -> Result<()> {
        self.inner.set_len(len)
    }
    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }
    fn extent(&self, offset: u64, len: u64) -> Result<StorageExtent> {
        self.inner.extent(offset, len)
    }
    fn allocated(&self) -> Result<u64> {
        self.inner.allocated()
    }
    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.allocate(offset, len)
    }
    fn is_read_only(&self) -> bool {
        self.inner.is_read_only()
    }
}

/// A reader has an old table in its hands while an entry of it is written, flushed, and dropped from memory in favour of others.
#[test]
fn a_table_that_was_written_while_it_was_read_is_not_taken_as_read() {
    const CLUSTER: usize = 4096;
    // A table of two clusters has 1024 entries.
    const SPAN: u64 = 1024 * CLUSTER as u64;
    let memory = created("qed", 8 * SPAN, &[("cluster_size", "4096"), ("table_size", "2")]);
    let image = open_rw(memory.clone(), "qed").unwrap();
    for table in 0..8 {
        image.write(table * SPAN, &[1; CLUSTER], &NothingBelow).unwrap();
    }
    image.close().unwrap();
    drop(image);
    let number = |at: usize| u64::from_le_bytes(memory.contents()[at..at + 8].try_into().unwrap());
    let first_table = number(usize::try_from(number(40)).unwrap());
    let storage = Arc::new(PausedStorage {
        inner: memory.clone(),
        at: first_table,
        read: AtomicBool::new(false),
        gates: [Barrier::new(2), Barrier::new(2)],
    });
    let limits = Limits {
        cache_bytes: 1,
        ..Limits::default()
    };
    let env = OpenEnv::closed(&limits).writable();
    let driver = formats::by_name("qed").unwrap();
    let image = driver.open(storage.clone(), &Options::new(), &env).unwrap();
    let mut bytes = [0; CLUSTER];
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| image.read(2 * SPAN / 1024, &mut [0; CLUSTER]));
        storage.gates[0].wait();
        image.write(2 * SPAN / 1024, &[9; CLUSTER], &NothingBelow).unwrap();
        image.flush().unwrap();
        for table in 1..8 {
            image.read(table * SPAN, &mut bytes).unwrap();
        }
        storage.gates[1].wait();
        reader.join().unwrap().unwrap();
    });
    image.read(2 * SPAN / 1024, &mut bytes).unwrap();
    assert!(bytes == [9; CLUSTER], "what was written and flushed is gone");
}
