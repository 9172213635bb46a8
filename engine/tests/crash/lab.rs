//! Storages in memory that log what is done to all of them in one order, and fail when told to.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vdisk_engine::env::{CreateSpec, Secrets};
use vdisk_engine::gate::{Gate, Node, Reference};
use vdisk_engine::image::BackingReference;
use vdisk_engine::options::Options;
use vdisk_engine::storage::{FlushGuard, LoggedOp, MemoryStorage, StorageExtent};
use vdisk_engine::{Chain, CreateEnv, Error, Limits, OpenEnv, Result, Storage, StorageRef, ops};

/// Files by name.
pub type Files = Vec<(String, Vec<u8>)>;

/// How a change fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// With this error, once, doing nothing.
    Error(ErrorKind),
    /// Half of a write is stored, and then it fails.
    Short,
    /// The next flush fails, once, and the kernel forgets what it should have made stable: all of it, or each `every`th change.
    Flush { every: usize },
}

impl Failure {
    fn is_of_flush(self) -> bool {
        matches!(self, Self::Flush { .. })
    }
}

#[derive(Debug, Default)]
struct Shared {
    log: Vec<(usize, LoggedOp)>,
    failure: Option<(usize, Failure)>,
}

/// One file of a lab.
#[derive(Debug)]
struct LabStorage {
    file: usize,
    start: Vec<u8>,
    inner: MemoryStorage,
    /// As files on disk have it.
    flushes: FlushGuard,
    shared: Arc<Mutex<Shared>>,
}

/// The files of one run.
pub struct Lab {
    storages: Mutex<Vec<(String, Arc<LabStorage>)>>,
    shared: Arc<Mutex<Shared>>,
    limits: Limits,
}

/// The same passphrase under every id, and a clock.
struct Passphrase;

impl Secrets for Passphrase {
    fn get(&self, _id: &str) -> Result<zeroize::Zeroizing<Vec<u8>>> {
        Ok(b"open sesame".to_vec().into())
    }
    /// So fast that key slots get the fewest iterations.
    fn elapsed(&self) -> Option<Duration> {
        static CALLS: AtomicU64 = AtomicU64::new(0);
        Some(Duration::from_secs(CALLS.fetch_add(1, Ordering::Relaxed)))
    }
}

impl Lab {
    pub fn new(start: &Files) -> Self {
        let lab = Self {
            storages: Mutex::default(),
            shared: Arc::default(),
            limits: Limits::default(),
        };
        for (name, bytes) in start {
            lab.add(name, bytes.clone());
        }
        lab
    }
    fn add(&self, name: &str, bytes: Vec<u8>) -> StorageRef {
        let mut storages = self.storages.lock().unwrap();
        let storage = Arc::new(LabStorage {
            file: storages.len(),
            start: bytes.clone(),
            inner: MemoryStorage::new(name, bytes),
            flushes: FlushGuard::default(),
            shared: self.shared.clone(),
        });
        storages.push((name.to_owned(), storage.clone()));
        storage
    }
    fn storage(&self, name: &str) -> Result<StorageRef> {
        let storages = self.storages.lock().unwrap();
        let found = storages.iter().find(|(n, _)| n == name);
        found
            .map(|(_, s)| s.clone() as StorageRef)
            .ok_or_else(|| Error::denied(format!("no file {name:?}")))
    }
    /// Creates an image in an empty lab's file.
    pub fn create(&self, name: &str, format: &str, size: u64, options: Options, base: Option<(&str, &str)>) {
        let env = CreateEnv {
            gate: self,
            limits: &self.limits,
            secrets: &Passphrase,
            random: &|buf| buf.fill(0x5a),
            now: 1_700_000_000,
        };
        let spec = CreateSpec {
            virtual_size: size,
            options,
            backing: base.map(|(name, format)| BackingReference {
                name: name.into(),
                format: Some(format.into()),
            }),
        };
        let storage = self.add(name, Vec::new());
        ops::create::create(storage, format, &spec, &env).unwrap();
    }
    /// Opens a chain with these layers open for writing.
    pub fn chain(&self, name: &str, format: &str, writable: &[usize]) -> Result<Chain> {
        let env = OpenEnv::closed(&self.limits).with_gate(self).with_secrets(&Passphrase);
        let node = node(self.storage(name)?, format);
        match writable.is_empty() {
            true => Chain::open(node, &env),
            false => Chain::open_writable(node, &env.writable(), writable),
        }
    }
    /// Opens one image to be mended.
    pub fn for_check(&self, name: &str, format: &str) -> Result<Chain> {
        let env = OpenEnv::closed(&self.limits).with_gate(self).with_secrets(&Passphrase);
        let node = node(self.storage(name)?, format).without_backing();
        Chain::open(node, &env.writable().for_check())
    }
    /// How many changes were asked for.
    pub fn changes(&self) -> usize {
        self.shared.lock().unwrap().log.len()
    }
    /// All changes: which file, and what.
    pub fn log(&self) -> Vec<(usize, LoggedOp)> {
        self.shared.lock().unwrap().log.clone()
    }
    pub fn plan(&self, at: usize, failure: Failure) {
        self.shared.lock().unwrap().failure = Some((at, failure));
    }
    pub fn contents(&self) -> Files {
        let storages = self.storages.lock().unwrap();
        storages.iter().map(|(n, s)| (n.clone(), s.inner.contents())).collect()
    }
}

/// How to open a file as an image: with a key where there are keys.
fn node(storage: StorageRef, format: &str) -> Node {
    let node = Node::new(storage, format);
    match format {
        "luks" => node.with_options(Options::new().with("key-secret", "key")),
        "qcow2" => node.with_options(Options::new().with("encrypt.key-secret", "key")),
        _ => node,
    }
}

impl Gate for Lab {
    fn open(&self, reference: &Reference<'_>) -> Result<Node> {
        Ok(node(self.storage(reference.name)?, reference.format.unwrap_or("raw")))
    }
    fn create(&self, reference: &Reference<'_>) -> Result<StorageRef> {
        Ok(self.add(reference.name, Vec::new()))
    }
}

impl LabStorage {
    /// Logs a change; an error when it is the one to fail.
    fn note(&self, op: LoggedOp) -> Result<()> {
        let mut shared = self.shared.lock().unwrap();
        let number = shared.log.len();
        let failing = match shared.failure {
            Some((at, failure)) => at <= number && failure.is_of_flush() == (op == LoggedOp::Flush),
            None => false,
        };
        let failure = if failing { shared.failure.take() } else { None };
        shared.log.push((self.file, op.clone()));
        drop(shared);
        let Some((_, failure)) = failure else { return Ok(()) };
        match (failure, &op) {
            (Failure::Short, LoggedOp::Write { offset, data }) => {
                self.inner.write_at(*offset, &data[..data.len() / 2 / 512 * 512])?;
            }
            (Failure::Flush { every }, _) => self.lose(number, every)?,
            _ => {}
        }
        let kind = match failure {
            Failure::Error(kind) => kind,
            Failure::Short => ErrorKind::WriteZero,
            Failure::Flush { .. } => ErrorKind::Other,
        };
        Err(Error::io(
            format!("planned failure at change {number}"),
            std::io::Error::from(kind),
        )
        .at("lab"))
    }
    /// Takes back each `every`th change that the flush with this number should have made stable.
    fn lose(&self, flush: usize, every: usize) -> Result<()> {
        let log: Vec<LoggedOp> = {
            let shared = self.shared.lock().unwrap();
            let ours = shared.log[..flush].iter().filter(|(file, _)| *file == self.file);
            ours.map(|(_, op)| op.clone()).collect()
        };
        let stable = log.iter().rposition(|op| *op == LoggedOp::Flush).map_or(0, |at| at + 1);
        let mut bytes = self.start.clone();
        for (number, op) in log.iter().enumerate() {
            if number < stable || (number - stable + 1) % every != 0 {
                op.replay(&mut bytes);
            }
        }
        self.inner.set_len(bytes.len() as u64)?;
        self.inner.write_at(0, &bytes)
    }
    fn zero(&self, offset: u64, len: u64) -> Result<()> {
        self.note(LoggedOp::Zero { offset, len })?;
        self.inner.write_zeroes(offset, len, false)
    }
}

impl Storage for LabStorage {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn len(&self) -> Result<u64> {
        self.inner.len()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.inner.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.note(LoggedOp::Write {
            offset,
            data: buf.to_vec(),
        })?;
        self.inner.write_at(offset, buf)
    }
    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> Result<()> {
        self.zero(offset, len)
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        match self.len()? {
            end if offset >= end => Ok(()),
            end => self.zero(offset, len.min(end - offset)),
        }
    }
    fn set_len(&self, len: u64) -> Result<()> {
        self.note(LoggedOp::SetLen(len))?;
        self.inner.set_len(len)
    }
    fn flush(&self) -> Result<()> {
        self.flushes.flush(self.name(), || self.note(LoggedOp::Flush))
    }
    fn extent(&self, offset: u64, len: u64) -> Result<StorageExtent> {
        self.inner.extent(offset, len)
    }
    fn allocated(&self) -> Result<u64> {
        self.inner.allocated()
    }
    fn allocate(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }
    fn is_read_only(&self) -> bool {
        false
    }
}
