//! Growing: what lay past the old end does not come back.

use std::sync::Arc;

use super::Vmdk;
use super::tests::{Files, GRAIN, created, half_written, open_on, whole};
use crate::formats::FormatDriver;
use crate::formats::testing::to_size;
use crate::image::{NothingBelow, Repair};
use crate::options::Options;
use crate::storage::MemoryStorage;
use crate::{Control, Image, Limits, OpenEnv};

fn corruptions(image: &dyn Image) -> u64 {
    let report = image.check(Repair::No, &Control::default()).unwrap();
    report.corruptions + report.messages.iter().filter(|m| m.contains("differ")).count() as u64
}

#[test]
fn the_part_of_an_extent_that_the_descriptor_left_out_is_zeroes_after_growing() {
    let extent = Arc::new(MemoryStorage::new("s001.vmdk", created(40 * GRAIN, Options::new())));
    let image = open_on(extent.clone()).unwrap();
    image.write(0, &vec![b'S'; 40 * GRAIN as usize], &NothingBelow).unwrap();
    image.close().unwrap();
    for sectors in [1000u64, 1024] {
        for grown in [sectors + 1, 1025, 2048, 40 * 128, 100 * 128] {
            let files = Files::default();
            files.add("s001.vmdk", extent.contents());
            let text = format!(
                "# Disk DescriptorFile\nversion=1\nCID=00000001\nparentCID=ffffffff\ncreateType=\"twoGbMaxExtentSparse\"\n\
                 RW {sectors} SPARSE \"s001.vmdk\"\n"
            );
            let main = files.add("disk.vmdk", text.into_bytes());
            let limits = Limits::default();
            let env = OpenEnv::closed(&limits).with_gate(&files).writable();
            let image = Vmdk.open(main.clone(), &Options::new(), &env).unwrap();
            let old = sectors as usize * 512;
            // In steps: what a first growth does not show must not come with the second.
            for size in [grown * 512, grown * 512 + 30 * GRAIN] {
                image.resize(&to_size(size)).unwrap();
                let seen = whole(image.as_ref());
                assert!(seen[..old].iter().all(|b| *b == b'S'), "{sectors} to {grown}");
                assert!(seen[old..].iter().all(|b| *b == 0), "{sectors} to {grown}");
            }
            image.close().unwrap();
            let again = Vmdk.open(main, &Options::new(), &env).unwrap();
            assert!(
                whole(again.as_ref())[old..].iter().all(|b| *b == 0),
                "{sectors} to {grown}"
            );
            assert_eq!(corruptions(again.as_ref()), 0);
        }
    }
}

/// Entries of both tables that are past the end of the disk: of a grain of their own, and of one that the guest has elsewhere.
#[test]
fn entries_past_the_end_of_the_disk_do_not_come_back() {
    let (bytes, content) = half_written();
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let tables = [48, 56].map(|at| word(word(at) * 512) * 512);
    let mut stale = bytes.clone();
    stale.extend_from_slice(&[b'X'; GRAIN as usize]);
    for table in tables {
        let own = (bytes.len() / 512) as u32;
        stale[table + 25 * 4..][..4].copy_from_slice(&own.to_le_bytes());
        let shared = word(table + 3 * 4) as u32;
        stale[table + 30 * 4..][..4].copy_from_slice(&shared.to_le_bytes());
    }
    let storage = Arc::new(MemoryStorage::new("m", stale));
    let image = open_on(storage.clone()).unwrap();
    image.resize(&to_size(40 * GRAIN)).unwrap();
    image.close().unwrap();
    let again = open_on(storage).unwrap();
    let seen = whole(again.as_ref());
    assert!(seen[..content.len()] == content);
    assert!(seen[content.len()..].iter().all(|b| *b == 0));
    assert_eq!(corruptions(again.as_ref()), 0);
    let report = again.check(Repair::Leaks, &Control::default()).unwrap();
    assert_eq!((report.leaks, report.leaks_fixed), (0, 1), "{:?}", report.messages);
}
