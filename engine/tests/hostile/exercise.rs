//! Uses an image in every way, and watches what that costs.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use vdisk_engine::gate::{Gate, Node, Reference};
use vdisk_engine::image::Repair;
use vdisk_engine::ops::{self, convert::CopyOptions};
use vdisk_engine::options::Options;
use vdisk_engine::storage::{FileOptions, FileStorage, MemoryStorage};
use vdisk_engine::{Chain, Control, Error, ErrorKind, Limits, OpenEnv, Result, StorageRef, formats};

use crate::inputs::has_data_file;

pub use crate::inputs::Passphrase;

/// Generous: not optimised. The processor's time, not the clock's: other programs take their share of that.
const TIME: Duration = Duration::from_secs(2);
const MEMORY: u64 = 64 << 20;
/// Guest bytes that are read and converted.
const REACH: u64 = 1 << 20;

/// Denies everything and counts.
#[derive(Default)]
struct Closed(AtomicU64);

impl Gate for Closed {
    fn open(&self, reference: &Reference<'_>) -> Result<Node> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Err(Error::denied(format!("{:?}", reference.name)))
    }
    fn create(&self, reference: &Reference<'_>) -> Result<StorageRef> {
        Err(Error::denied(format!("{:?}", reference.name)))
    }
}

fn node(storage: StorageRef, format: &str) -> Node {
    with_key(Node::new(storage, format)).without_backing()
}

fn in_memory(bytes: &[u8]) -> StorageRef {
    Arc::new(MemoryStorage::new("hostile", bytes.to_vec()))
}

/// The option that names the key, where the format needs one.
pub fn with_key(node: Node) -> Node {
    match node.format.as_deref() {
        Some("luks") => node.with_options(Options::new().with("key-secret", "key")),
        _ => node,
    }
}

/// What a use may give: anything but a failure of the storage, which is memory and does not fail.
fn typed<T>(what: &str, verb: &str, result: Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            assert_ne!(error.kind(), ErrorKind::Io, "{what}, {verb}: {error:?}");
            None
        }
    }
}

/// What the uses of an image cost.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// The processor's time for all of them.
    pub time: Duration,
    /// The processor's time for the slowest.
    pub slowest: Duration,
    /// Bytes that the process grew by.
    pub memory: u64,
}

/// What this thread uses of a processor, use by use.
struct Watch {
    start: Duration,
    last: Duration,
    slowest: Duration,
}

impl Watch {
    fn start() -> Self {
        let start = processor_time();
        Self {
            start,
            last: start,
            slowest: Duration::ZERO,
        }
    }
    /// One use has ended.
    fn lap(&mut self) {
        let now = processor_time();
        self.slowest = self.slowest.max(now.saturating_sub(self.last));
        self.last = now;
    }
}

/// Uses `bytes` as an image, which must not cost much. With `guest`, what is read must be of these byte values.
pub fn exercise(format: &str, bytes: &[u8], guest: Option<&[u8]>, what: &str) {
    let Cost { time, slowest, memory } = cost(format, bytes, guest, what);
    assert!(time < TIME, "{what}: took {time:?}, {slowest:?} of it for one use");
    assert!(memory < MEMORY, "{what}: took {memory} bytes");
}

/// Uses `bytes` as [`exercise`] does, whatever it costs.
pub fn cost(format: &str, bytes: &[u8], guest: Option<&[u8]>, what: &str) -> Cost {
    let (image, to_change) = (in_memory(bytes), in_memory(bytes));
    // A real file to write into: one that grows far is sparse there. The system may refuse what is too far.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let before = peak_memory(true);
    let mut watch = Watch::start();
    let gate = Closed::default();
    let limits = Limits::untrusted();
    let env = OpenEnv::closed(&limits).with_gate(&gate).with_secrets(&Passphrase);
    let alone = |env: &OpenEnv<'_>| Chain::open(node(image.clone(), format), env);
    if let Some(chain) = typed(what, "info", alone(&env.metadata_only())) {
        typed(what, "info", chain.top().info());
    }
    watch.lap();
    let asked = || gate.0.load(Ordering::Relaxed);
    assert!(asked() == 0 || format == "vmdk", "{what}: info asked for a second file");
    if let Some(chain) = typed(what, "check", alone(&env.for_check())) {
        typed(what, "check", chain.top().check(Repair::No, &Control::default()));
    }
    watch.lap();
    // The data of an image of several files is in files that its header names: the gate is asked, and refuses.
    let several = format == "vmdk" || has_data_file(format, &*image);
    assert!(asked() == 0 || several, "{what}: check asked for a second file");
    let with_backing = Chain::open(with_key(Node::new(image.clone(), format)), &env);
    if let Some(chain) = typed(what, "open", with_backing) {
        typed(
            what,
            "map",
            ops::map::map(&chain, 0, REACH).take(500).collect::<Result<Vec<_>>>(),
        );
        watch.lap();
        read(&chain, guest, what);
        watch.lap();
        convert(&chain, what);
    }
    watch.lap();
    write(format, file.path(), &env.writable());
    watch.lap();
    go_back(format, &to_change, &env.writable());
    watch.lap();
    Cost {
        time: watch.last.saturating_sub(watch.start),
        slowest: watch.slowest,
        memory: peak_memory(false).saturating_sub(before),
    }
}

fn write(format: &str, file: &Path, env: &OpenEnv<'_>) {
    let storage = FileStorage::open(file, FileOptions::write()).unwrap();
    if let Ok(chain) = Chain::open(node(Arc::new(storage), format), env) {
        let _ = chain.write(0, &[9; 512]).and_then(|()| chain.top().close());
    }
}

/// Goes back to the first snapshot; an image that does can be opened afterwards.
fn go_back(format: &str, image: &StorageRef, env: &OpenEnv<'_>) {
    let open = || Chain::open(node(image.clone(), format), env);
    let Ok(chain) = open() else { return };
    let snapshots = chain.top().snapshots();
    let first = snapshots.and_then(|s| s.list().ok()?.into_iter().next());
    if let (Some(snapshots), Some(first)) = (snapshots, first)
        && snapshots.apply(&first.id).is_ok()
    {
        drop(chain);
        open().unwrap();
    }
}

fn read(chain: &Chain, guest: Option<&[u8]>, what: &str) {
    let size = chain.virtual_size();
    let mut buf = vec![0; 64 << 10];
    let last = size.saturating_sub(buf.len() as u64);
    for offset in [0, 64 << 10, 128 << 10, 192 << 10, last / 2, last] {
        let len = buf
            .len()
            .min(usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX));
        let buf = &mut buf[..len];
        if typed(what, "read", chain.read(offset, buf)).is_some()
            && let Some(guest) = guest
        {
            let foreign = buf.iter().find(|b| !guest.contains(b));
            assert_eq!(foreign, None, "{what}: foreign bytes at {offset:#x}");
        }
    }
}

/// Converts the beginning, if it is not larger than that.
fn convert(chain: &Chain, what: &str) {
    if chain.virtual_size() > REACH {
        return;
    }
    let storage: StorageRef = Arc::new(MemoryStorage::new("out", vec![0; chain.virtual_size() as usize]));
    let limits = Limits::default();
    let raw = formats::by_name("raw").unwrap();
    let env = OpenEnv::closed(&limits).writable();
    let target = raw.open(storage, &Options::new(), &env).unwrap();
    let done = ops::convert::convert(chain, &*target, &CopyOptions::default(), &Control::default());
    typed(what, "convert", done);
}

/// The process's largest resident size since the last reset, in bytes; 0 where the system does not tell.
pub fn peak_memory(reset: bool) -> u64 {
    if reset {
        let _ = std::fs::write("/proc/self/clear_refs", "5");
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let number = line.and_then(|l| l.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    number.unwrap_or(0) << 10
}

/// What this thread has used of a processor; nothing where the system does not tell.
fn processor_time() -> Duration {
    let status = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let used = status
        .split(' ')
        .next()
        .and_then(|nanoseconds| nanoseconds.parse().ok());
    Duration::from_nanos(used.unwrap_or(0))
}
