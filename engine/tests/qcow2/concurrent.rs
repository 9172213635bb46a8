//! Readers beside a writer: what they see is what was there or what was written, never what stands in clusters that are free.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vdisk_engine::image::{ExtentKind, NothingBelow};
use vdisk_engine::options::Options;
use vdisk_engine::storage::MemoryStorage;
use vdisk_engine::{Image, Result};

use crate::support::Files;

const CLUSTER: u64 = 512;
/// Guest bytes of one L2 table.
const SPAN: u64 = CLUSTER / 8 * CLUSTER;
const TABLES: u64 = 64;
const ROUNDS: usize = 60;

/// An empty image whose free clusters hold what looks like L2 tables full of data.
fn over_stale_tables() -> Arc<MemoryStorage> {
    let storage = Arc::new(MemoryStorage::empty());
    let options = Options::new().with("cluster_size", CLUSTER.to_string());
    Files::default().create_on(storage.clone(), TABLES * SPAN, options, None);
    let mut bytes = storage.contents();
    let end = bytes.len() as u64 + (1 << 20);
    let entry = 1 << 63 | (end - CLUSTER);
    while (bytes.len() as u64) < end {
        bytes.extend(u64::to_be_bytes(entry));
    }
    Arc::new(MemoryStorage::new("stale", bytes))
}

/// A reader's look at the first two clusters of a table, of which the first is being written with sevens.
fn look(image: &dyn Image, table: u64) -> Result<()> {
    let (written, free) = (table * SPAN, table * SPAN + CLUSTER);
    let extent = image.extent(free, CLUSTER)?;
    assert!(matches!(extent.kind, ExtentKind::Unallocated), "{free:#x}: {extent:?}");
    let mut bytes = [0; 2 * CLUSTER as usize];
    image.read(written, &mut bytes)?;
    let (first, second) = bytes.split_at(CLUSTER as usize);
    assert!(
        first == [0; 512] || first == [7; 512],
        "{written:#x}: {:x?}",
        &first[..8]
    );
    assert!(second == [0; 512], "{free:#x}: {:x?}", &second[..8]);
    Ok(())
}

#[test]
fn a_new_table_is_seen_with_its_content_alone() {
    for _ in 0..ROUNDS {
        let image = Files::default().open_on(over_stale_tables(), true).unwrap();
        let (table, done) = (AtomicU64::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let readers = [(); 3].map(|()| {
                scope.spawn(|| {
                    while !done.load(Ordering::Acquire) {
                        look(&*image, table.load(Ordering::Relaxed)).unwrap();
                    }
                })
            });
            let write = |index| {
                table.store(index, Ordering::Relaxed);
                image.write(index * SPAN, &[7; CLUSTER as usize], &NothingBelow)
            };
            let written = (0..TABLES).try_for_each(write);
            done.store(true, Ordering::Release);
            written.unwrap();
            readers.into_iter().for_each(|reader| reader.join().unwrap());
        });
    }
}
