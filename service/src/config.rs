//! What the operator decides.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Clock, SystemClock};

/// Name of the pool that exists when none is configured.
pub const DEFAULT_POOL: &str = "default";

/// Everything [`crate::Service::open`] needs. [`ServiceConfig::new`] gives the defaults.
#[derive(Clone)]
pub struct ServiceConfig {
    /// Folder of the service's own files: the SQLite database, the master key. Made when absent, mode 0700.
    pub data_dir: PathBuf,
    /// `sqlite:<path>` or `postgres://...`; `None` is `vdiskd.db` in `data_dir`.
    pub database_url: Option<String>,
    /// Pools by name, each a folder. Made when absent. Empty: one pool `default` at `<data_dir>/pools/default`.
    pub pools: BTreeMap<String, PathBuf>,
    /// Pool of requests that name none. Must be among `pools`.
    pub default_pool: String,
    /// Jobs that run at the same time in this process; those that are paused on their way do not count. 0 makes a process that serves
    /// requests but runs nothing.
    pub workers: usize,
    /// Threads one job may use inside the engine.
    pub threads_per_job: usize,
    /// How long a claimed job stays claimed without a sign of life.
    pub lease: Duration,
    /// How often a running job renews its lease; at most a third of `lease` is sensible.
    pub heartbeat: Duration,
    /// How often progress is written and published at most.
    pub progress_interval: Duration,
    /// How often idle workers look for jobs that another process queued.
    pub poll_interval: Duration,
    /// How often a job whose worker died is started in all before it fails with `attempts_exhausted`.
    pub max_attempts: u32,
    /// How long idempotency keys are remembered.
    pub idempotency_retention: Duration,
    /// How long events can be resumed.
    pub event_retention: Duration,
    /// Whether webhooks may go to this machine and to private networks.
    pub webhooks_anywhere: bool,
    /// Entries that the audit log keeps.
    pub audit_entries: u32,
    /// Bytes that are set aside beside the SQLite database for the time when the disk is full; 0 sets none aside.
    pub ballast_bytes: u64,
    /// The key that seals secrets, 32 bytes; `None` keeps one in `data_dir/master.key`, made at first start, mode 0600.
    pub master_key: Option<MasterKey>,
    /// The key that is to take its place: a rotation seals everything under it. `None`: a service that keeps its own makes a new one.
    pub new_master_key: Option<MasterKey>,
    /// Whether imports may fetch from addresses that are not public: those of this machine and of private networks.
    pub import_from_private: bool,
    /// The program that files of unknown origin are parsed by, in a process of its own: `vdiskd` itself. `None` parses them
    /// in this process.
    pub inspector: Option<PathBuf>,
    /// Bounds on what requests may ask for.
    pub limits: ServiceLimits,
    /// Where time comes from.
    pub clock: Arc<dyn Clock>,
}

/// A 256-bit key that is wiped from memory and never printed.
#[derive(Clone)]
pub struct MasterKey(pub zeroize::Zeroizing<[u8; 32]>);

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(..)")
    }
}

/// Bounds on what requests may ask for.
#[derive(Clone, Debug)]
pub struct ServiceLimits {
    /// Largest uploaded file, in bytes.
    pub upload_bytes: u64,
    /// Largest virtual size of a new or resized image, in bytes.
    pub virtual_size: u64,
    /// Layers of a backing chain.
    pub chain_depth: usize,
    /// Items of a page when the request says nothing.
    pub page_size_default: u32,
    /// Items of a page at most; larger wishes are cut to it.
    pub page_size_max: u32,
    /// Extents of a map page when the request says nothing.
    pub map_page_default: u32,
    /// Extents of a map page at most.
    pub map_page_max: u32,
    /// How long the making of a map page may take; it ends then where it is.
    pub map_page_time: Duration,
    /// How long measuring an image may take.
    pub measure_time: Duration,
    /// Jobs that wait or run at the same time, over all processes.
    pub open_jobs: u64,
    /// Bytes of a secret's value.
    pub secret_bytes: usize,
    /// Webhooks that may be registered.
    pub webhooks: u64,
    /// Labels of an image, and characters of a label's key or value.
    pub labels: usize,
    /// Characters of a label's key or value.
    pub label_chars: usize,
}

impl Default for ServiceLimits {
    fn default() -> Self {
        Self {
            upload_bytes: 16 << 40,
            virtual_size: 1 << 50,
            chain_depth: 64,
            page_size_default: 50,
            page_size_max: 1000,
            map_page_default: 1000,
            map_page_max: 10_000,
            map_page_time: Duration::from_secs(5),
            measure_time: Duration::from_secs(60),
            open_jobs: 10_000,
            secret_bytes: 64 << 10,
            webhooks: 64,
            labels: 64,
            label_chars: 256,
        }
    }
}

impl ServiceConfig {
    /// The defaults for a data folder: SQLite and one pool named `default` inside it.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        let parallelism = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            data_dir: data_dir.into(),
            database_url: None,
            pools: BTreeMap::new(),
            default_pool: DEFAULT_POOL.to_owned(),
            workers: parallelism.clamp(2, 8),
            threads_per_job: parallelism.clamp(1, 8),
            lease: Duration::from_secs(30),
            heartbeat: Duration::from_secs(10),
            progress_interval: Duration::from_millis(500),
            poll_interval: Duration::from_secs(1),
            max_attempts: 5,
            idempotency_retention: Duration::from_secs(48 * 3600),
            event_retention: Duration::from_secs(24 * 3600),
            webhooks_anywhere: false,
            audit_entries: 100_000,
            ballast_bytes: 64 << 20,
            master_key: None,
            new_master_key: None,
            import_from_private: false,
            inspector: None,
            limits: ServiceLimits::default(),
            clock: Arc::new(SystemClock),
        }
    }
}

impl fmt::Debug for ServiceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URL may hold a password.
        f.debug_struct("ServiceConfig")
            .field("data_dir", &self.data_dir)
            .field(
                "database",
                &self
                    .database_url
                    .as_ref()
                    .map_or("sqlite in the data folder", |_| "by URL"),
            )
            .field("pools", &self.pools)
            .field("workers", &self.workers)
            .finish_non_exhaustive()
    }
}
