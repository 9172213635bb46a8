//! Host clusters with a second user that their refcounts know nothing of.

use std::sync::Arc;

use vdisk_engine::Storage;
use vdisk_engine::image::{NothingBelow, Repair};
use vdisk_engine::options::Options;
use vdisk_engine::storage::MemoryStorage;

use crate::support::{Files, assert_clean, corruptions, fails_as_corrupt, read_all, set_word, three_clusters, word};

const CLUSTER: u64 = 1 << 16;
const COPIED: u64 = 1 << 63;
/// Where an image that was just made has its only refcount block and, once it was written, its only L2 table.
const BLOCK: u64 = 0x2_0000;
const L2: u64 = 0x4_0000;

fn set_refcount(storage: &MemoryStorage, cluster: u64, count: u16) {
    storage.write_at(BLOCK + 2 * cluster, &count.to_be_bytes()).unwrap();
}

#[test]
fn a_cluster_that_compressed_data_uses_too_is_not_written() {
    let files = Files::default();
    let storage = Arc::new(MemoryStorage::empty());
    files.create_on(storage.clone(), 1 << 20, Options::new(), None);
    let image = files.open_on(storage.clone(), true).unwrap();
    image.write_compressed(0, &[5; CLUSTER as usize]).unwrap();
    image.close().unwrap();
    drop(image);
    // 64 KiB clusters: the offset has 54 bits.
    let place = word(&storage, L2) & ((1 << 54) - 1) & !(CLUSTER - 1);
    set_word(&storage, L2 + 8, COPIED | place);
    let before = storage.contents();
    let image = files.open_on(storage.clone(), true).unwrap();
    fails_as_corrupt("write", image.write(CLUSTER, &[9; 512], &NothingBelow));
    drop(image);
    assert!(storage.contents() == before, "written");
    // Counted as what they are, the two do not harm each other.
    set_refcount(&storage, place >> 16, 2);
    let image = files.open_on(storage.clone(), true).unwrap();
    image.write(CLUSTER, &[9; CLUSTER as usize], &NothingBelow).unwrap();
    let mut buf = [0; 512];
    image.read(0, &mut buf).unwrap();
    assert_eq!(buf, [5; 512]);
}

/// Refcounts and flags that know nothing of a snapshot: what is written would be written into it.
#[test]
fn clusters_of_a_snapshot_are_not_written() {
    let files = Files::default();
    // The table and its clusters, or a cluster alone of a table that the active image has for itself.
    for own_table in [false, true] {
        let storage = three_clusters(&files, Options::new());
        let image = files.open_on(storage.clone(), true).unwrap();
        image.snapshots().unwrap().create("s", (0, 0)).unwrap();
        if own_table {
            image.write(5 * CLUSTER, &[6; 512], &NothingBelow).unwrap();
        }
        image.close().unwrap();
        drop(image);
        let l1 = word(&storage, 40);
        let table = word(&storage, l1) & !COPIED;
        let data = word(&storage, table) & !COPIED;
        set_word(&storage, l1, COPIED | table);
        set_word(&storage, table, COPIED | data);
        set_refcount(&storage, table >> 16, 1);
        set_refcount(&storage, data >> 16, 1);
        assert!(corruptions(storage.clone(), &files, Repair::No).0 > 0);
        let before = storage.contents();
        let image = files.open_on(storage.clone(), true).unwrap();
        fails_as_corrupt("write", image.write(0, &[9; 512], &NothingBelow));
        drop(image);
        assert!(storage.contents() == before, "written");
        corruptions(storage.clone(), &files, Repair::All);
        let image = files.open_on(storage.clone(), true).unwrap();
        image.write(0, &[9; 512], &NothingBelow).unwrap();
        let kept = read_all(&*image.snapshots().unwrap().open("s").unwrap());
        assert!(kept[..CLUSTER as usize].iter().all(|b| *b == 1));
        image.close().unwrap();
        assert_clean(&*image);
    }
}
