//! The copy pipeline against byte arrays.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use vdisk_engine::env::{CreateSpec, NoSecrets};
use vdisk_engine::formats::DRIVERS;
use vdisk_engine::gate::{DenyAll, Node};
use vdisk_engine::image::NothingBelow;
use vdisk_engine::ops::convert::{CopyOptions, CopyTarget, convert, convert_into};
use vdisk_engine::ops::create::create;
use vdisk_engine::ops::{Concatenation, GuestSource, SourceExtent, SourceKind, Walk, compare};
use vdisk_engine::options::Options;
use vdisk_engine::storage::{FileOptions, FileStorage, MemoryStorage, SliceStorage, Storage};
use vdisk_engine::{CancelToken, Chain, Control, CreateEnv, ErrorKind, Limits, OpenEnv, Progress, StorageRef};

fn raw(storage: StorageRef, writable: bool) -> Chain {
    let limits = Limits::default();
    let env = OpenEnv::closed(&limits);
    let env = if writable { env.writable() } else { env };
    Chain::open(Node::new(storage, "raw"), &env).unwrap()
}

fn copied(source: &dyn GuestSource, options: &CopyOptions) -> Vec<u8> {
    let out = Arc::new(MemoryStorage::new("out", vec![0; source.len() as usize]));
    let target = raw(out.clone(), true);
    convert(source, target.top(), options, &Control::default()).unwrap();
    out.contents()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_copy_equals_its_source_whatever_the_workers(
        runs in prop::collection::vec((any::<bool>(), 1usize..9_000_000), 1..6),
        workers in 1usize..5,
        sparse in prop::sample::select(vec![0u64, 4096, 65536]),
    ) {
        let mut bytes = Vec::new();
        for (i, (data, len)) in runs.iter().enumerate() {
            let fill = if *data { i as u8 + 1 } else { 0 };
            bytes.resize(bytes.len() + len, fill);
        }
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        let source = raw(Arc::new(MemoryStorage::new("in", bytes.clone())), false);
        let options = CopyOptions { workers, sparse, ..CopyOptions::default() };
        prop_assert!(copied(&source, &options) == bytes);
    }
}

/// A source of runs of one byte each, which says of every run of zeroes that it is one.
struct Runs {
    runs: Vec<(u8, u64)>,
    /// Bytes of runs of zeroes that were read all the same.
    zeroes_read: AtomicU64,
}

impl Runs {
    fn new(lengths: &[(bool, u64)]) -> Self {
        let byte = |n: usize, data: bool| if data { n as u8 + 1 } else { 0 };
        let mut runs: Vec<_> = lengths
            .iter()
            .enumerate()
            .map(|(n, (data, len))| (byte(n, *data), *len))
            .collect();
        let end: u64 = runs.iter().map(|(_, len)| len).sum();
        runs.push((0, end.next_multiple_of(4096) - end));
        Self {
            runs,
            zeroes_read: AtomicU64::new(0),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        self.runs
            .iter()
            .flat_map(|(byte, len)| std::iter::repeat_n(*byte, *len as usize))
            .collect()
    }

    /// The byte at `offset`, and how many of it follow from there on.
    fn run(&self, offset: u64) -> (u8, u64) {
        let mut start = 0;
        for (byte, len) in &self.runs {
            if offset < start + len {
                return (*byte, start + len - offset);
            }
            start += len;
        }
        (0, 0)
    }
}

impl GuestSource for Runs {
    fn len(&self) -> u64 {
        self.runs.iter().map(|(_, len)| len).sum()
    }
    fn walk(&self) -> Box<dyn Walk + '_> {
        Box::new(move |offset, len: u64| {
            let (byte, left) = self.run(offset);
            let kind = if byte == 0 { SourceKind::Zero } else { SourceKind::Data };
            Ok(SourceExtent::of(left.min(len), kind))
        })
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> vdisk_engine::Result<()> {
        let mut done = 0;
        while done < buf.len() {
            let (byte, left) = self.run(offset + done as u64);
            let end = buf.len().min(done + left as usize);
            buf[done..end].fill(byte);
            if byte == 0 {
                self.zeroes_read.fetch_add((end - done) as u64, Ordering::SeqCst);
            }
            done = end;
        }
        Ok(())
    }
    fn read_data(&self, _layer: usize, offset: u64, buf: &mut [u8]) -> vdisk_engine::Result<()> {
        self.read(offset, buf)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// With `-S 0` zeroes are data that nobody has to read. Targets that are not new hold something else before.
    #[test]
    fn zeroes_that_are_stored_are_not_read(
        lengths in prop::collection::vec((any::<bool>(), prop_oneof![1u64..200_000, 1u64..3_000_000]), 1..9),
        workers in 1usize..4,
        format in prop::sample::select(vec!["raw", "qcow2", "vpc", "parallels"]),
        (fresh, compress) in any::<(bool, bool)>(),
    ) {
        let source = Runs::new(&lengths);
        let (len, bytes) = (source.len(), source.bytes());
        let options = if format == "vpc" { Options::new().with("subformat", "fixed").with("force_size", "on") } else { Options::new() };
        let target = new_image(Arc::new(MemoryStorage::empty()), format, len, &options).unwrap();
        let compress = compress && fresh && format == "qcow2";
        if !fresh {
            target.write(0, &vec![0xee; len as usize]).unwrap();
        }
        let options = CopyOptions { workers, compress, sparse: 0, count_data: true, ..CopyOptions::default() };
        let counted = Arc::new(Counted::default());
        let control = Control::new(counted.clone(), CancelToken::new());
        let to = CopyTarget { image: target.top(), below: &NothingBelow, fresh, is_zero: false };
        convert_into(&source, &to, &options, &control).unwrap();
        let mut seen = vec![1; len as usize];
        target.read(0, &mut seen).unwrap();
        prop_assert!(seen == bytes);
        prop_assert_eq!(source.zeroes_read.into_inner(), 0);
        prop_assert_eq!(counted.total.load(Ordering::SeqCst), len);
        prop_assert_eq!(counted.done.load(Ordering::SeqCst), len);
    }
}

/// What progress says, at its end.
#[derive(Default)]
struct Counted {
    total: AtomicU64,
    done: AtomicU64,
}

impl Counted {
    /// Says how much is done with these.
    fn add(&self, bytes: u64) -> u64 {
        self.done.fetch_add(bytes, Ordering::SeqCst) + bytes
    }
}

impl Progress for Counted {
    fn set_total(&self, bytes: u64) {
        self.total.store(bytes, Ordering::SeqCst);
    }
    fn advance(&self, bytes: u64) {
        self.add(bytes);
    }
}

#[test]
fn several_sources_come_one_after_the_other() {
    let part = |fill: u8, len| raw(Arc::new(MemoryStorage::new("in", vec![fill; len])), false);
    let (a, b, c) = (part(1, 512), part(2, 5120), part(3, 3_000_320));
    let all = Concatenation::new(&[&a, &b, &c]).unwrap();
    let expected = [vec![1; 512], vec![2; 5120], vec![3; 3_000_320]].concat();
    assert!(copied(&all, &CopyOptions::default()) == expected);
}

fn new_image(storage: StorageRef, format: &'static str, size: u64, options: &Options) -> vdisk_engine::Result<Chain> {
    let spec = CreateSpec {
        virtual_size: size,
        options: options.clone(),
        backing: None,
    };
    let limits = Limits::default();
    let env = CreateEnv {
        gate: &DenyAll,
        limits: &limits,
        secrets: &NoSecrets,
        random: &|bytes| bytes.fill(7),
        now: 0,
    };
    create(storage.clone(), format, &spec, &env)?;
    Chain::open(Node::new(storage, format), &OpenEnv::closed(&limits).writable())
}

/// A device cannot be emptied: what it held must not be taken for the zeroes of the source.
#[test]
fn a_new_image_on_a_device_full_of_other_data_equals_its_source() {
    let mut bytes = vec![0; 9 << 20];
    bytes[5 << 20..6 << 20].fill(3);
    let source = raw(Arc::new(MemoryStorage::new("in", bytes.clone())), false);
    let special = [
        ("vdi", "static", "on"),
        ("qcow2", "preallocation", "metadata"),
        ("qcow2", "preallocation", "falloc"),
        ("qcow2", "preallocation", "full"),
        ("qcow2", "cluster_size", "4096"),
    ];
    let special = special.map(|(format, name, value)| (format, Options::new().with(name, value)));
    let plain = DRIVERS.iter().filter(|d| d.capabilities().create);
    let plain = plain.map(|d| (d.name(), Options::new()));
    let mut made = Vec::new();
    for (format, options) in plain.chain(special) {
        let old = vec![0xa5; 24 << 20];
        let behind = Arc::new(MemoryStorage::new("device", old.clone()));
        let device: StorageRef = Arc::new(SliceStorage::new(behind.clone(), 0, 24 << 20).unwrap());
        let Ok(target) = new_image(device, format, bytes.len() as u64, &options) else {
            assert!(behind.contents() == old, "{format} is refused after a change");
            continue;
        };
        made.push(format);
        convert(&source, target.top(), &CopyOptions::default(), &Control::default()).unwrap();
        let mut seen = vec![1; bytes.len()];
        target.read(0, &mut seen).unwrap();
        assert!(seen == bytes, "{format} {options:?}");
    }
    assert!(
        ["raw", "qcow2", "vdi"].iter().all(|format| made.contains(format)),
        "{made:?}"
    );
}

/// The file does not grow: clusters that the image has already are not given up for new ones.
#[test]
fn what_was_preallocated_is_filled() {
    let mut bytes = vec![0; 9 << 20];
    bytes[100..300_000].fill(1);
    bytes[5 << 20..(6 << 20) + 1].fill(3);
    let source = raw(Arc::new(MemoryStorage::new("in", bytes.clone())), false);
    for (mode, sparse) in [("metadata", 4096), ("falloc", 4096), ("full", 4096), ("falloc", 0)] {
        let file = Arc::new(MemoryStorage::new("out", Vec::new()));
        let options = Options::new().with("preallocation", mode);
        let target = new_image(file.clone(), "qcow2", bytes.len() as u64, &options).unwrap();
        let before = file.len().unwrap();
        let options = CopyOptions {
            sparse,
            ..CopyOptions::default()
        };
        convert(&source, target.top(), &options, &Control::default()).unwrap();
        let mut seen = vec![1; bytes.len()];
        target.read(0, &mut seen).unwrap();
        assert!(seen == bytes, "{mode}");
        assert_eq!(file.len().unwrap(), before, "{mode}");
    }
}

/// Some images are written from their start to their end alone, whatever order the workers could take.
#[test]
fn what_is_filled_once_is_filled_in_order() {
    let mut bytes = vec![0; 32 << 20];
    let mut random = 1u64;
    // Pieces that take long to compress beside others that do not.
    for (n, piece) in bytes.chunks_mut(192 << 10).enumerate() {
        for (i, byte) in piece.iter_mut().enumerate() {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = if n % 3 == 0 {
                (random >> 33) as u8
            } else {
                (i / 700 + n) as u8
            };
        }
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("raw"), &bytes).unwrap();
    let source = raw(Arc::new(MemoryStorage::new("in", bytes)), false);
    let once = [
        ("vmdk", Some(("subformat", "streamOptimized"))),
        ("cloop", None),
        ("dmg", Some(("subformat", "UDZO"))),
        ("dmg", Some(("subformat", "ULFO"))),
    ];
    for (n, (format, option)) in once.into_iter().enumerate() {
        let path = dir.path().join(format!("image{n}"));
        let file: StorageRef = Arc::new(FileStorage::create_new(&path, FileOptions::write()).unwrap());
        let options = option.map_or(Options::new(), |(name, value)| Options::new().with(name, value));
        let target = new_image(file, format, source.virtual_size(), &options).unwrap();
        let unordered = CopyOptions {
            workers: 4,
            ordered: false,
            ..CopyOptions::default()
        };
        convert(&source, target.top(), &unordered, &Control::default()).unwrap_or_else(|e| panic!("{format}: {e}"));
        drop(target);
        let limits = Limits::default();
        let file: StorageRef = Arc::new(FileStorage::open(&path, FileOptions::read()).unwrap());
        let copy = Chain::open(Node::new(file, format), &OpenEnv::closed(&limits)).unwrap();
        let found = compare::compare(&source, &copy, true, 2, &Control::default()).unwrap();
        assert!(found.difference.is_none(), "{format} {option:?}");
        if e2e::tools::have(&["qemu-img"]) && option != Some(("subformat", "ULFO")) {
            let (raw, image) = (dir.path().join("raw"), path.to_str().unwrap());
            e2e::tools::ok(
                "qemu-img",
                &["compare", "-f", "raw", "-F", format, raw.to_str().unwrap(), image],
            );
        }
    }
}

#[test]
fn holes_stay_holes() {
    let dir = tempfile::tempdir().unwrap();
    let create = |name: &str| FileStorage::create_new(&dir.path().join(name), FileOptions::write()).unwrap();
    let (source, target) = (create("in"), Arc::new(create("out")));
    source.set_len(1 << 40).unwrap();
    source.write_at(1 << 39, &[7; 4096]).unwrap();
    target.set_len(1 << 40).unwrap();
    let source = raw(Arc::new(source), false);
    let out = raw(target.clone(), true);
    convert(
        &source,
        out.top(),
        &CopyOptions {
            workers: 2,
            ..CopyOptions::default()
        },
        &Control::default(),
    )
    .unwrap();
    assert_eq!(target.allocated().unwrap(), 4096);
    let same = compare::compare(&source, &out, false, 2, &Control::default()).unwrap();
    assert_eq!(same.difference, None);
}

#[test]
fn the_first_difference_is_found_to_the_byte() {
    let mut bytes = vec![5; 3 << 20];
    let a = raw(Arc::new(MemoryStorage::new("a", bytes.clone())), false);
    bytes[2_345_678] = 6;
    let b = raw(Arc::new(MemoryStorage::new("b", bytes)), false);
    let found = compare::compare(&a, &b, false, 1, &Control::default()).unwrap();
    assert_eq!(found.difference, Some(compare::Difference::Content(2_345_678)));
    let found = compare::compare(&b, &a, false, 3, &Control::default()).unwrap();
    assert_eq!(found.difference, Some(compare::Difference::Content(2_345_678)));
}

#[test]
fn a_cancelled_copy_stops_with_the_right_error() {
    let source = raw(Arc::new(MemoryStorage::new("in", vec![1; 8 << 20])), false);
    let target = raw(Arc::new(MemoryStorage::new("out", vec![0; 8 << 20])), true);
    let control = Control::default();
    control.cancel_token().cancel();
    let options = CopyOptions {
        workers: 3,
        ..CopyOptions::default()
    };
    assert_eq!(
        convert(&source, target.top(), &options, &control).unwrap_err().kind(),
        ErrorKind::Cancelled
    );
}

/// Looks at the target whenever a copy says that more is done, and asks it to stop at `cancel_at`.
struct Watcher {
    target: Arc<MemoryStorage>,
    cancel: CancelToken,
    cancel_at: u64,
    counted: Counted,
    /// Where less was stored than had been said: what was said, what was there.
    untrue: Mutex<Vec<(u64, u64)>>,
}

impl Watcher {
    fn new(target: &Arc<MemoryStorage>, cancel_at: u64) -> Arc<Self> {
        Arc::new(Self {
            target: target.clone(),
            cancel: CancelToken::new(),
            cancel_at,
            counted: Counted::default(),
            untrue: Mutex::default(),
        })
    }
    fn control(self: &Arc<Self>) -> Control {
        Control::new(self.clone(), self.cancel.clone())
    }
}

impl Progress for Watcher {
    fn set_total(&self, bytes: u64) {
        self.counted.set_total(bytes);
    }
    fn advance(&self, bytes: u64) {
        let said = self.counted.add(bytes);
        if said >= self.cancel_at {
            self.cancel.cancel();
        }
        let there = self.target.contents().iter().filter(|b| **b != 0).count() as u64;
        if there < said {
            self.untrue.lock().unwrap().push((said, there));
        }
    }
}

#[test]
fn progress_never_runs_ahead_of_what_is_stored_and_ends_at_the_total() {
    const LEN: u64 = 7 << 20;
    let source = raw(Arc::new(MemoryStorage::new("in", vec![1; LEN as usize])), false);
    for workers in [1, 4] {
        let target = Arc::new(MemoryStorage::new("out", vec![0; LEN as usize]));
        let watcher = Watcher::new(&target, u64::MAX);
        let options = CopyOptions {
            workers,
            ..CopyOptions::default()
        };
        convert(&source, raw(target, true).top(), &options, &watcher.control()).unwrap();
        assert_eq!(*watcher.untrue.lock().unwrap(), []);
        assert_eq!(watcher.counted.total.load(Ordering::SeqCst), LEN);
        assert_eq!(watcher.counted.done.load(Ordering::SeqCst), LEN);
    }
}

#[test]
fn after_a_cancel_each_worker_ends_the_batch_that_it_has_and_no_more() {
    const LEN: usize = 12 << 20;
    const BATCH: u64 = 512 << 10;
    let source = raw(Arc::new(MemoryStorage::new("in", vec![1; LEN])), false);
    for workers in [1, 3] {
        let target = Arc::new(MemoryStorage::new("out", vec![0; LEN]));
        let watcher = Watcher::new(&target, 5 * BATCH);
        let options = CopyOptions {
            workers,
            ..CopyOptions::default()
        };
        let done = convert(&source, raw(target.clone(), true).top(), &options, &watcher.control());
        assert_eq!(done.unwrap_err().kind(), ErrorKind::Cancelled);
        let stored = target.contents().iter().filter(|b| **b != 0).count() as u64;
        let most = (5 + workers as u64) * BATCH;
        assert!(stored <= most, "{workers} workers: {stored} bytes are stored");
    }
}

/// Counts what a limit of speed would be charged.
#[derive(Default)]
struct Charged(AtomicU64);

impl Progress for Charged {
    fn set_total(&self, _bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
    fn pace(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::SeqCst);
    }
}

#[test]
fn a_limit_of_speed_is_charged_for_data_and_not_for_holes() {
    const MIB: usize = 1 << 20;
    let mut bytes = vec![0; 64 * MIB];
    bytes[..MIB].fill(5);
    bytes[60 * MIB..61 * MIB].fill(6);
    let limits = Limits::default();
    let image = Arc::new(MemoryStorage::empty());
    let chain = new_image(image.clone(), "qcow2", bytes.len() as u64, &Options::new()).unwrap();
    for at in [0, 60 * MIB] {
        chain.write(at as u64, &bytes[at..at + MIB]).unwrap();
    }
    chain.top().close().unwrap();
    drop(chain);
    let source = Chain::open(Node::new(image, "qcow2"), &OpenEnv::closed(&limits)).unwrap();
    let target = Arc::new(MemoryStorage::new("out", vec![0; bytes.len()]));
    let charged = Arc::new(Charged::default());
    let control = Control::new(charged.clone(), CancelToken::new());
    convert(
        &source,
        raw(target.clone(), true).top(),
        &CopyOptions::default(),
        &control,
    )
    .unwrap();
    assert!(target.contents() == bytes);
    assert_eq!(charged.0.load(Ordering::SeqCst), 2 * MIB as u64);
}
