//! Starting the service.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use vdisk_engine::Limits;

use super::stream::BODIES;
use super::{Inner, Service, audit, lock};
use crate::config::ServiceConfig;
use crate::disk::try_random;
use crate::error::{ErrorCode, Result, ServiceError};
use crate::pool::{Alone, PoolFolder, check_image_name};
use crate::queue::{Pulse, housekeeping, recover, workers};
use crate::secrets::Vault;
use crate::store::{Ballast, Store, sqlite_url};
use crate::webhooks::deliverer;

impl Service {
    /// Opens the database (migrating it), the pools and the master key, brings inventory and disk in line after an
    /// unclean end, and starts the workers. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`ErrorCode::Unavailable`] when the database or a pool cannot be used, or another process has the data folder;
    /// [`ErrorCode::InvalidArgument`] for a configuration that contradicts itself.
    pub async fn open(mut config: ServiceConfig) -> Result<Self> {
        complete(&mut config)?;
        try_random(&mut [0; 16]).map_err(|error| unavailable("there is no source of randomness", &error))?;
        make_private_folder(&config.data_dir)?;
        let url = config
            .database_url
            .clone()
            .unwrap_or_else(|| sqlite_url(&config.data_dir.join("vdiskd.db")));
        let owner = url.starts_with("sqlite:").then(|| own(&config.data_dir)).transpose()?;
        let pools = open_pools(&config.pools)?;
        let mut store = Store::open(&url, config.clock.clone()).await?;
        let vault = Vault::open(&config, &store.master_keys().await?)?;
        if owner.is_some() {
            store = store.with_ballast(Ballast::new(&config.data_dir, config.ballast_bytes));
        }
        let limits = Limits {
            chain_depth: config.limits.chain_depth,
            virtual_size: config.limits.virtual_size,
            ..Limits::untrusted()
        };
        let pulse = Pulse::start(&store).await?;
        let (audit, entries) = audit::channel();
        let inner = Arc::new(Inner {
            store,
            pulse,
            places: Arc::new(Semaphore::new(BODIES)),
            audit,
            pools,
            vault,
            limits,
            process: Uuid::now_v7(),
            stop: CancellationToken::new(),
            running: Mutex::new(HashMap::new()),
            tasks: Mutex::new(Vec::new()),
            _owner: owner,
            config,
        });
        recover(&inner).await?;
        let mut tasks = vec![
            tokio::spawn(housekeeping(inner.clone())),
            tokio::spawn(audit::writer(inner.clone(), entries)),
            tokio::spawn(deliverer(inner.clone())),
        ];
        if inner.config.workers > 0 {
            tasks.push(tokio::spawn(workers(inner.clone())));
        }
        *lock(&inner.tasks) = tasks;
        Ok(Self { inner })
    }
}

fn complete(config: &mut ServiceConfig) -> Result<()> {
    if config.pools.is_empty() {
        let folder = config.data_dir.join("pools").join(&config.default_pool);
        config.pools.insert(config.default_pool.clone(), folder);
    }
    for name in config.pools.keys() {
        check_image_name(name).map_err(|_| {
            let public = format!("'{name}' is no name for a pool: A-Z a-z 0-9 . _ - only");
            ServiceError::invalid("pools", public)
        })?;
    }
    if !config.pools.contains_key(&config.default_pool) {
        let public = format!("the default pool '{}' is not among the pools", config.default_pool);
        return Err(ServiceError::invalid("default_pool", public));
    }
    if config.heartbeat.is_zero() || config.progress_interval.is_zero() || config.lease < config.heartbeat * 2 {
        let public = "the heartbeat must be at most half of the lease, and neither it nor the progress interval zero";
        return Err(ServiceError::invalid("lease", public));
    }
    if config.max_attempts == 0 {
        let public = "a job needs at least one attempt";
        return Err(ServiceError::invalid("max_attempts", public));
    }
    Ok(())
}

fn make_private_folder(path: &Path) -> Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| unavailable("the data folder cannot be made", &error))
}

/// Makes sure that no other process uses the same data folder: SQLite and recovery count on it.
fn own(data_dir: &Path) -> Result<Alone> {
    let opened = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(data_dir.join("vdiskd.lock"));
    let file = opened.map_err(|error| unavailable("the data folder cannot be written", &error))?;
    Alone::lock(file).map_err(|error| unavailable("another process uses the data folder", &error))
}

fn open_pools(pools: &BTreeMap<String, PathBuf>) -> Result<BTreeMap<String, Arc<PoolFolder>>> {
    let mut open: BTreeMap<String, Arc<PoolFolder>> = BTreeMap::new();
    for (name, path) in pools {
        let pool = PoolFolder::open(name, path)?;
        if let Some(other) = open.values().find(|other| other.path() == pool.path()) {
            let public = format!("pools '{name}' and '{}' are the same folder", other.name());
            return Err(ServiceError::invalid("pools", public));
        }
        open.insert(name.clone(), Arc::new(pool));
    }
    Ok(open)
}

fn unavailable(what: &str, error: &dyn std::fmt::Display) -> ServiceError {
    ServiceError::new(ErrorCode::Unavailable, what).with_internal(error)
}
