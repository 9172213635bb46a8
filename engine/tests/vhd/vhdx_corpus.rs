//! VHDX files that nobody here wrote, some with a log to replay.

use e2e::tools::{arg, have, ok, run};
use sha2::{Digest, Sha256};
use vdisk_engine::gate::Node;
use vdisk_engine::image::Repair;
use vdisk_engine::storage::{FileOptions, FileStorage};
use vdisk_engine::{Chain, Control, Limits, OpenEnv};

use super::vhdx::folder;
use crate::support::{Folder, hex, nonzero_digest};

fn sample(name: &str) -> Option<e2e::corpus::Sample> {
    let samples = e2e::corpus::samples(&["vhdx"])?;
    Some(samples.into_iter().find(|s| s.name() == name).unwrap())
}

/// The manifest has the digest that qemu-img gives after it replayed the log in a copy.
const REPLAYED: &str = "179cefe8b0587f123393eedf2aa7aa8d25798591178e6bc3950a09762f38f96f";

fn digest(chain: &Chain) -> String {
    let (size, mut sha) = (chain.virtual_size(), Sha256::new());
    let mut buf = vec![0; 4 << 20];
    for offset in (0..size).step_by(buf.len()) {
        let len = (size - offset).min(buf.len() as u64) as usize;
        chain.read(offset, &mut buf[..len]).unwrap();
        sha.update(&buf[..len]);
    }
    hex(&sha.finalize())
}

#[test]
fn a_dirty_log_is_replayed_in_memory_for_readers() {
    let Some(sample) = sample("qemu/iotest-dirtylog-10G-4M.vhdx") else {
        return;
    };
    let before = std::fs::read(&sample.path).unwrap();
    let folder = Folder(sample.path.parent().unwrap().to_owned());
    let chain = folder.open("iotest-dirtylog-10G-4M.vhdx", "vhdx", false);
    assert_eq!(digest(&chain), REPLAYED);
    let report = chain.top().check(Repair::No, &Control::default()).unwrap();
    assert_eq!(report.corruptions, 1, "{:?}", report.messages);
    assert!(
        std::fs::read(&sample.path).unwrap() == before,
        "a reader changed the file"
    );
}

#[test]
fn a_dirty_log_is_replayed_in_the_file_for_writers() {
    if !have(&["qemu-img"]) {
        return;
    }
    let Some(sample) = sample("qemu/iotest-dirtylog-10G-4M.vhdx") else {
        return;
    };
    let (_dir, folder) = folder();
    std::fs::copy(&sample.path, folder.path("a")).unwrap();
    assert!(
        !run("qemu-img", &["info", "-f", "vhdx", arg(&folder.path("a"))])
            .status
            .success()
    );
    let storage = std::sync::Arc::new(FileStorage::open(&folder.path("a"), FileOptions::write()).unwrap());
    let limits = Limits::default();
    let env = OpenEnv::closed(&limits).writable().for_check();
    let chain = Chain::open(Node::new(storage, "vhdx"), &env).unwrap();
    let report = chain.top().check(Repair::All, &Control::default()).unwrap();
    assert_eq!(
        (report.corruptions, report.corruptions_fixed),
        (0, 1),
        "{:?}",
        report.messages
    );
    // QEMU's own test of this sample: 18 MiB of 0xa5.
    let mut bytes = vec![0; 18 << 20];
    chain.read(0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|b| *b == 0xa5));
    drop(chain);
    ok("qemu-img", &["check", "-f", "vhdx", arg(&folder.path("a"))]);
    let again = folder.open("a", "vhdx", false);
    assert_eq!(
        again.top().check(Repair::No, &Control::default()).unwrap().corruptions,
        0
    );
}

#[test]
fn the_corpus_has_the_content_of_its_manifest() {
    let Some(samples) = e2e::corpus::samples(&["vhdx"]) else {
        return;
    };
    let mut read = 0;
    for sample in samples {
        let folder = Folder(sample.path.parent().unwrap().to_owned());
        let file = sample.path.file_name().unwrap().to_str().unwrap();
        let chain = folder.open(file, "vhdx", false);
        if let Some(size) = sample.virtual_size() {
            assert_eq!(chain.virtual_size(), size, "{}", sample.name());
        }
        if let Some(digest) = sample.nonzero_digest() {
            assert_eq!(nonzero_digest(&chain), digest, "{}", sample.name());
        } else if let Some(expected) = sample.content_sha256() {
            assert!(expected.contains(&digest(&chain)), "{}", sample.name());
        }
        let found = vdisk_engine::formats::detect(chain.top().storages()[0].as_ref()).unwrap();
        assert_eq!((found[0].0.name(), found[0].1), ("vhdx", 100), "{}", sample.name());
        read += 1;
    }
    assert!(read >= 9, "only {read} images");
}
