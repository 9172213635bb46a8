//! Growth with preallocation that cannot be finished.

use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;

use vdisk_engine::Control;
use vdisk_engine::image::{NothingBelow, Preallocation, Repair, Resize};
use vdisk_engine::options::Options;
use vdisk_engine::storage::{Fault, FaultyStorage, LoggedOp, MemoryStorage};

use crate::support::{Files, Scratch, assert_clean, read_all};

/// Whichever write finds no space: nothing is reserved, nothing leaks, and what was there is there.
#[test]
fn growth_that_finds_no_space_takes_back_what_it_reserved() {
    for (cluster, version, data_file) in [("64k", "1.1", false), ("512", "0.10", false), ("4k", "1.1", true)] {
        let memory = Arc::new(MemoryStorage::empty());
        let files = Files::default();
        let mut options = Options::new().with("cluster_size", cluster).with("compat", version);
        if data_file {
            options = options.with("data_file", "data");
        }
        files.create_on(memory.clone(), 256 << 10, options, None);
        let image = files.open_on(memory.clone(), true).unwrap();
        image.write(1000, &[7; 70_000], &NothingBelow).unwrap();
        image.close().unwrap();
        drop(image);
        let before = read_all(&*files.open_on(memory.clone(), false).unwrap());
        let start = memory.contents();
        let to = Resize {
            virtual_size: 3 << 20,
            preallocation: Preallocation::Full,
            ..Resize::default()
        };
        let (mut failed, mut change) = (0, 0);
        loop {
            let storage = Arc::new(FaultyStorage::new(start.clone()));
            let image = files.open_on(storage.clone(), true).unwrap();
            storage.plan(change, Fault::FailOnce(std::io::ErrorKind::StorageFull));
            let Err(error) = image.resize(&to) else { break };
            let what = format!("{cluster} {version} {data_file}: {error} ({change})");
            let log = storage.log();
            // What a failed flush or a failed write of the header leaves in the file is not known.
            let hit = &log[change as usize];
            let header = matches!(hit, LoggedOp::Write { offset: 0..104, .. });
            change += 1;
            if matches!(hit, LoggedOp::Flush) || header || image.virtual_size() != 256 << 10 {
                continue;
            }
            failed += 1;
            let _ = image.close();
            drop(image);
            let image = files
                .open_on(Arc::new(MemoryStorage::new("m", storage.contents())), false)
                .unwrap();
            assert!(read_all(&*image) == before, "{what}");
            let report = image.check(Repair::No, &Control::default()).unwrap();
            assert_eq!((report.leaks, report.corruptions), (0, 0), "{what}: {report:?}");
            if data_file {
                assert_eq!(files.get("data").len().unwrap(), 256 << 10, "{what}");
            }
            // The L1 table may have grown. Blocks of refcounts stay where they are, of small clusters far back.
            let longest = start.len() + (128 << 10);
            assert!(cluster == "512" || storage.contents().len() <= longest, "{what}");
        }
        assert!(failed > 3, "{cluster}: {failed} writes failed");
    }
}

#[test]
fn growth_reserves_space_in_the_data_file_too() {
    let scratch = Scratch::new();
    for (how, name) in [(Preallocation::Falloc, "falloc"), (Preallocation::Full, "full")] {
        let (path, data) = (scratch.file("grown.qcow2"), scratch.file(name));
        let options = Options::new().with("data_file", e2e::tools::arg(&data));
        scratch.create(&path, 1 << 20, options);
        let image = scratch.open_writable(&path);
        let to = Resize {
            virtual_size: (3 << 20) + 512,
            preallocation: how,
            ..Resize::default()
        };
        image.resize(&to).unwrap();
        image.close().unwrap();
        let found = std::fs::metadata(&data).unwrap();
        assert_eq!(found.len(), (3 << 20) + 512, "{name}");
        assert!(found.blocks() * 512 >= 2 << 20, "{name}: {} blocks", found.blocks());
    }
}

/// What was cut off a data file is missed by the check, as it is by who reads.
#[test]
fn a_data_file_that_ends_before_its_data_is_corrupt() {
    let scratch = Scratch::new();
    let (path, data) = (scratch.file("cut.qcow2"), scratch.file("data"));
    let options = Options::new()
        .with("data_file", e2e::tools::arg(&data))
        .with("data_file_raw", "on");
    scratch.create(&path, 1 << 20, options);
    let check = || scratch.open(&path).check(Repair::No, &Control::default()).unwrap();
    assert_eq!(check().corruptions, 0);
    std::fs::File::options()
        .write(true)
        .open(&data)
        .unwrap()
        .set_len(640 << 10)
        .unwrap();
    assert_eq!(check().corruptions, 6);
}

/// Free clusters that the growth takes first hold old bytes, and what lies behind the end of the file does not.
#[test]
fn a_free_cluster_before_the_end_is_all_that_is_zeroed() {
    let scratch = Scratch::new();
    let path = scratch.file("grown.qcow2");
    for (how, least, most) in [
        (Preallocation::Metadata, 0, 2 << 20),
        (Preallocation::Falloc, 32 << 20, 34 << 20),
    ] {
        scratch.create(&path, 1 << 20, Options::new());
        let image = scratch.open_writable(&path);
        image.write(0, &[7; 64 << 10], &NothingBelow).unwrap();
        let snapshots = image.snapshots().unwrap();
        snapshots.create("s", (0, 0)).unwrap();
        snapshots.delete("s").unwrap();
        image.close().unwrap();
        let to = Resize {
            virtual_size: 33 << 20,
            preallocation: how,
            ..Resize::default()
        };
        image.resize(&to).unwrap();
        image.close().unwrap();
        let space = std::fs::metadata(&path).unwrap().blocks() * 512;
        assert!((least..most).contains(&space), "{how:?}: {space} bytes of space");
        let bytes = read_all(&*image);
        assert!(bytes[..64 << 10].iter().all(|b| *b == 7) && bytes[64 << 10..].iter().all(|b| *b == 0));
        assert_clean(&*image);
    }
}
