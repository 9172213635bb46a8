//! Looks at an image in every way that changes nothing.

use std::sync::atomic::{AtomicU64, Ordering};

use vdisk_engine::gate::{Gate, Node, Reference};
use vdisk_engine::image::Repair;
use vdisk_engine::storage::read_vec;
use vdisk_engine::{Chain, Control, Error, ErrorKind, Image, OpenEnv, Result, Storage, StorageRef, ops};

use super::{Passphrase, limits, node};

/// Denies everything and counts.
#[derive(Default)]
pub struct Closed(AtomicU64);

impl Gate for Closed {
    fn open(&self, reference: &Reference<'_>) -> Result<Node> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Err(Error::denied(format!("{:?}", reference.name)))
    }
    fn create(&self, reference: &Reference<'_>) -> Result<StorageRef> {
        Err(Error::denied(format!("{:?}", reference.name)))
    }
}

/// Anything but a failure of the storage, which is memory and is only read.
pub fn typed<T>(verb: &str, result: Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            assert_ne!(error.kind(), ErrorKind::Io, "{verb}: {error:?}");
            let text = error.to_string();
            assert!(
                !text.is_empty() && !text.contains(['\n', '\u{1b}']),
                "{verb}: {text:?} is no line of text"
            );
            None
        }
    }
}

/// Info, check, map and read.
pub fn look(format: &str, storage: StorageRef) {
    let (gate, limits) = (Closed::default(), limits());
    let env = OpenEnv::closed(&limits).with_gate(&gate).with_secrets(&Passphrase);
    let open = |env: &OpenEnv<'_>| Chain::open(node(storage.clone(), format), env);
    if let Some(chain) = typed("info", open(&env.metadata_only())) {
        typed("info", chain.top().info());
        if let Some(slots) = chain.top().key_slots() {
            typed("key slots", slots.list());
        }
    }
    let asked = || gate.0.load(Ordering::Relaxed);
    assert!(asked() == 0 || format == "vmdk", "info asked for a second file");
    if let Some(chain) = typed("check", open(&env.for_check())) {
        typed("check", chain.top().check(Repair::No, &Control::default()));
    }
    let of_several_files = format == "vmdk" || has_data_file(format, &*storage);
    assert!(asked() == 0 || of_several_files, "check asked for a second file");
    if let Some(chain) = typed("open", open(&env)) {
        let map = ops::map::map(&chain, 0, chain.virtual_size());
        typed("map", map.take(100).collect::<Result<Vec<_>>>());
        read(&chain);
        inside(chain.top());
    }
}

/// Whether a qcow2 header says that the data are in another file: a check needs it, and the gate refuses.
pub fn has_data_file(format: &str, file: &dyn Storage) -> bool {
    format == "qcow2" && read_vec(file, 72, 8).is_ok_and(|bits| bits[7] & 4 != 0)
}

fn read(chain: &Chain) {
    let size = chain.virtual_size();
    let mut buf = vec![0; 16 << 10];
    for offset in [0, 64 << 10, size / 2, size.saturating_sub(buf.len() as u64)] {
        let len = usize::try_from(size.saturating_sub(offset))
            .unwrap_or(usize::MAX)
            .min(buf.len());
        typed("read", chain.read(offset, &mut buf[..len]));
    }
}

/// Snapshots and bitmaps.
fn inside(image: &dyn Image) {
    if let Some(snapshots) = image.snapshots()
        && let Some(list) = typed("snapshots", snapshots.list())
    {
        for snapshot in list.iter().take(3) {
            if let Some(then) = typed("snapshot", snapshots.open(&snapshot.id)) {
                let mut buf = vec![0; then.virtual_size().min(4096) as usize];
                typed("read a snapshot", then.read(0, &mut buf));
            }
        }
    }
    if let Some(bitmaps) = image.bitmaps()
        && let Some(list) = typed("bitmaps", bitmaps.list())
    {
        for bitmap in list.iter().take(3) {
            typed("bitmap", bitmaps.dirty(&bitmap.name));
        }
    }
}
