//! `blkdebug`: QEMU's driver for tests. Here it is a layer over an image that fails chosen requests.
//!
//! Supported: `inject-error` rules with the events `none`, `read_aio`, `write_aio` and `flush_to_disk`, an `errno`, a `sector`, `once` and
//! `iotype`; limits (`align` and the like), which tell callers how to cut their requests and make no difference here. Events that are steps
//! inside QEMU's own drivers are refused, and so are configuration files with anything else.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use vdisk_engine::storage::{FileId, StorageExtent};
use vdisk_engine::{Error, Result, Storage, StorageRef};

use super::protocol::{OpenStorage, open as open_protocol, open_name, refuse_rest};
use super::shown::Shown;
use super::{Access, Keys, Opener, keys};
use crate::app::{self, Failure};
use crate::text::size;

/// Limits that only tell callers how to cut their requests.
const LIMITS: &[&str] = &[
    "align",
    "max-transfer",
    "opt-write-zero",
    "max-write-zero",
    "opt-discard",
    "max-discard",
];

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Request {
    Read,
    /// A read of what the guest asked for, not of tables.
    GuestRead,
    Write,
    WriteZeroes,
    Discard,
    Flush,
    BlockStatus,
}

/// One `inject-error`.
#[derive(Debug)]
struct Rule {
    requests: Vec<Request>,
    errno: i32,
    /// First byte of the sector that fails; `None`: all do.
    at: Option<u64>,
    once: bool,
}

/// Opens what lies below: `image` (a name in `blkdebug:CONFIG:NAME`) or `image.*`.
pub fn open(opener: &Opener, mut keys: Keys, access: &Access) -> std::result::Result<OpenStorage, Failure> {
    let (config, image) = match keys.take("filename") {
        Some(name) => split(&name)?,
        None => (keys.take("config").unwrap_or_default(), None),
    };
    if !config.is_empty() {
        keys.add_all(read_config(&config)?);
    }
    let rules = take_rules(&mut keys)?;
    let options = take_limits(&mut keys)?;
    let below = keys.take_below("image");
    let by_name = image.or_else(|| keys.take("x-image"));
    refuse_rest(&keys, "blkdebug")?;
    let inner = match by_name {
        Some(name) => open_name(opener, &name, access)?,
        None => open_protocol(opener, below, access)?,
    };
    let shown = match options.is_empty() && rules.is_empty() {
        true => Shown::plain("blkdebug", &format!("blkdebug:{config}:{}", inner.shown.name())),
        false => Shown::over("blkdebug", options, "image", &inner.shown),
    };
    let storage: StorageRef = match rules.is_empty() {
        true => inner.storage,
        false => Arc::new(Failing {
            inner: inner.storage,
            rules: Mutex::new(rules),
        }),
    };
    Ok(OpenStorage {
        storage,
        shown,
        driver: "blkdebug".to_owned(),
    })
}

/// The image below where there is nothing but limits above it: then it is opened as if it stood alone.
pub fn image_alone(driver: &str, keys: &Keys) -> Option<Keys> {
    let mut keys = keys.clone();
    let mut image = keys.take_below("image");
    let mut rest = keys.iter().map(|(k, _)| k);
    let alone = driver == "blkdebug" && rest.all(|k| LIMITS.contains(&k));
    // A file below is opened as it is; a format below is the image.
    let is_format = image
        .clone()
        .take("driver")
        .is_some_and(|d| !super::protocol::is_protocol(&d));
    (alone && is_format).then(|| std::mem::take(&mut image))
}

fn split(name: &str) -> std::result::Result<(String, Option<String>), Failure> {
    let rest = name.strip_prefix("blkdebug:").unwrap_or(name);
    match rest.split_once(':') {
        Some((config, image)) => Ok((config.to_owned(), Some(image.to_owned()))),
        None => Err(Failure::new("blkdebug requires both config file and image path")),
    }
}

/// Sections of `name = "value"` lines.
fn read_config(path: &str) -> std::result::Result<Keys, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        Failure::new(format!(
            "Could not read blkdebug config file: {}",
            app::system_error(&e)
        ))
    })?;
    let (mut found, mut section, mut count) = (Keys::default(), String::new(), 0);
    for line in text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
    {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            section = format!("{name}.{count}");
            count += 1;
        } else if let Some((name, value)) = line.split_once('=') {
            found.add(&format!("{section}.{}", name.trim()), value.trim().trim_matches('"'));
        }
    }
    Ok(found)
}

fn take_limits(keys: &mut Keys) -> std::result::Result<Vec<(String, Value)>, Failure> {
    let mut options = Vec::new();
    for limit in LIMITS {
        if let Some(value) = keys.take_value(limit) {
            size::size(limit, &keys::text(&value))?;
            options.push(((*limit).to_owned(), value));
        }
    }
    Ok(options)
}

fn take_rules(all: &mut Keys) -> std::result::Result<Vec<Rule>, Failure> {
    let mut given = all.take_below("inject-error");
    let mut numbers: Vec<String> = given
        .iter()
        .filter_map(|(k, _)| k.split('.').next().map(str::to_owned))
        .collect();
    numbers.dedup();
    numbers.iter().map(|n| rule(&mut given.take_below(n))).collect()
}

fn rule(keys: &mut Keys) -> std::result::Result<Rule, Failure> {
    let number = |keys: &mut Keys, name: &str, default: i64| -> std::result::Result<i64, Failure> {
        let text = keys.take(name).unwrap_or_else(|| default.to_string());
        text.parse()
            .map_err(|_| Failure::new(format!("Parameter '{name}' expects a number")))
    };
    let event = keys.take("event").unwrap_or_default();
    let mut requests = match event.as_str() {
        "none" => vec![
            Request::Read,
            Request::GuestRead,
            Request::Write,
            Request::WriteZeroes,
            Request::Discard,
            Request::Flush,
        ],
        "read_aio" => vec![Request::GuestRead],
        "write_aio" => vec![Request::Write, Request::WriteZeroes],
        "flush_to_disk" => vec![Request::Flush],
        other => return Err(Failure::new(format!("blkdebug event '{other}' is not supported"))),
    };
    if let Some(kind) = keys.take("iotype") {
        requests = requests_of(&kind, &event)?;
    }
    let errno = i32::try_from(number(keys, "errno", 5)?).unwrap_or(5);
    let sector = number(keys, "sector", -1)?;
    let once = keys.take_flag("once")?.unwrap_or(false);
    keys.take_flag("immediately")?;
    refuse_rest(keys, "blkdebug")?;
    Ok(Rule {
        requests,
        errno,
        at: u64::try_from(sector).ok().map(|s| s.saturating_mul(512)),
        once,
    })
}

fn requests_of(iotype: &str, event: &str) -> std::result::Result<Vec<Request>, Failure> {
    Ok(match iotype {
        "read" if event == "read_aio" => vec![Request::GuestRead],
        "read" => vec![Request::Read, Request::GuestRead],
        "write" => vec![Request::Write],
        "write-zeroes" => vec![Request::WriteZeroes],
        "discard" => vec![Request::Discard],
        "flush" => vec![Request::Flush],
        "block-status" => vec![Request::BlockStatus],
        other => return Err(Failure::new(format!("blkdebug iotype '{other}' is not supported"))),
    })
}

/// A storage whose requests fail by rules.
struct Failing {
    inner: StorageRef,
    rules: Mutex<Vec<Rule>>,
}

impl fmt::Debug for Failing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failing")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl Failing {
    fn pass(&self, request: Request, offset: u64, len: u64) -> Result<()> {
        let mut rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let hits = |rule: &Rule| {
            rule.requests.contains(&request) && rule.at.is_none_or(|at| at >= offset && at < offset.saturating_add(len))
        };
        let Some(found) = rules.iter().position(hits) else {
            return Ok(());
        };
        let errno = rules[found].errno;
        if rules[found].once {
            rules.remove(found);
        }
        Err(Error::io("injected", io::Error::from_raw_os_error(errno)).at(self.name()))
    }
}

impl Failing {
    /// How much of a range lies before the next sector in which such a request fails.
    fn up_to_next(&self, request: Request, offset: u64, len: u64) -> u64 {
        let rules = self.rules.lock().unwrap_or_else(PoisonError::into_inner);
        let places = rules
            .iter()
            .filter(|r| r.requests.contains(&request))
            .filter_map(|r| r.at);
        let next = places.filter_map(|at| at.checked_sub(offset)).filter(|d| *d > 0).min();
        next.map_or(len, |distance| distance.min(len))
    }
}

impl Storage for Failing {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn len(&self) -> Result<u64> {
        self.inner.len()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.pass(Request::Read, offset, buf.len() as u64)?;
        self.inner.read_at(offset, buf)
    }
    fn read_guest_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.pass(Request::GuestRead, offset, buf.len() as u64)?;
        self.inner.read_guest_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.pass(Request::Write, offset, buf.len() as u64)?;
        self.inner.write_at(offset, buf)
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.pass(Request::WriteZeroes, offset, len)?;
        self.inner.write_zeroes(offset, len, unmap)
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.pass(Request::Discard, offset, len)?;
        self.inner.discard(offset, len)
    }
    fn set_len(&self, len: u64) -> Result<()> {
        self.inner.set_len(len)
    }
    fn flush(&self) -> Result<()> {
        self.pass(Request::Flush, 0, u64::MAX)?;
        self.inner.flush()
    }
    fn extent(&self, offset: u64, len: u64) -> Result<StorageExtent> {
        // A question fails when it begins in the sector; a longer answer ends before it.
        self.pass(Request::BlockStatus, offset, 1)?;
        self.inner
            .extent(offset, self.up_to_next(Request::BlockStatus, offset, len))
    }
    fn allocated(&self) -> Result<u64> {
        self.inner.allocated()
    }
    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        self.inner.allocate(offset, len)
    }
    fn is_read_only(&self) -> bool {
        self.inner.is_read_only()
    }
    fn can_resize(&self) -> bool {
        self.inner.can_resize()
    }
    fn identity(&self) -> Option<FileId> {
        self.inner.identity()
    }
}
