//! External data files: each guest cluster is at its own offset there.

use std::sync::Arc;

use vdisk_engine::Control;
use vdisk_engine::image::{NothingBelow, Repair};
use vdisk_engine::options::Options;
use vdisk_engine::storage::MemoryStorage;

use crate::support::{Files, assert_clean, corruptions, fails_as_corrupt, set_word, three_clusters, word};

const CLUSTER: u64 = 1 << 16;
const COPIED: u64 = 1 << 63;
/// Where an image that was just made has its only L2 table.
const L2: u64 = 0x4_0000;

/// The specification: "the offset must be the guest offset" for clusters in an external data file.
#[test]
fn a_data_file_has_each_cluster_at_its_own_offset() {
    for extended in ["off", "on"] {
        let files = Files::default();
        let options = Options::new().with("data_file", "d.raw").with("extended_l2", extended);
        let storage = three_clusters(&files, options);
        let entry = if extended == "on" { L2 + 16 } else { L2 + 8 };
        assert_eq!(word(&storage, entry), COPIED | CLUSTER);
        set_word(&storage, entry, COPIED | (2 * CLUSTER));
        let data = |at: u64| {
            let mut byte = [0];
            files.get("d.raw").read_at(at, &mut byte).unwrap();
            byte[0]
        };
        let image = files.open_on(storage.clone(), true).unwrap();
        let mut buf = [0; 512];
        image.read(0, &mut buf).unwrap();
        assert_eq!(buf, [1; 512], "the cluster before is good");
        fails_as_corrupt("read", image.read(CLUSTER, &mut buf));
        fails_as_corrupt("map", image.extent(CLUSTER, 512).map(|_| ()));
        fails_as_corrupt("write", image.write(CLUSTER, &[9; 512], &NothingBelow));
        assert_eq!((data(CLUSTER), data(2 * CLUSTER)), (2, 3), "written elsewhere");
        drop(image);
        // The image is marked; nothing can tell which bytes were meant.
        let (wrong, mended) = corruptions(storage.clone(), &files, Repair::All);
        assert!(wrong > 0 && mended == 0, "{wrong} {mended}");
    }
}

#[test]
fn a_table_for_two_places_of_a_data_file_is_corrupt() {
    let files = Files::default();
    let options = Options::new().with("data_file", "d.raw").with("cluster_size", "512");
    let storage = Arc::new(MemoryStorage::empty());
    files.create_on(storage.clone(), 1 << 20, options, None);
    let image = files.open_on(storage.clone(), true).unwrap();
    image.write(0, &[1; 512], &NothingBelow).unwrap();
    image.close().unwrap();
    drop(image);
    let l1 = word(&storage, 40);
    let table = word(&storage, l1) & !COPIED;
    set_word(&storage, l1, table);
    set_word(&storage, l1 + 8, table);
    let image = files.open_on(storage.clone(), false).unwrap();
    image.read(0, &mut [0; 512]).unwrap();
    fails_as_corrupt("read", image.read(512 / 8 * 512, &mut [0; 512]));
    let report = image.check(Repair::No, &Control::default()).unwrap();
    let told = report.messages.iter().any(|m| m.contains("data file"));
    assert!(told, "{:#?}", report.messages);
}

/// Zeroes with a place have no data to be looked for elsewhere, and those at offset 0 have no place: QEMU takes them as they are.
#[test]
fn zeroes_in_a_data_file_need_no_place() {
    let files = Files::default();
    let storage = three_clusters(&files, Options::new().with("data_file", "d.raw"));
    set_word(&storage, L2 + 8, COPIED | 1);
    let image = files.open_on(storage.clone(), true).unwrap();
    let mut buf = [7; 512];
    image.read(CLUSTER, &mut buf).unwrap();
    assert_eq!(buf, [0; 512]);
    image.write_zeroes(0, CLUSTER, false, &NothingBelow).unwrap();
    image.write(100, &[4; 100], &NothingBelow).unwrap();
    image.read(0, &mut buf).unwrap();
    assert_eq!((&buf[..100], &buf[100..200]), (&[0; 100][..], &[4; 100][..]));
    image.close().unwrap();
    assert_clean(&*image);
}
