//! Real images that others made.

use sha2::{Digest, Sha256};
use vdisk_engine::image::{ExtentKind, Repair};
use vdisk_engine::{Control, ErrorKind, Image};

use crate::support::Scratch;

#[test]
fn corpus_images_hold_what_the_manifest_says() {
    let Some(samples) = e2e::corpus::samples(&["qcow2"]) else {
        return;
    };
    let scratch = Scratch::new();
    let mut read = 0;
    for sample in &samples {
        let opened = scratch.try_open(&sample.path, |env| env);
        if sample.get("notes").contains("first 4 KiB only") {
            // Its L1 table is cut off. QEMU reads zeroes there; an image that lost its tables is not an empty disk.
            assert_eq!(opened.err().unwrap().kind(), ErrorKind::Corrupt, "{}", sample.name());
            continue;
        }
        let image = opened.unwrap_or_else(|e| panic!("{}: {e}", sample.name()));
        assert_eq!(Some(image.virtual_size()), sample.virtual_size(), "{}", sample.name());
        let report = image.check(Repair::No, &Control::default()).unwrap();
        assert_eq!(
            (report.corruptions, report.leaks),
            (0, 0),
            "{}: {:?}",
            sample.name(),
            report.messages
        );
        if let Some(expected) = sample.nonzero_digest().filter(|_| image.backing().is_none()) {
            assert_eq!(nonzero_digest(&*image), expected, "{}", sample.name());
            read += 1;
        }
    }
    assert!(read >= 5, "only {read} samples were read");
}

/// SHA-256 over offset and bytes of every 64 KiB block that is not all zero.
fn nonzero_digest(image: &dyn Image) -> String {
    const BLOCK: u64 = 64 << 10;
    let size = image.virtual_size();
    let mut hash = Sha256::new();
    let mut at = 0;
    while at < size {
        let extent = image.extent(at, size - at).unwrap();
        if matches!(extent.kind, ExtentKind::Unallocated | ExtentKind::Zero { .. }) && extent.len >= BLOCK {
            at += extent.len / BLOCK * BLOCK;
            continue;
        }
        let mut block = vec![0; BLOCK.min(size - at) as usize];
        image.read(at, &mut block).unwrap();
        if block.iter().any(|b| *b != 0) {
            hash.update(at.to_le_bytes());
            hash.update(&block);
        }
        at += BLOCK;
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}
