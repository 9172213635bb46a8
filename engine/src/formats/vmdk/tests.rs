//! Behaviour: a byte array under any operations over any base, whole after any crash, growing, mending, streams.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::Vmdk;
use crate::env::{CreateSpec, NoSecrets};
use crate::formats::FormatDriver;
pub(super) use crate::formats::testing::whole;
use crate::formats::testing::{All, seen};
use crate::gate::{DenyAll, Gate, Node, Reference};
use crate::image::{NothingBelow, Repair, Resize};
use crate::options::Options;
use crate::storage::{Fault, FaultyStorage, MemoryStorage};
use crate::{Control, CreateEnv, Error, ErrorKind, Image, Limits, OpenEnv, Result, StorageRef};

/// Files by name, opened for whoever asks.
#[derive(Default)]
pub(super) struct Files(pub Mutex<HashMap<String, Arc<MemoryStorage>>>);

impl Files {
    pub fn add(&self, name: &str, bytes: Vec<u8>) -> StorageRef {
        let file = Arc::new(MemoryStorage::new(name, bytes));
        self.0.lock().unwrap().insert(name.into(), file.clone());
        file
    }
}

impl Gate for Files {
    fn open(&self, reference: &Reference<'_>) -> Result<Node> {
        let found = self.0.lock().unwrap().get(reference.name).cloned();
        found
            .map(|file| Node::new(file, reference.format.unwrap_or("raw")))
            .ok_or_else(|| Error::denied(format!("no file {:?}", reference.name)))
    }
    fn create(&self, reference: &Reference<'_>) -> Result<StorageRef> {
        Ok(self.add(reference.name, Vec::new()))
    }
}

fn create_with(gate: &dyn Gate, main: StorageRef, size: u64, options: Options) {
    let limits = Limits::default();
    let env = CreateEnv {
        gate,
        limits: &limits,
        secrets: &NoSecrets,
        random: &|bytes| bytes.fill(7),
        now: 0,
    };
    let spec = CreateSpec {
        virtual_size: size,
        options,
        backing: None,
    };
    Vmdk.create(main, &spec, &env).unwrap();
}

pub(super) fn created(size: u64, options: Options) -> Vec<u8> {
    let storage = Arc::new(MemoryStorage::new("disk.vmdk", Vec::new()));
    create_with(&DenyAll, storage.clone(), size, options);
    storage.contents()
}

pub(super) fn stream_options() -> Options {
    Options::new().with("subformat", "streamOptimized")
}

pub(super) fn open_on(storage: StorageRef) -> Result<Box<dyn Image>> {
    Vmdk.open(
        storage,
        &Options::new(),
        &OpenEnv::closed(&Limits::default()).writable(),
    )
}

pub(super) fn open_to_check(bytes: Vec<u8>) -> Box<dyn Image> {
    let limits = Limits::default();
    let env = OpenEnv::closed(&limits).writable().for_check();
    Vmdk.open(Arc::new(MemoryStorage::new("m", bytes)), &Options::new(), &env)
        .unwrap()
}

pub(super) fn assert_clean(image: &dyn Image) {
    let report = image.check(Repair::No, &Control::default()).unwrap();
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{:?}", report.messages);
}

pub(super) const GRAIN: u64 = 65536;
const SIZE: u64 = 12 * GRAIN + 512;

#[derive(Debug, Clone)]
enum Op {
    Write(u64, u64, u8),
    Zero(u64, u64, bool),
    Flush,
    Reopen,
    Grow(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let range = (0..SIZE, 1..3 * GRAIN).prop_map(|(o, l)| (o, l.min(SIZE - o)));
    prop_oneof![
        4 => (range.clone(), 1..=255u8).prop_map(|((o, l), b)| Op::Write(o, l, b)),
        2 => (range, any::<bool>()).prop_map(|((o, l), u)| Op::Zero(o, l, u)),
        1 => Just(Op::Flush),
        1 => Just(Op::Reopen),
        1 => (1..3000u64).prop_map(Op::Grow),
    ]
}

fn run(zero_grains: bool, below: u8, ops: &[Op]) {
    let below = All(below);
    let options = Options::new().with("zeroed_grain", if zero_grains { "on" } else { "off" });
    let storage: StorageRef = Arc::new(MemoryStorage::new("disk.vmdk", created(SIZE, options)));
    let mut image = open_on(storage.clone()).unwrap();
    let mut model = vec![below.0; SIZE as usize];
    for op in ops {
        match *op {
            Op::Write(o, l, b) => {
                image.write(o, &vec![b; l as usize], &below).unwrap();
                model[o as usize..(o + l) as usize].fill(b);
            }
            Op::Zero(o, l, unmap) => {
                image.write_zeroes(o, l, unmap, &below).unwrap();
                model[o as usize..(o + l) as usize].fill(0);
            }
            Op::Flush => image.flush().unwrap(),
            Op::Reopen => {
                image.close().unwrap();
                image = open_on(storage.clone()).unwrap();
            }
            Op::Grow(sectors) if below.0 == 0 && image.virtual_size() < 100 << 20 => {
                let virtual_size = image.virtual_size() + sectors * 512;
                let to = Resize {
                    virtual_size,
                    ..Resize::default()
                };
                image.resize(&to).unwrap();
                model.resize(virtual_size as usize, 0);
            }
            Op::Grow(_) => {}
        }
    }
    assert!(seen(image.as_ref(), below.0) == model, "contents differ");
    image.close().unwrap();
    let again = open_on(storage).unwrap();
    assert!(
        seen(again.as_ref(), below.0) == model,
        "contents differ after reopening"
    );
    assert_clean(again.as_ref());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn it_is_a_byte_array_under_any_operations(
        zero_grains in any::<bool>(),
        below in prop::sample::select(vec![0u8, 0x55]),
        ops in proptest::collection::vec(op(), 1..20),
    ) {
        run(zero_grains, below, &ops);
    }
}

/// Runs `work` with a freeze at each change in turn; what was flushed before must be there, and the image must be sound.
fn survives_any_crash(bytes: &[u8], flushed: &[u8], work: impl Fn(&dyn Image)) {
    let full = Arc::new(FaultyStorage::new(bytes.to_vec()));
    work(open_on(full.clone()).unwrap().as_ref());
    for n in 0..=full.changes() {
        let storage = Arc::new(FaultyStorage::new(bytes.to_vec()));
        storage.plan(n, Fault::Freeze);
        work(open_on(storage.clone()).unwrap().as_ref());
        let after = open_on(Arc::new(MemoryStorage::new("after", storage.contents()))).unwrap();
        let mut content = vec![0; flushed.len()];
        after.read(0, &mut content).unwrap();
        assert!(content == *flushed, "freeze at change {n} lost flushed data");
        let report = after.check(Repair::No, &Control::default()).unwrap();
        assert_eq!(report.corruptions, 0, "freeze at change {n}: {:?}", report.messages);
    }
}

pub(super) fn half_written() -> (Vec<u8>, Vec<u8>) {
    let storage = Arc::new(MemoryStorage::new("m", created(20 * GRAIN, Options::new())));
    let image = open_on(storage.clone()).unwrap();
    for grain in [3u64, 0, 7, 1] {
        image
            .write(grain * GRAIN, &[grain as u8 + 1; GRAIN as usize], &NothingBelow)
            .unwrap();
    }
    image.close().unwrap();
    (storage.contents(), whole(image.as_ref()))
}

#[test]
fn a_crash_while_writing_loses_nothing_flushed() {
    let (bytes, content) = half_written();
    survives_any_crash(&bytes, &content[..8 * GRAIN as usize], |image| {
        for grain in 10..16 {
            image.write(grain * GRAIN + 5, &[9; 100], &NothingBelow).unwrap();
            image.flush().unwrap();
        }
    });
}

#[test]
fn a_crash_while_growing_leaves_the_old_contents() {
    let (bytes, content) = half_written();
    // Within the last table; with new tables; with a new directory.
    for size in [21 * GRAIN, 100 << 20, 5 << 30] {
        survives_any_crash(&bytes, &content, |image| {
            let to = Resize {
                virtual_size: size,
                ..Resize::default()
            };
            image.resize(&to).unwrap();
            assert_eq!(image.virtual_size(), size);
        });
    }
}

#[test]
fn the_cid_is_new_before_the_first_guest_byte() {
    let storage = Arc::new(FaultyStorage::new(created(4 * GRAIN, Options::new())));
    let image = open_on(storage.clone()).unwrap();
    let before = image.layer_id().unwrap();
    storage.plan(2, Fault::Freeze); // The descriptor's write and its flush.
    image.write(0, &[1; 512], &NothingBelow).unwrap();
    image.flush().unwrap();
    let after = open_on(Arc::new(MemoryStorage::new("m", storage.contents()))).unwrap();
    assert_ne!(after.layer_id().unwrap(), before);
    assert_eq!(after.layer_id(), image.layer_id());
}

#[test]
fn a_cid_changes_once_a_session() {
    let image = open_on(Arc::new(MemoryStorage::new("m", created(4 * GRAIN, Options::new())))).unwrap();
    image.write(0, &[1; 512], &NothingBelow).unwrap();
    let first = image.layer_id();
    image.write(0, &[2; 512], &NothingBelow).unwrap();
    assert_eq!(image.layer_id(), first);
}

#[test]
fn split_images_write_to_all_their_files() {
    let files = Files::default();
    let main = files.add("disk.vmdk", Vec::new());
    let options = Options::new().with("subformat", "twoGbMaxExtentSparse");
    create_with(&files, main.clone(), 5 << 30, options);
    let limits = Limits::default();
    let env = OpenEnv::closed(&limits).with_gate(&files).writable();
    let image = Vmdk.open(main.clone(), &Options::new(), &env).unwrap();
    let at = (2 << 30) - 100_000;
    image.write(at, &vec![3; 200_000], &NothingBelow).unwrap();
    image.close().unwrap();
    let again = Vmdk.open(main, &Options::new(), &env.read_only()).unwrap();
    let mut buf = vec![0; 200_002];
    again.read(at - 1, &mut buf).unwrap();
    assert!(buf[0] == 0 && buf[200_001] == 0 && buf[1..200_001].iter().all(|b| *b == 3));
    assert_eq!(again.storages().len(), 4);
}

#[test]
fn few_tables_in_memory_are_enough() {
    let storage: StorageRef = Arc::new(MemoryStorage::new("m", created(10 << 30, Options::new())));
    let limits = Limits {
        cache_bytes: 4096,
        ..Limits::default()
    };
    let env = OpenEnv::closed(&limits).writable();
    let image = Vmdk.open(storage.clone(), &Options::new(), &env).unwrap();
    let places = || (0..300u64).map(|n| n * 37 % 300 * (32 << 20));
    for at in places() {
        image.write(at, &at.to_le_bytes(), &NothingBelow).unwrap();
    }
    image.close().unwrap();
    let again = Vmdk.open(storage, &Options::new(), &env).unwrap();
    for at in places() {
        let mut buf = [0; 8];
        again.read(at, &mut buf).unwrap();
        assert_eq!(u64::from_le_bytes(buf), at);
    }
}

#[test]
fn an_image_without_a_sector_is_not_made() {
    for subformat in ["monolithicSparse", "monolithicFlat", "streamOptimized"] {
        let storage = Arc::new(MemoryStorage::new("disk.vmdk", Vec::new()));
        let limits = Limits::default();
        let env = CreateEnv {
            gate: &Files::default(),
            limits: &limits,
            secrets: &NoSecrets,
            random: &|bytes| bytes.fill(7),
            now: 0,
        };
        let spec = CreateSpec {
            virtual_size: 0,
            options: Options::new().with("subformat", subformat),
            backing: None,
        };
        let error = Vmdk.create(storage, &spec, &env).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{subformat}: {error}");
    }
}
