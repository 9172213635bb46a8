//! Compressed clusters whose entries say more than they need.

use std::sync::Arc;

use e2e::tools::{arg, have, run};
use vdisk_engine::image::{NothingBelow, Repair};
use vdisk_engine::options::Options;
use vdisk_engine::storage::MemoryStorage;

use crate::support::{Files, Scratch, assert_clean, corruptions, read_all, set_word, word};

const CLUSTER: u64 = 1 << 16;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// Where an image that was just made has its only L2 table.
const L2: u64 = 0x4_0000;

/// QEMU reads such a cluster, and reports the flag.
#[test]
fn a_compressed_cluster_with_the_copied_flag_is_read_and_mended() {
    let files = Files::default();
    let storage = Arc::new(MemoryStorage::empty());
    files.create_on(storage.clone(), 1 << 20, Options::new(), None);
    let image = files.open_on(storage.clone(), true).unwrap();
    image.write_compressed(0, &[5; CLUSTER as usize]).unwrap();
    image.close().unwrap();
    let good = read_all(&*image);
    drop(image);
    let entry = word(&storage, L2);
    assert_eq!(entry & (COPIED | COMPRESSED), COMPRESSED);
    set_word(&storage, L2, COPIED | entry);
    if have(&["qemu-img"]) {
        let scratch = Scratch::new();
        let (path, raw) = (scratch.file("a.qcow2"), scratch.file("a.raw"));
        std::fs::write(&path, storage.contents()).unwrap();
        assert_eq!(run("qemu-img", &["check", arg(&path)]).status.code(), Some(2));
        run("qemu-img", &["convert", "-O", "raw", arg(&path), arg(&raw)]);
        assert!(std::fs::read(&raw).unwrap() == good);
    }
    assert!(read_all(&*files.open_on(storage.clone(), false).unwrap()) == good);
    // A write goes elsewhere, whatever the flag says.
    let written = Arc::new(MemoryStorage::new("written", storage.contents()));
    let image = files.open_on(written.clone(), true).unwrap();
    image.write(0, &[9; 512], &NothingBelow).unwrap();
    image.close().unwrap();
    assert_clean(&*image);
    assert!(read_all(&*image)[512..] == good[512..]);
    assert_eq!(corruptions(storage.clone(), &files, Repair::No), (1, 0));
    assert_eq!(corruptions(storage.clone(), &files, Repair::All), (0, 1));
    assert_eq!(word(&storage, L2), entry);
    assert_clean(&*files.open_on(storage, false).unwrap());
}
