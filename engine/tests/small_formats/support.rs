//! What the tests of all formats do: create, open, compare with a byte array, crash, flip bytes.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use vdisk_engine::env::{BackingReference, CreateSpec, NoSecrets};
use vdisk_engine::gate::{BackingChoice, DenyAll, Node};
use vdisk_engine::image::{ExtentKind, NothingBelow, Placement, Repair, Scratch};
use vdisk_engine::options::Options;
use vdisk_engine::storage::{FaultyStorage, FileOptions, FileStorage, LoggedOp, MemoryStorage};
use vdisk_engine::{Chain, Control, CreateEnv, Image, Limits, OpenEnv, Result, StorageRef, formats};

/// Options from `name=value` pairs.
pub fn options(pairs: &[(&str, &str)]) -> Options {
    pairs.iter().fold(Options::new(), |o, (k, v)| o.with(*k, *v))
}

/// Creates an image on a storage.
pub fn create_on(storage: StorageRef, format: &str, size: u64, opts: &[(&str, &str)], backing: Option<(&str, &str)>) {
    let spec = CreateSpec {
        virtual_size: size,
        options: options(opts),
        backing: backing.map(|(name, format)| BackingReference {
            name: name.to_owned(),
            format: Some(format.to_owned()),
        }),
    };
    let driver = formats::by_name(format).unwrap();
    spec.options.check(driver.create_options(), format).unwrap();
    let env = CreateEnv {
        gate: &DenyAll,
        limits: &Limits::default(),
        secrets: &NoSecrets,
        random: &|bytes| bytes.fill(7),
        now: 1_700_000_000,
    };
    driver.create(storage, &spec, &env).unwrap();
}

/// A new image in memory.
pub fn created(format: &str, size: u64, opts: &[(&str, &str)]) -> Arc<MemoryStorage> {
    let storage = Arc::new(MemoryStorage::empty());
    create_on(storage.clone(), format, size, opts, None);
    storage
}

/// Opens for writing, with nothing else reachable.
pub fn open_rw(storage: StorageRef, format: &str) -> Result<Box<dyn Image>> {
    open_env(storage, format, true)
}
/// Opens for reading.
pub fn open_ro(storage: StorageRef, format: &str) -> Result<Box<dyn Image>> {
    open_env(storage, format, false)
}
fn open_env(storage: StorageRef, format: &str, writable: bool) -> Result<Box<dyn Image>> {
    let limits = Limits::default();
    let mut env = OpenEnv::closed(&limits);
    env.writable = writable;
    formats::by_name(format)?.open(storage, &Options::new(), &env)
}

/// A file of the host as a storage.
pub fn file(path: &Path, writable: bool) -> StorageRef {
    if writable && !path.exists() {
        std::fs::File::create(path).unwrap();
    }
    let options = if writable {
        FileOptions::write()
    } else {
        FileOptions::read()
    };
    Arc::new(FileStorage::open(path, options).unwrap())
}

/// Layers of files, top first, as one chain.
pub fn chain(layers: &[(&Path, &str)], writable: bool) -> Chain {
    let mut below = BackingChoice::None;
    for (depth, (path, format)) in layers.iter().enumerate().rev() {
        let mut node = Node::new(file(path, writable && depth == 0), *format);
        node.backing = below;
        below = BackingChoice::Explicit(Box::new(node));
    }
    let BackingChoice::Explicit(node) = below else {
        panic!("at least one layer")
    };
    let limits = Limits::default();
    let mut env = OpenEnv::closed(&limits);
    env.writable = writable;
    Chain::open(*node, &env).unwrap()
}

/// Everything the guest sees.
pub fn content(chain: &Chain) -> Vec<u8> {
    let mut bytes = vec![0; chain.virtual_size() as usize];
    chain.read(0, &mut bytes).unwrap();
    bytes
}

/// SHA-256 of everything the guest sees, read piece by piece.
pub fn sha256(chain: &Chain) -> String {
    use std::io::Write as _;
    let mut child = std::process::Command::new("sha256sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let (mut offset, size) = (0, chain.virtual_size());
    let mut buf = vec![0; 1 << 20];
    while offset < size {
        let n = (size - offset).min(buf.len() as u64) as usize;
        chain.read(offset, &mut buf[..n]).unwrap();
        input.write_all(&buf[..n]).unwrap();
        offset += n as u64;
    }
    drop(input);
    let out = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&out.stdout)[..64].to_owned()
}

/// A guest operation of a property test.
#[derive(Debug, Clone)]
pub enum Op {
    Write(u64, u64, u8),
    Zero(u64, u64, bool),
    Flush,
    Reopen,
}

/// Any operations on a disk of `size` bytes.
pub fn ops(size: u64) -> impl Strategy<Value = Vec<Op>> {
    let range = (0..size, 1..size / 3);
    let one = prop_oneof![
        4 => (range.clone(), 1u8..).prop_map(move |((at, len), byte)| Op::Write(at, len.min(size - at), byte)),
        2 => (range, any::<bool>()).prop_map(move |((at, len), unmap)| Op::Zero(at, len.min(size - at), unmap)),
        1 => Just(Op::Flush),
        1 => Just(Op::Reopen),
    ];
    prop::collection::vec(one, 1..20)
}

fn apply(image: &dyn Image, model: &mut [u8], op: &Op) {
    match *op {
        Op::Write(at, len, byte) => {
            let data: Vec<u8> = (0..len).map(|i| byte.wrapping_add((i / 97) as u8)).collect();
            image.write(at, &data, &NothingBelow).unwrap();
            model[at as usize..(at + len) as usize].copy_from_slice(&data);
        }
        Op::Zero(at, len, unmap) => {
            image.write_zeroes(at, len, unmap, &NothingBelow).unwrap();
            model[at as usize..(at + len) as usize].fill(0);
        }
        Op::Flush => image.flush().unwrap(),
        Op::Reopen => image.close().unwrap(),
    }
}

/// Runs operations on an image and on a byte array, and compares content and extents.
pub fn behaves_as_bytes(format: &str, storage: StorageRef, ops: &[Op]) {
    let mut image = open_rw(storage.clone(), format).unwrap();
    let mut model = vec![0; image.virtual_size() as usize];
    for op in ops {
        apply(image.as_ref(), &mut model, op);
        if matches!(op, Op::Reopen) {
            drop(image);
            image = open_rw(storage.clone(), format).unwrap();
        }
        matches_model(image.as_ref(), &model);
    }
    image.close().unwrap();
    drop(image);
    let image = open_ro(storage, format).unwrap();
    matches_model(image.as_ref(), &model);
    if formats::by_name(format).unwrap().capabilities().check {
        let report = image.check(Repair::No, &Control::default()).unwrap();
        assert_eq!(report.corruptions + report.check_errors, 0, "{:?}", report.messages);
    }
}

/// Content and extents of an image are those of `model`.
pub fn matches_model(image: &dyn Image, model: &[u8]) {
    assert_eq!(image.virtual_size(), model.len() as u64);
    let mut seen = vec![1; model.len()];
    image.read(0, &mut seen).unwrap();
    if let Some(at) = seen.iter().zip(model).position(|(a, b)| a != b) {
        panic!("first difference at {at:#x}: {} instead of {}", seen[at], model[at]);
    }
    let mut offset = 0;
    while offset < model.len() as u64 {
        let extent = image.extent(offset, model.len() as u64 - offset).unwrap();
        assert!(extent.len > 0 && offset + extent.len <= model.len() as u64);
        let part = &model[offset as usize..(offset + extent.len) as usize];
        match extent.kind {
            ExtentKind::Unallocated | ExtentKind::Zero { .. } => {
                assert!(
                    part.iter().all(|b| *b == 0),
                    "{:?} at {offset:#x} has data",
                    extent.kind
                );
            }
            ExtentKind::Data {
                at: Some(at),
                direct: true,
            } => {
                let mut stored = vec![0; part.len()];
                image.storages()[at.file].read_at(at.offset, &mut stored).unwrap();
                assert_eq!(stored, part, "bytes at {:#x}", at.offset);
            }
            ExtentKind::Data { .. } | ExtentKind::Compressed => {}
        }
        offset += extent.len;
    }
}

/// Fills a new image through its bulk writer, storing out of order, and compares.
pub fn bulk_fill(format: &str, storage: StorageRef, model: &[u8]) {
    let image = open_rw(storage.clone(), format).unwrap();
    let bulk = image.bulk().unwrap();
    let unit = bulk.unit() as usize;
    let mut placed: Vec<(Placement, Vec<u8>)> = Vec::new();
    let mut scratch = Scratch::default();
    for (n, data) in model
        .chunks(unit)
        .enumerate()
        .filter(|(_, d)| d.iter().any(|b| *b != 0))
    {
        let encoded = if bulk.encodes() || format == "qcow" {
            bulk.encode(data, &mut scratch).unwrap()
        } else {
            None
        };
        let len = encoded.as_ref().map(|e| e.len() as u64);
        let placement = bulk.place((n * unit) as u64, data.len() as u64, len).unwrap();
        placed.push((placement, encoded.unwrap_or_else(|| data.to_vec())));
    }
    for (placement, bytes) in placed.iter().rev() {
        bulk.store(placement, bytes).unwrap();
    }
    image.close().unwrap();
    drop(image);
    matches_model(open_ro(storage, format).unwrap().as_ref(), model);
}

/// Runs `script` on an image, then rebuilds the file as a crash after each change would have left it (also with one of the changes
/// since the last flush missing) and demands: it opens, and every byte is what it was at the last completed flush or became later.
pub fn survives_crashes(format: &str, fresh: Vec<u8>, script: &[Op], mut inspect: impl FnMut(&[u8])) {
    let storage = Arc::new(FaultyStorage::new(fresh.clone()));
    let image = open_rw(storage.clone(), format).unwrap();
    let mut model = vec![0; image.virtual_size() as usize];
    let mut states = vec![(storage.log().len(), model.clone(), true)];
    for op in script {
        apply(image.as_ref(), &mut model, op);
        states.push((storage.log().len(), model.clone(), matches!(op, Op::Flush | Op::Reopen)));
    }
    drop(image);
    let log = storage.log();
    for crash in states[0].0..=log.len() {
        let done = log[..crash]
            .iter()
            .rposition(|op| *op == LoggedOp::Flush)
            .map_or(0, |n| n + 1);
        for missing in std::iter::once(None).chain((done..crash).map(Some)) {
            let mut bytes = fresh.clone();
            for (_, op) in log[..crash].iter().enumerate().filter(|(n, _)| Some(*n) != missing) {
                op.replay(&mut bytes);
            }
            if missing.is_none() {
                inspect(&bytes);
            }
            let first = states
                .iter()
                .rposition(|(at, _, flushed)| *flushed && *at <= crash)
                .unwrap();
            let last = states.iter().position(|(at, ..)| *at >= crash).unwrap();
            still_holds(format, bytes, &states[first..=last.max(first)], crash, missing);
        }
    }
}

fn still_holds(format: &str, bytes: Vec<u8>, states: &[(usize, Vec<u8>, bool)], crash: usize, missing: Option<usize>) {
    let image = open_rw(Arc::new(MemoryStorage::new("crashed", bytes)), format)
        .unwrap_or_else(|e| panic!("crash after change {crash} without {missing:?}: {e}"));
    let mut seen = vec![1; image.virtual_size() as usize];
    image
        .read(0, &mut seen)
        .unwrap_or_else(|e| panic!("crash after change {crash} without {missing:?}: {e}"));
    for (at, byte) in seen.iter().enumerate() {
        assert!(
            states.iter().any(|(_, model, _)| model[at] == *byte),
            "crash after change {crash} without {missing:?}: byte {at:#x} is {byte}, was {}",
            states[0].1[at]
        );
    }
}

/// A script that touches new and old clusters, parts of them, and zeroes, with flushes between.
pub fn crash_script(unit: u64) -> Vec<Op> {
    vec![
        Op::Write(unit + 100, unit, 1),
        Op::Flush,
        Op::Write(unit + 50, 100, 40),
        Op::Write(5 * unit, 2 * unit, 80),
        Op::Flush,
        Op::Zero(unit, unit, true),
        Op::Zero(7 * unit, unit + 10, false),
        Op::Write(9 * unit + 1, 7, 120),
        Op::Flush,
        Op::Write(7 * unit + 3, 9, 160),
        Op::Write(11 * unit, unit / 2, 200),
        Op::Reopen,
    ]
}

/// Flips bytes in a valid image (mostly in its first `hot` bytes) and uses the result in every way: nothing may panic.
pub fn never_panics(format: &str, valid: &[u8], hot: usize, flips: &[(usize, u8, bool)]) {
    let mut bytes = valid.to_vec();
    for (at, value, anywhere) in flips {
        let reach = if *anywhere { bytes.len() } else { hot.min(bytes.len()) };
        bytes[at % reach] = *value;
    }
    let limits = Limits {
        virtual_size: 1 << 40,
        table_bytes: 16 << 20,
        ..Limits::default()
    };
    let storage = Arc::new(MemoryStorage::new("mutant", bytes));
    let driver = formats::by_name(format).unwrap();
    let env = OpenEnv::closed(&limits);
    if let Ok(image) = driver.open(storage.clone(), &Options::new(), &env) {
        use_image(image.as_ref());
        let _ = image.check(vdisk_engine::image::Repair::No, &vdisk_engine::Control::default());
    }
    if let Ok(image) = driver.open(storage, &Options::new(), &env.writable()) {
        let size = image.virtual_size();
        // A huge disk would make the memory behind it huge.
        for at in [0, size / 2, size.saturating_sub(600)]
            .into_iter()
            .filter(|at| *at < 32 << 20)
        {
            let _ = image.write(at, &[1; 600], &NothingBelow);
            let _ = image.write_zeroes(at, 512, true, &NothingBelow);
        }
        let _ = image.close();
        use_image(image.as_ref());
    }
}

fn use_image(image: &dyn Image) {
    let size = image.virtual_size();
    let _ = image.info();
    let mut offset = 0;
    for _ in 0..64 {
        if offset >= size {
            break;
        }
        match image.extent(offset, size - offset) {
            Ok(extent) => {
                assert!(extent.len > 0);
                offset += extent.len;
            }
            Err(_) => offset += 1 << 16,
        }
    }
    for at in [0, size / 3, size / 2, size.saturating_sub(4096)] {
        let mut buf = vec![0; size.saturating_sub(at).min(4096) as usize];
        let _ = image.read(at, &mut buf);
    }
}

/// Bytes to flip.
pub fn flips() -> impl Strategy<Value = Vec<(usize, u8, bool)>> {
    let value = prop_oneof![Just(0u8), Just(0xff), Just(0x80), Just(1), any::<u8>()];
    prop::collection::vec((any::<usize>(), value, prop::bool::weighted(0.2)), 1..8)
}

/// Bytes with runs of zeroes, text and noise.
pub fn pattern(size: usize) -> Vec<u8> {
    (0..size)
        .map(|i| match i / 40_000 % 4 {
            0 => 0,
            1 => (i / 512) as u8 | 1,
            2 => (i.wrapping_mul(2_654_435_761) >> 13) as u8,
            _ => b"the quick brown fox "[i % 20],
        })
        .collect()
}

/// Every sample of the corpus in these manifest formats opens as `format` with the manifest's size and content; where the manifest
/// has no size, opening fails.
pub fn corpus_matches(manifest: &[&str], format: &str) {
    let Some(samples) = e2e::corpus::samples(manifest) else {
        return;
    };
    assert!(!samples.is_empty());
    for sample in samples {
        let opened = open_ro(file(&sample.path, false), format);
        let Some(size) = sample.virtual_size() else {
            assert!(opened.is_err(), "{} opens", sample.name());
            continue;
        };
        let image = opened.unwrap_or_else(|e| panic!("{}: {e}", sample.name()));
        assert_eq!(image.virtual_size(), size, "{}", sample.name());
        let chain = Chain::from_layers(vec![image]).unwrap();
        match sample.content_sha256() {
            Some(sum) => assert_eq!(sha256(&chain), sum[..64], "{}", sample.name()),
            None => assert!(chain.extent(0, size).is_ok(), "{}", sample.name()),
        }
    }
}
