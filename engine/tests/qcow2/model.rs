//! An image behaves as a byte array under any list of operations, and stays sound.

use std::sync::Arc;

use proptest::prelude::*;
use vdisk_engine::Image;
use vdisk_engine::image::{Below, NothingBelow, Resize};
use vdisk_engine::options::Options;
use vdisk_engine::storage::MemoryStorage;

use crate::support::{Files, Scratch, assert_clean, assert_qemu_clean, encrypted, opening, read_all};

const SIZE: u64 = 300 << 10;

#[derive(Debug, Clone)]
enum Op {
    Write(u64, u64, u8),
    Zero(u64, u64, bool),
    Discard(u64, u64),
    Pack(u64, u8),
    Flush,
    Reopen,
    Resize(u64),
    Snapshot,
    Apply(usize),
    Delete(usize),
    Empty,
}

fn op() -> impl Strategy<Value = Op> {
    let at = 0..SIZE + SIZE / 2;
    let len = prop_oneof![3 => 1u64..9000, 1 => 1u64..100_000];
    prop_oneof![
        6 => (at.clone(), len.clone(), 1u8..).prop_map(|(a, l, f)| Op::Write(a, l, f)),
        2 => (at.clone(), len.clone(), any::<bool>()).prop_map(|(a, l, u)| Op::Zero(a, l, u)),
        2 => (at.clone(), len).prop_map(|(a, l)| Op::Discard(a, l)),
        3 => (at, 0u8..).prop_map(|(a, f)| Op::Pack(a, f)),
        1 => Just(Op::Flush),
        1 => Just(Op::Reopen),
        1 => (1..SIZE * 3 / 1024).prop_map(|s| Op::Resize(s * 512)),
        1 => Just(Op::Snapshot),
        1 => any::<usize>().prop_map(Op::Apply),
        1 => any::<usize>().prop_map(Op::Delete),
        1 => Just(Op::Empty),
    ]
}

fn options() -> impl Strategy<Value = Vec<(&'static str, String)>> {
    let cluster = prop_oneof![Just(512u32), Just(4096), Just(16384), Just(65536)];
    let bits = prop_oneof![Just(1u32), Just(2), Just(8), Just(16), Just(64)];
    (cluster, bits, 0..5, 0..6).prop_map(|(cluster, bits, kind, encryption)| {
        let mut list = vec![("cluster_size", cluster.to_string())];
        match kind {
            0 => list.push(("compat", "0.10".into())),
            1 if cluster >= 16384 => list.push(("extended_l2", "on".into())),
            2 => list.push(("compression_type", "zstd".into())),
            _ => {}
        }
        if kind != 0 {
            list.push(("refcount_bits", bits.to_string()));
        }
        match encryption {
            0 | 1 => list.extend(encrypted("aes")),
            2 => list.extend(encrypted("luks")),
            _ => {}
        }
        list
    })
}

/// A layer below: bytes that tell where they are.
struct Base(Vec<u8>);

impl Below for Base {
    fn read(&self, offset: u64, buf: &mut [u8]) -> vdisk_engine::Result<()> {
        for (i, b) in buf.iter_mut().enumerate() {
            *b = self.0.get(offset as usize + i).copied().unwrap_or(0);
        }
        Ok(())
    }
    fn is_zero(&self, offset: u64, len: u64) -> vdisk_engine::Result<bool> {
        let from = (offset as usize).min(self.0.len());
        let to = ((offset + len) as usize).min(self.0.len());
        Ok(self.0[from..to].iter().all(|b| *b == 0))
    }
}

struct Run {
    files: Files,
    opening: Options,
    storage: Arc<MemoryStorage>,
    image: Box<dyn Image>,
    model: Vec<u8>,
    snapshots: Vec<(String, Vec<u8>)>,
    base: Option<Base>,
}

impl Run {
    fn below(&self) -> &dyn Below {
        match &self.base {
            Some(base) => base,
            None => &NothingBelow,
        }
    }

    /// What the guest sees: this layer over the base.
    fn seen(&self, image: &dyn Image) -> Vec<u8> {
        let mut bytes = read_all(image);
        let mut at = 0;
        while at < image.virtual_size() {
            let extent = image.extent(at, image.virtual_size() - at).unwrap();
            if extent.kind == vdisk_engine::image::ExtentKind::Unallocated {
                let part = &mut bytes[at as usize..(at + extent.len) as usize];
                assert!(part.iter().all(|b| *b == 0));
                self.below().read(at, part).unwrap();
            }
            at += extent.len;
        }
        bytes
    }

    fn step(&mut self, op: &Op) {
        let size = self.model.len() as u64;
        let clip = |at: u64, len: u64| (at.min(size), len.min(size - at.min(size)));
        let below: &dyn Below = match &self.base {
            Some(base) => base,
            None => &NothingBelow,
        };
        match *op {
            Op::Write(at, len, fill) => {
                let (at, len) = clip(at, len);
                self.image.write(at, &vec![fill; len as usize], below).unwrap();
                self.model[at as usize..(at + len) as usize].fill(fill);
            }
            Op::Zero(at, len, unmap) => {
                let (at, len) = clip(at, len);
                self.image.write_zeroes(at, len, unmap, below).unwrap();
                self.model[at as usize..(at + len) as usize].fill(0);
            }
            Op::Discard(at, len) => {
                let (at, len) = clip(at, len);
                self.image.discard(at, len).unwrap();
                let now = self.seen(&*self.image);
                for (i, (new, old)) in now.iter().zip(&self.model).enumerate() {
                    let inside = (at..at + len).contains(&(i as u64));
                    assert!(new == old || inside && *new == 0, "discard changed byte {i:#x}");
                }
                self.model = now;
            }
            Op::Pack(at, fill) => {
                let cluster = self.image.info().unwrap().cluster_size.unwrap();
                let at = at.min(size) / cluster * cluster;
                let len = cluster.min(size - at);
                if len > 0 && !self.image.info().unwrap().encrypted {
                    let bytes: Vec<u8> = (0..len).map(|i| fill ^ (i / 64) as u8).collect();
                    self.image.write_compressed(at, &bytes).unwrap();
                    self.model[at as usize..(at + len) as usize].copy_from_slice(&bytes);
                }
            }
            Op::Flush => self.image.flush().unwrap(),
            Op::Reopen => {
                self.image.close().unwrap();
                self.image = self.files.open_with(self.storage.clone(), true, &self.opening).unwrap();
            }
            _ => self.structural(op),
        }
    }

    fn structural(&mut self, op: &Op) {
        match *op {
            Op::Resize(to) => {
                let resized = self.image.resize(&Resize {
                    virtual_size: to,
                    shrink: true,
                    ..Resize::default()
                });
                // Version 2 refuses with snapshots.
                if resized.is_ok() {
                    let old = self.model.len();
                    self.model.resize(to as usize, 0);
                    if let (Some(base), true) = (&self.base, to as usize > old) {
                        base.read(old as u64, &mut self.model[old..]).unwrap();
                        // What the last cluster keeps of the layer below is its own affair; ops zero it.
                        self.model = self.seen(&*self.image);
                    }
                }
            }
            Op::Snapshot => {
                let snapshots = self.image.snapshots().unwrap();
                if let Ok(info) = snapshots.create("name", (5, 6)) {
                    self.snapshots.push((info.id, self.model.clone()));
                }
            }
            Op::Apply(n) if !self.snapshots.is_empty() => {
                let (id, bytes) = &self.snapshots[n % self.snapshots.len()];
                if self.image.snapshots().unwrap().apply(id).is_ok() {
                    self.model = bytes.clone();
                }
            }
            Op::Delete(n) if !self.snapshots.is_empty() => {
                let (id, _) = self.snapshots.remove(n % self.snapshots.len());
                self.image.snapshots().unwrap().delete(&id).unwrap();
            }
            Op::Empty => {
                self.image.make_empty().unwrap();
                self.model.fill(0);
                if let Some(base) = &self.base {
                    base.read(0, &mut self.model).unwrap();
                }
            }
            _ => {}
        }
    }
}

fn run(options: &[(&'static str, String)], backed: bool, ops: &[Op]) -> Vec<u8> {
    let files = Files::default();
    let storage = Arc::new(MemoryStorage::empty());
    let mut create = Options::new();
    for (name, value) in options {
        create.set(*name, value.clone());
    }
    let backing = backed.then_some(("base", "raw"));
    files.create_on(storage.clone(), SIZE, create, backing);
    let base = backed.then(|| Base((0..SIZE * 3 / 4).map(|i| (i / 512 % 253) as u8).collect()));
    let mut model = vec![0; SIZE as usize];
    if let Some(base) = &base {
        base.read(0, &mut model).unwrap();
    }
    let opening = opening(options);
    let image = files.open_with(storage.clone(), true, &opening).unwrap();
    let mut run = Run {
        files,
        opening,
        storage,
        image,
        model,
        snapshots: Vec::new(),
        base,
    };
    for op in ops {
        run.step(op);
        if let Op::Snapshot | Op::Apply(_) | Op::Delete(_) | Op::Resize(_) | Op::Empty = op {
            assert!(run.seen(&*run.image) == run.model, "content after {op:?}");
            assert_clean(&*run.image);
        }
    }
    assert!(run.seen(&*run.image) == run.model, "content before closing");
    run.image.close().unwrap();
    let image = run.files.open_with(run.storage.clone(), false, &run.opening).unwrap();
    assert!(run.seen(&*image) == run.model, "content after closing");
    assert_clean(&*image);
    for (id, bytes) in &run.snapshots {
        let old = image.snapshots().unwrap().open(id).unwrap();
        assert!(run.seen(&*old) == *bytes, "snapshot {id}");
    }
    run.storage.contents()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_image_is_a_byte_array(options in options(), backed: bool, ops in proptest::collection::vec(op(), 1..25)) {
        run(&options, backed, &ops);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn qemu_finds_nothing_wrong_after_any_operations(options in options(), ops in proptest::collection::vec(op(), 1..25)) {
        if e2e::tools::have(&["qemu-img"]) {
            let scratch = Scratch::new();
            let bytes = run(&options, false, &ops);
            assert_qemu_clean(&bytes, &scratch, false, "after all");
        }
    }
}
