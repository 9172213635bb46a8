//! Volumes of test size, with cheap keys.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vdisk_engine::crypto::luks::{KeyEnv, KeyWork};
use vdisk_engine::env::{CreateSpec, Secrets};
use vdisk_engine::formats;
use vdisk_engine::options::Options;
use vdisk_engine::storage::{FileOptions, FileStorage, LockMode, MemoryStorage};
use vdisk_engine::{CreateEnv, Error, ErrorKind, Image, Limits, OpenEnv, Result, StorageRef, gate::DenyAll};

/// One secret with the id `s`, and a clock.
pub struct One(pub Vec<u8>);

impl Secrets for One {
    fn get(&self, id: &str) -> Result<zeroize::Zeroizing<Vec<u8>>> {
        match id {
            "s" => Ok(self.0.clone().into()),
            _ => Err(Error::new(ErrorKind::WrongKey, "no such secret")),
        }
    }
    fn elapsed(&self) -> Option<Duration> {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        Some(START.get_or_init(Instant::now).elapsed())
    }
}

/// Not random at all, but different at each call: enough for tests.
pub fn random(buf: &mut [u8]) {
    use std::sync::atomic::{AtomicU64, Ordering};
    static STATE: AtomicU64 = AtomicU64::new(0x9e37_79b9_7f4a_7c15);
    for byte in buf {
        let mut x = STATE.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        *byte = (x >> 56) as u8;
    }
}

/// Without QEMU's locks: tests open a volume while they change its keys.
pub fn file(path: &Path) -> StorageRef {
    let options = FileOptions {
        lock: LockMode::None,
        ..FileOptions::write()
    };
    Arc::new(FileStorage::open(path, options).unwrap())
}

pub fn create_on(storage: StorageRef, size: u64, options: Options, passphrase: &str) -> Result<()> {
    let spec = CreateSpec {
        virtual_size: size,
        options: options.with("key-secret", "s"),
        backing: None,
    };
    let (limits, secrets) = (Limits::default(), One(passphrase.into()));
    let env = CreateEnv {
        gate: &DenyAll,
        limits: &limits,
        secrets: &secrets,
        random: &random,
        now: 0,
    };
    vdisk_engine::ops::create::create(storage, "luks", &spec, &env)
}

pub fn create_new(path: &Path) -> StorageRef {
    Arc::new(FileStorage::create_new(path, FileOptions::write()).unwrap())
}

/// A new volume with the fewest iterations.
pub fn create(path: &Path, size: u64, options: Options, passphrase: &str) -> Result<()> {
    create_on(create_new(path), size, options.with("iterations", "1000"), passphrase)
}

/// A volume in memory that "first" opens, with the fewest iterations.
pub fn in_memory(version: &str, size: u64) -> Arc<MemoryStorage> {
    let memory = Arc::new(MemoryStorage::empty());
    let options = Options::new()
        .with("version", version)
        .with("pbkdf", "pbkdf2")
        .with("cipher-alg", "aes-128")
        .with("iterations", "1000");
    create_on(memory.clone(), size, options, "first").unwrap();
    memory
}

pub fn open_on(storage: StorageRef, passphrase: &[u8]) -> Result<Box<dyn Image>> {
    let (limits, secrets) = (Limits::default(), One(passphrase.into()));
    let env = OpenEnv::closed(&limits).with_secrets(&secrets).writable();
    formats::by_name("luks")?.open(storage, &Options::new().with("key-secret", "s"), &env)
}

pub fn open(path: &Path, passphrase: &str) -> Result<Box<dyn Image>> {
    open_on(file(path), passphrase.as_bytes())
}

/// Opens without a key.
pub fn metadata(storage: StorageRef, limits: &Limits) -> Result<Box<dyn Image>> {
    let env = OpenEnv::closed(limits).metadata_only().writable();
    formats::by_name("luks")?.open(storage, &Options::new(), &env)
}

pub fn key_env(limits: &Limits) -> KeyEnv<'_> {
    KeyEnv {
        work: KeyWork::within(limits),
        random: &random,
    }
}

pub fn read_all(image: &dyn Image) -> Vec<u8> {
    let mut bytes = vec![0; image.virtual_size() as usize];
    image.read(0, &mut bytes).unwrap();
    bytes
}

/// Bytes that are different in each sector.
pub fn pattern(len: usize, seed: u32) -> Vec<u8> {
    (0..len as u32)
        .map(|n| (n.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8)
        .collect()
}
