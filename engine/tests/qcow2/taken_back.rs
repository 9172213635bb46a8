//! A rebase that fails: what it copied into the overlay goes again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vdisk_engine::control::Progress;
use vdisk_engine::image::NothingBelow;
use vdisk_engine::ops::convert::CopyOptions;
use vdisk_engine::ops::rebase::{rebase, rebase_or_keep};
use vdisk_engine::options::Options;
use vdisk_engine::storage::{Fault, FaultyStorage, LoggedOp, MemoryStorage};
use vdisk_engine::{CancelToken, Chain, Control, Image, Result, StorageRef};

use crate::support::{Files, Scratch, assert_clean, assert_qemu_clean, pattern};

/// A base that is full, and the file of an overlay that has a little of its own.
fn pair(size: u64, options: Options) -> (Files, Vec<u8>) {
    let (files, top) = (Files::default(), Arc::new(MemoryStorage::empty()));
    let base: StorageRef = Arc::new(MemoryStorage::empty());
    files.put("base", base.clone());
    files.create_on(base.clone(), size, Options::new(), None);
    let image = files.open_on(base, true).unwrap();
    for at in (0..size).step_by(1 << 20) {
        let bytes = pattern((size - at).min(1 << 20) as usize);
        image.write(at, &bytes, &NothingBelow).unwrap();
    }
    image.close().unwrap();
    files.create_on(top.clone(), size, options, Some(("base", "qcow2")));
    let image = files.open_on(top.clone(), true).unwrap();
    image.write(192 << 10, &[7; 128 << 10], &NothingBelow).unwrap();
    image.close().unwrap();
    (files, top.contents())
}

fn chain(files: &Files, top: StorageRef) -> Result<Chain> {
    Chain::from_layers(vec![
        files.open_on(top, true)?,
        files.open_on(files.get("base"), false)?,
    ])
}

/// What the overlay itself has, and where.
fn own(image: &dyn Image) -> Vec<String> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < image.virtual_size() {
        let extent = image.extent(at, image.virtual_size() - at).unwrap();
        found.push(format!("{at:#x}: {extent:?}"));
        at += extent.len;
    }
    found
}

/// The overlay in a file with these bytes.
fn overlay(files: &Files, bytes: Vec<u8>) -> Box<dyn Image> {
    files.open_on(Arc::new(MemoryStorage::new("m", bytes)), false).unwrap()
}

/// Whichever write finds no space: the overlay has what it had, on its old base, and its file is as long as it was.
#[test]
fn a_rebase_that_finds_no_space_takes_back_what_it_copied() {
    let scratch = Scratch::new();
    for (cluster, version, subclusters) in [("64k", "1.1", "off"), ("4k", "0.10", "off"), ("64k", "1.1", "on")] {
        let mut options = Options::new().with("cluster_size", cluster).with("compat", version);
        if subclusters == "on" {
            options = options.with("extended_l2", "on");
        }
        let (files, start) = pair(3 << 20, options);
        let before = own(&*overlay(&files, start.clone()));
        let mut base = vec![0; files.get("base").len().unwrap() as usize];
        files.get("base").read_at(0, &mut base).unwrap();
        std::fs::write(scratch.file("base"), base).unwrap();
        let (mut failed, mut change) = (0, 0);
        loop {
            let storage = Arc::new(FaultyStorage::new(start.clone()));
            let chain = chain(&files, storage.clone()).unwrap();
            let opened = storage.changes();
            storage.plan(change, Fault::FailOnce(std::io::ErrorKind::StorageFull));
            let done = rebase(&chain, None, None, &CopyOptions::default(), &Control::default());
            let Err(error) = done else { break };
            let what = format!("{cluster} {version} {subclusters}: {error} ({change})");
            // What a failed flush or a failed write of the header leaves in the file is not known.
            let hit = storage.log()[(opened + change) as usize].clone();
            change += 1;
            if matches!(hit, LoggedOp::Flush | LoggedOp::Write { offset: 0..104, .. }) {
                continue;
            }
            failed += 1;
            drop(chain);
            let image = overlay(&files, storage.contents());
            assert_eq!(own(&*image), before, "{what}");
            assert!(image.backing().is_some(), "{what}");
            assert_clean(&*image);
            assert!(storage.contents().len() <= start.len(), "{what}");
            if failed % 16 == 1 && e2e::tools::have(&["qemu-img"]) {
                assert_qemu_clean(&storage.contents(), &scratch, false, &what);
            }
        }
        assert!(failed > 3, "{cluster}: {failed} writes failed");
    }
}

/// Cancels when so many bytes are done.
struct Until(AtomicU64, CancelToken);

impl Progress for Until {
    fn set_total(&self, _bytes: u64) {}
    fn advance(&self, bytes: u64) {
        let left = self.0.load(Ordering::Relaxed).saturating_sub(bytes);
        self.0.store(left, Ordering::Relaxed);
        if left == 0 {
            self.1.cancel();
        }
    }
}

/// Also what was flushed on the way; but not when somebody will go on with it.
#[test]
fn a_rebase_that_is_cancelled_takes_back_what_was_stable_already() {
    let (files, start) = pair(64 << 20, Options::new());
    let before = own(&*overlay(&files, start.clone()));
    for keep in [false, true] {
        let storage = Arc::new(MemoryStorage::new("top", start.clone()));
        let chain = chain(&files, storage.clone()).unwrap();
        let token = CancelToken::new();
        let control = Control::new(Arc::new(Until((60 << 20).into(), token.clone())), token);
        let options = CopyOptions::default();
        let error = rebase_or_keep(&chain, None, None, &options, &|| keep, &control).unwrap_err();
        assert_eq!(error.kind(), vdisk_engine::ErrorKind::Cancelled);
        drop(chain);
        let image = overlay(&files, storage.contents());
        assert_clean(&*image);
        assert_eq!(own(&*image) == before, !keep);
        assert_eq!(storage.contents().len() <= start.len(), !keep);
    }
}
