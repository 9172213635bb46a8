//! Tables that name one cluster again and again: to let go of all that takes time, but no memory.

use std::sync::Arc;

use vdisk_engine::image::{Repair, Resize};
use vdisk_engine::options::Options;
use vdisk_engine::storage::MemoryStorage;
use vdisk_engine::{Control, Image, Limits, OpenEnv, Result, formats};

use crate::cases::put;
use crate::exercise::peak_memory;
use crate::samples::sample_with;

/// L1 entries that name the same L2 table, of 8192 entries that name the same compressed cluster.
const TABLES: u64 = 1024;
const ENTRIES: u64 = 8192;
/// What a note for each would take is twice as much.
const MEMORY: u64 = 96 << 20;

/// As the sample of qcow2, with refcounts of 64 bits, which are right.
fn same_over_and_over() -> Vec<u8> {
    let mut bytes = sample_with("qcow2", &[("refcount_bits", "64")]);
    let mut set = |at: u64, width, value| put(&mut bytes, at as i64, width, value, true);
    set(36, 4, TABLES);
    (0..TABLES).for_each(|n| set(0x3_0000 + 8 * n, 8, 0x4_0000));
    (0..ENTRIES).for_each(|n| set(0x4_0000 + 8 * n, 8, 1 << 62 | 0x5_0000));
    set(0x2_0000 + 8 * 4, 8, TABLES);
    set(0x2_0000 + 8 * 5, 8, TABLES * ENTRIES);
    set(0x2_0000 + 8 * 6, 8, 0);
    bytes
}

fn changed(what: &str, change: impl FnOnce(&dyn Image) -> Result<()>) {
    let storage = Arc::new(MemoryStorage::new(what, same_over_and_over()));
    let limits = Limits {
        cache_bytes: 1 << 20,
        ..Limits::default()
    };
    let env = OpenEnv::closed(&limits).writable();
    let image = formats::by_name("qcow2")
        .unwrap()
        .open(storage, &Options::new(), &env)
        .unwrap();
    let found = |image: &dyn Image| {
        let report = image.check(Repair::No, &Control::default()).unwrap();
        (report.corruptions, report.leaks, report.messages)
    };
    assert_eq!(found(&*image), (0, 0, Vec::new()), "{what}: before");
    let before = peak_memory(true);
    change(&*image).unwrap();
    let taken = peak_memory(false).saturating_sub(before);
    assert!(taken < MEMORY, "{what}: took {taken} bytes");
    assert_eq!(found(&*image), (0, 0, Vec::new()), "{what}: after");
}

#[test]
fn letting_go_of_one_cluster_a_million_times_takes_no_memory() {
    let _alone = crate::alone();
    changed("shrink", |image| {
        image.resize(&Resize {
            virtual_size: 512 << 10,
            shrink: true,
            ..Resize::default()
        })
    });
    changed("make_empty", |image| image.make_empty());
}
