//! Micro-benchmarks: codecs, XTS, zero detection, look-ups in maps and chains. All in memory, so that they show the engine and no disk.
//!
//! `cargo bench -p vdisk-engine`; the whole program is compared with qemu-img elsewhere, see docs/performance.md.

#![expect(clippy::unwrap_used, reason = "a broken precondition stops the benchmark")]

use std::sync::Arc;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use vdisk_engine::crypto::{CipherSpec, SectorCipher};
use vdisk_engine::env::{CreateSpec, NoSecrets};
use vdisk_engine::gate::{BackingChoice, DenyAll, Node};
use vdisk_engine::image::BackingReference;
use vdisk_engine::ops::convert::{CopyOptions, convert};
use vdisk_engine::ops::create::create;
use vdisk_engine::ops::map::map;
use vdisk_engine::options::Options;
use vdisk_engine::storage::MemoryStorage;
use vdisk_engine::{Chain, Control, CreateEnv, Limits, OpenEnv, StorageRef};

const SIZE: usize = 32 << 20;

fn main() {
    divan::main();
}

/// Words in no order, as text and program files have them: packs to about a third.
fn text(len: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut bytes = Vec::with_capacity(len + 16);
    while bytes.len() < len {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state >> 52).to_le_bytes()[..2]);
        bytes.extend_from_slice([b"disk".as_slice(), b"image", b" of ", b"\0\0\0\0"][(state >> 40) as usize % 4]);
    }
    bytes.truncate(len);
    bytes
}

fn empty(format: &str, size: u64, options: &[(&str, &str)], backing: Option<&str>) -> StorageRef {
    let storage: StorageRef = Arc::new(MemoryStorage::empty());
    let mut given = Options::new();
    options.iter().for_each(|(name, value)| given.set(*name, *value));
    let spec = CreateSpec {
        virtual_size: size,
        options: given,
        backing: backing.map(|name| BackingReference {
            name: name.into(),
            format: Some(format.into()),
        }),
    };
    let env = CreateEnv {
        gate: &DenyAll,
        limits: &Limits::default(),
        secrets: &NoSecrets,
        random: &|buf| buf.fill(7),
        now: 0,
    };
    create(storage.clone(), format, &spec, &env).unwrap();
    storage
}

fn open(node: Node, writable: bool) -> Chain {
    let limits = Limits::default();
    let env = OpenEnv::closed(&limits);
    Chain::open(node, &if writable { env.writable() } else { env }).unwrap()
}

fn raw(bytes: Vec<u8>) -> Chain {
    open(Node::new(Arc::new(MemoryStorage::new("raw", bytes)), "raw"), false)
}

fn fill(source: &Chain, compression: Option<&str>, workers: usize) -> StorageRef {
    let options: Vec<_> = compression.map(|name| ("compression_type", name)).into_iter().collect();
    let storage = empty("qcow2", source.virtual_size(), &options, None);
    let target = open(Node::new(storage.clone(), "qcow2"), true);
    let options = CopyOptions {
        workers,
        compress: compression.is_some(),
        ..CopyOptions::default()
    };
    convert(source, target.top(), &options, &Control::default()).unwrap();
    storage
}

#[divan::bench(args = [("zlib", 1), ("zlib", 2), ("zstd", 1), ("zstd", 2)], sample_count = 5)]
fn compress(bencher: Bencher<'_, '_>, (codec, workers): (&str, usize)) {
    let source = raw(text(SIZE));
    bencher
        .counter(BytesCount::new(SIZE))
        .bench(|| fill(&source, Some(codec), workers));
}

#[divan::bench(args = [("zlib", 1), ("zlib", 2), ("zstd", 1), ("zstd", 2)], sample_count = 5)]
fn decompress(bencher: Bencher<'_, '_>, (codec, workers): (&str, usize)) {
    let packed = fill(&raw(text(SIZE)), Some(codec), 2);
    let source = open(Node::new(packed, "qcow2"), false);
    bencher
        .counter(BytesCount::new(SIZE))
        .bench(|| fill(&source, None, workers));
}

/// Every byte is read and found to be zero; nothing is stored.
#[divan::bench(sample_count = 5)]
fn zero_detection(bencher: Bencher<'_, '_>) {
    let source = raw(vec![0; SIZE]);
    bencher.counter(BytesCount::new(SIZE)).bench(|| fill(&source, None, 1));
}

#[divan::bench]
fn aes_256_xts(bencher: Bencher<'_, '_>) {
    let spec = CipherSpec::parse("aes", "xts-plain64", 64).unwrap();
    let cipher = SectorCipher::new(spec, &std::array::from_fn::<_, 64, _>(|i| i as u8), 512).unwrap();
    let mut data = text(1 << 20);
    bencher
        .counter(BytesCount::new(data.len()))
        .bench_local(move || cipher.encrypt(0, &mut data).unwrap());
}

/// 1 TiB with a cluster of data in every 64 MiB.
#[divan::bench(sample_count = 5)]
fn map_of_a_sparse_disk(bencher: Bencher<'_, '_>) {
    let storage = empty("qcow2", 1 << 40, &[], None);
    let image = open(Node::new(storage.clone(), "qcow2"), true);
    (0..1u64 << 14).for_each(|n| image.write(n << 26, &[7; 512]).unwrap());
    image.top().close().unwrap();
    let chain = open(Node::new(storage, "qcow2"), false);
    bencher
        .counter(ItemsCount::new(1usize << 15))
        .bench(|| map(&chain, 0, u64::MAX).map(|entry| entry.unwrap().length).sum::<u64>());
}

/// A range that only the lowest of so many layers has, looked up once a cluster.
#[divan::bench(args = [1, 10, 200])]
fn map_of_a_chain(bencher: Bencher<'_, '_>, layers: usize) {
    let mut node = Node::new(fill(&raw(text(SIZE)), None, 1), "qcow2");
    for _ in 1..layers {
        let below = std::mem::replace(
            &mut node,
            Node::new(empty("qcow2", SIZE as u64, &[], Some("below")), "qcow2"),
        );
        node.backing = BackingChoice::Explicit(Box::new(below));
    }
    let chain = open(node, false);
    bencher.bench(|| map(&chain, 0, u64::MAX).map(|entry| entry.unwrap().length).sum::<u64>());
}
