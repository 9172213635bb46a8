//! What the operator decides: flags over `VDISKD_*` variables over a TOML file over the defaults, under the same names.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Deserializer};
use vdisk_service::ServiceConfig;
use vdisk_service::model::Role;

use crate::access::{Authentication, Hosts, Policy};
use crate::http::extract::words::without_value;
use crate::tls::TlsFiles;

/// Where the service listens when nothing else is said.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:8080";
/// Where the service keeps its files when nothing else is said.
pub const DEFAULT_DATA_DIR: &str = "vdisk-data";
const DEFAULT_LOG: &str = "info,sqlx=warn,tower_http=warn,h2=warn,hyper=warn";

/// Every option, absent where it was not given.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Folder of the database, the master key and the default pool [default: ./vdisk-data]
    #[arg(long, env = "VDISKD_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address to listen on, for HTTP and gRPC alike [default: 127.0.0.1:8080]
    #[arg(long, env = "VDISKD_LISTEN", value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// A name under which the service may be called, besides loopback ones; may be repeated [default: none, or any on an address
    /// that others reach where requests need a token]
    #[arg(long, env = "VDISKD_HOST", value_name = "NAME", value_delimiter = ',')]
    pub host: Vec<String>,
    /// PEM file with the server's certificate, intermediate ones behind it: serves TLS
    #[arg(long, env = "VDISKD_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the certificate's private key
    #[arg(long, env = "VDISKD_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// PEM file with the authorities that sign clients' certificates: connections without one are refused
    #[arg(long, env = "VDISKD_CLIENT_CA", value_name = "FILE")]
    pub client_ca: Option<PathBuf>,
    /// Role of clients with a certificate and no token: reader, operator or admin [default: none, they need a token]
    #[arg(long, env = "VDISKD_CLIENT_CERT_ROLE", value_name = "ROLE")]
    pub client_cert_role: Option<Role>,
    /// Refuse requests without a token on a loopback address too; elsewhere they are refused anyway
    #[arg(long, env = "VDISKD_REQUIRE_TOKEN", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub require_token: Option<bool>,
    /// Serve /metrics to requests without a token
    #[arg(long, env = "VDISKD_OPEN_METRICS", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub open_metrics: Option<bool>,
    /// Serve requests without a token on an address that others can reach
    #[arg(long, env = "VDISKD_ALLOW_UNAUTHENTICATED", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub allow_unauthenticated: Option<bool>,
    /// Database: sqlite:PATH or postgres://... [default: SQLite in the data folder]
    #[arg(long, env = "VDISKD_DATABASE", value_name = "URL", hide_env_values = true)]
    pub database: Option<String>,
    /// A pool and its folder; may be repeated [default: default=DATA_DIR/pools/default]
    #[arg(long = "pool", env = "VDISKD_POOL", value_name = "NAME=DIR", value_delimiter = ',')]
    #[serde(rename = "pool", deserialize_with = "pool_table")]
    pub pool: Vec<PoolFolder>,
    /// Pool of requests that name none [default: default, or the only one]
    #[arg(long, env = "VDISKD_DEFAULT_POOL", value_name = "NAME")]
    pub default_pool: Option<String>,
    /// Jobs that run at the same time; 0 serves requests but runs nothing [default: the processors, 2 to 8]
    #[arg(long, env = "VDISKD_WORKERS", value_name = "N")]
    pub workers: Option<usize>,
    /// Threads one job may use [default: the processors, at most 8]
    #[arg(long, env = "VDISKD_THREADS_PER_JOB", value_name = "N")]
    pub threads_per_job: Option<usize>,
    /// How often a job whose worker died is started in all [default: 5]
    #[arg(long, env = "VDISKD_MAX_ATTEMPTS", value_name = "N")]
    pub max_attempts: Option<u32>,
    /// Let imports by URL fetch from this machine and private networks too [default: false]
    #[arg(long, env = "VDISKD_IMPORT_FROM_PRIVATE", value_name = "BOOL")]
    pub import_from_private: Option<bool>,
    /// Seconds after which a job whose worker gave no sign of life runs again [default: 30]
    #[arg(long, env = "VDISKD_LEASE_SECONDS", value_name = "N")]
    pub lease_seconds: Option<u64>,
    /// Largest uploaded file, in bytes [default: 16 TiB]
    #[arg(long, env = "VDISKD_MAX_UPLOAD_BYTES", value_name = "N")]
    pub max_upload_bytes: Option<u64>,
    /// Largest virtual size of a new image, in bytes [default: 1 PiB]
    #[arg(long, env = "VDISKD_MAX_VIRTUAL_SIZE", value_name = "N")]
    pub max_virtual_size: Option<u64>,
    /// File with the 32 bytes that seal secrets [default: VDISKD_MASTER_KEY (base64), the systemd credential
    /// vdiskd.master-key, or DATA_DIR/master.key, made at first start]
    #[arg(long, env = "VDISKD_MASTER_KEY_FILE", value_name = "FILE")]
    pub master_key_file: Option<PathBuf>,
    /// File with the 32 bytes that a rotation of the master key seals everything under
    #[arg(long, env = "VDISKD_NEW_MASTER_KEY_FILE", value_name = "FILE")]
    pub new_master_key_file: Option<PathBuf>,
    /// Parse files of unknown origin in a child process with bounded rights; false parses them in this one [default: true]
    #[arg(long, env = "VDISKD_SANDBOX", value_name = "BOOL")]
    pub sandbox: Option<bool>,
    /// Let webhooks go to this machine and to private networks
    #[arg(long, env = "VDISKD_WEBHOOKS_ANYWHERE", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub webhooks_anywhere: Option<bool>,
    /// Seconds that running jobs and requests get at the end [default: 20]
    #[arg(long, env = "VDISKD_SHUTDOWN_GRACE_SECONDS", value_name = "N")]
    pub shutdown_grace_seconds: Option<u64>,
    /// Form of the log [default: text]
    #[arg(long, env = "VDISKD_LOG_FORMAT", value_name = "FORM")]
    pub log_format: Option<LogFormat>,
    /// What to log, as tracing's filters are written [default: info]
    #[arg(long, env = "VDISKD_LOG", value_name = "FILTER")]
    pub log: Option<String>,
}

/// A command that does not look at the variables that are set to nothing, as compose files and units set them.
pub fn without_empty_variables(command: clap::Command, env: &dyn Fn(&OsStr) -> Option<OsString>) -> clap::Command {
    let says_nothing = |arg: &clap::Arg| arg.get_env().and_then(env).is_some_and(|value| value.is_empty());
    command
        .mut_args(|arg| {
            if says_nothing(&arg) {
                arg.env(None::<&'static str>)
            } else {
                arg
            }
        })
        .mut_subcommands(|command| without_empty_variables(command, env))
}

/// Form of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// A line for people.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

/// A pool's name and folder: `NAME=DIR`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolFolder {
    /// Name.
    pub name: String,
    /// Folder.
    pub folder: PathBuf,
}

impl FromStr for PoolFolder {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, folder)) if !name.is_empty() && !folder.is_empty() => Ok(Self {
                name: name.to_owned(),
                folder: folder.into(),
            }),
            _ => Err(format!("'{text}' is not NAME=DIR")),
        }
    }
}

/// In TOML, pools are a table of folders by name.
fn pool_table<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PoolFolder>, D::Error> {
    let table = std::collections::BTreeMap::<String, PathBuf>::deserialize(deserializer)?;
    Ok(table
        .into_iter()
        .map(|(name, folder)| PoolFolder { name, folder })
        .collect())
}

/// Everything decided.
#[derive(Debug)]
pub struct Settings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// Who may ask for what.
    pub policy: Policy,
    /// How connections are secured.
    pub tls: Option<TlsFiles>,
    /// The service's part.
    pub service: ServiceConfig,
    /// How long the end may take.
    pub grace: Duration,
    /// Form of the log.
    pub log_format: LogFormat,
    /// What to log.
    pub log: String,
}

impl Settings {
    /// How an address of ours is written as a URL.
    pub fn url(&self, address: SocketAddr) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{address}")
    }
}

/// Where an error is and what was expected there, without the line itself: it may hold the password of a database.
fn told(text: &str, error: &toml::de::Error) -> String {
    let message = without_value(error.message());
    let before = error.span().and_then(|span| text.get(..span.start));
    let Some(before) = before else {
        return format!(": {message}");
    };
    let line = before.matches('\n').count().saturating_add(1);
    let column = before
        .chars()
        .rev()
        .take_while(|c| *c != '\n')
        .count()
        .saturating_add(1);
    format!(", line {line}, column {column}: {message}")
}

impl Options {
    /// The options of a TOML file.
    ///
    /// # Errors
    /// A file that cannot be read, or that has an option we do not know.
    pub fn from_file(path: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        toml::from_str(&text).map_err(|error| format!("{}{}", path.display(), told(&text, &error)))
    }

    /// These options, and those of `below` where they say nothing.
    pub fn over(self, below: Self) -> Self {
        Self {
            data_dir: self.data_dir.or(below.data_dir),
            listen: self.listen.or(below.listen),
            host: if self.host.is_empty() { below.host } else { self.host },
            tls_cert: self.tls_cert.or(below.tls_cert),
            tls_key: self.tls_key.or(below.tls_key),
            client_ca: self.client_ca.or(below.client_ca),
            client_cert_role: self.client_cert_role.or(below.client_cert_role),
            require_token: self.require_token.or(below.require_token),
            open_metrics: self.open_metrics.or(below.open_metrics),
            allow_unauthenticated: self.allow_unauthenticated.or(below.allow_unauthenticated),
            database: self.database.or(below.database),
            pool: if self.pool.is_empty() { below.pool } else { self.pool },
            default_pool: self.default_pool.or(below.default_pool),
            workers: self.workers.or(below.workers),
            threads_per_job: self.threads_per_job.or(below.threads_per_job),
            max_attempts: self.max_attempts.or(below.max_attempts),
            import_from_private: self.import_from_private.or(below.import_from_private),
            lease_seconds: self.lease_seconds.or(below.lease_seconds),
            max_upload_bytes: self.max_upload_bytes.or(below.max_upload_bytes),
            max_virtual_size: self.max_virtual_size.or(below.max_virtual_size),
            master_key_file: self.master_key_file.or(below.master_key_file),
            new_master_key_file: self.new_master_key_file.or(below.new_master_key_file),
            sandbox: self.sandbox.or(below.sandbox),
            webhooks_anywhere: self.webhooks_anywhere.or(below.webhooks_anywhere),
            shutdown_grace_seconds: self.shutdown_grace_seconds.or(below.shutdown_grace_seconds),
            log_format: self.log_format.or(below.log_format),
            log: self.log.or(below.log),
        }
    }

    /// What follows from them.
    ///
    /// # Errors
    /// Options that contradict each other; a master key that cannot be read.
    pub fn decide(self) -> Result<Settings, String> {
        let listen = self
            .listen
            .map_or_else(|| DEFAULT_LISTEN.parse().map_err(|_| "no address".to_owned()), Ok)?;
        let allow = self.allow_unauthenticated == Some(true);
        if allow && self.require_token == Some(true) {
            return Err("--allow-unauthenticated and --require-token contradict each other".to_owned());
        }
        let authentication = if !allow && (self.require_token == Some(true) || !listen.ip().is_loopback()) {
            Authentication::Required
        } else {
            Authentication::Open
        };
        let tls = self.tls()?;
        Ok(Settings {
            listen,
            tls,
            policy: Policy {
                hosts: Hosts::of(listen, authentication, self.host.clone()),
                authentication,
                certificate_role: self.client_cert_role,
                open_metrics: self.open_metrics == Some(true),
            },
            grace: Duration::from_secs(self.shutdown_grace_seconds.unwrap_or(20)),
            log_format: self.log_format.unwrap_or_default(),
            log: self.log.clone().unwrap_or_else(|| DEFAULT_LOG.to_owned()),
            service: self.service()?,
        })
    }

    fn tls(&self) -> Result<Option<TlsFiles>, String> {
        if self.client_cert_role.is_some() && self.client_ca.is_none() {
            return Err("--client-cert-role needs --client-ca: nothing else says whose certificates count".to_owned());
        }
        match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => Ok(Some(TlsFiles {
                certificate: certificate.clone(),
                key: key.clone(),
                client_ca: self.client_ca.clone(),
            })),
            (None, None) if self.client_ca.is_some() => Err("--client-ca needs --tls-cert and --tls-key".to_owned()),
            (None, None) => Ok(None),
            _ => Err("--tls-cert and --tls-key go together".to_owned()),
        }
    }

    fn service(self) -> Result<ServiceConfig, String> {
        let mut config = ServiceConfig::new(self.data_dir.unwrap_or_else(|| DEFAULT_DATA_DIR.into()));
        config.database_url = self.database;
        for PoolFolder { name, folder } in self.pool {
            if config.pools.insert(name.clone(), folder).is_some() {
                return Err(format!("pool '{name}' is given two folders"));
            }
        }
        let only = config.pools.keys().next().filter(|_| config.pools.len() == 1).cloned();
        config.default_pool = self.default_pool.or(only).unwrap_or(config.default_pool);
        config.workers = self.workers.unwrap_or(config.workers);
        config.threads_per_job = self.threads_per_job.unwrap_or(config.threads_per_job);
        config.max_attempts = self.max_attempts.unwrap_or(config.max_attempts);
        config.import_from_private = self.import_from_private.unwrap_or(config.import_from_private);
        if let Some(seconds) = self.lease_seconds {
            config.lease = Duration::from_secs(seconds.max(1));
            config.heartbeat = config.lease / 3;
        }
        config.limits.upload_bytes = self.max_upload_bytes.unwrap_or(config.limits.upload_bytes);
        config.limits.virtual_size = self.max_virtual_size.unwrap_or(config.limits.virtual_size);
        // The link stays good when the file behind the running program is replaced.
        config.inspector = (self.sandbox != Some(false)).then(|| "/proc/self/exe".into());
        config.webhooks_anywhere = self.webhooks_anywhere == Some(true);
        let env = |name: &str| std::env::var_os(name);
        config.master_key = keys::find(&keys::CURRENT, self.master_key_file.as_deref(), &env)?;
        config.new_master_key = keys::find(&keys::NEW, self.new_master_key_file.as_deref(), &env)?;
        Ok(config)
    }
}

mod keys;
#[cfg(test)]
mod tests;
