//! Storages by name or by options: files, block devices, images below images, NBD exports, files on web servers,
//! blkdebug.

use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use vdisk_engine::storage::{FileOptions, FileStorage, LockMode};
use vdisk_engine::{Error, ErrorKind, StorageRef, formats};

use super::image_storage::ImageStorage;
use super::null::NullStorage;
use super::shown::Shown;
use super::{Access, Keys, Opener, blkdebug, http, name, nbd, vvfat};
use crate::app::{self, Failure};

/// A storage and the name it is shown under.
pub struct OpenStorage {
    /// The bytes.
    pub storage: StorageRef,
    /// How it was opened.
    pub shown: Shown,
    /// The protocol driver, or the format where an image serves as storage.
    pub driver: String,
}

const FILE_DRIVERS: &[&str] = &["file", "host_device", "host_cdrom"];

/// Whether this is the name of a protocol that [`open`] knows.
pub fn is_protocol(driver: &str) -> bool {
    FILE_DRIVERS.contains(&driver)
        || matches!(
            driver,
            "blkdebug" | "http" | "https" | "nbd" | "null-co" | "null-aio" | "vvfat"
        )
}

/// Opens a storage by its name.
pub fn open_name(opener: &Opener, text: &str, access: &Access) -> Result<OpenStorage, Failure> {
    let mut keys = Keys::default();
    keys.add("filename", text);
    open(opener, keys, access)
}

/// Opens a file or a device by its path, in which nothing stands for a protocol or for options.
pub fn open_path(path: &str, access: &Access) -> Result<OpenStorage, Failure> {
    let mut keys = Keys::default();
    keys.add("filename", path);
    open_file(driver_of_path(path), keys, access)
}

/// Opens a storage by its options: `driver`, or a `filename` that tells it.
pub fn open(opener: &Opener, mut keys: Keys, access: &Access) -> Result<OpenStorage, Failure> {
    let access = &access.deeper()?.refined(&mut keys)?;
    if let Some(name) = keys.take_value("filename").filter(|n| n.is_string()) {
        let text = super::keys::text(&name);
        if let Some(more) = super::json::parse(&text)? {
            keys.add_all(more);
            return open(opener, keys, access);
        }
        keys.add("filename", name);
        if !keys.has("driver") {
            driver_from_name(&mut keys, &text)?;
        }
    }
    let Some(driver) = keys.take("driver") else {
        return Err(Failure::new("Must specify either driver or file"));
    };
    match driver.as_str() {
        d if FILE_DRIVERS.contains(&d) => open_file(&driver, keys, access),
        "blkdebug" => blkdebug::open(opener, keys, access),
        "null-co" | "null-aio" => open_null(&driver, keys),
        "nbd" => nbd::open(opener, keys, access),
        "vvfat" => vvfat::open(keys, access),
        "http" | "https" => http::open(opener, &driver, keys, access),
        d if formats::by_name(d).is_ok() => open_image(opener, &driver, keys, access),
        _ => Err(Failure::new(format!("Unknown driver '{driver}'"))),
    }
}

/// Sets `driver` (and what else the name says) from a file name or URL.
fn driver_from_name(keys: &mut Keys, text: &str) -> Result<(), Failure> {
    let Some(protocol) = name::protocol(text) else {
        keys.add("driver", driver_of_path(text));
        return Ok(());
    };
    match protocol {
        driver if FILE_DRIVERS.contains(&driver) => {
            let path = name::plain_path(&text[driver.len() + 1..]);
            let _ = keys.take("filename");
            keys.add("filename", path);
            keys.add("driver", driver);
        }
        "blkdebug" | "http" | "https" | "null-co" | "null-aio" => keys.add("driver", protocol),
        "fat" => keys.add("driver", "vvfat"),
        "nbd" | "nbd+tcp" | "nbd+unix" | "nbds" | "nbds+tcp" | "nbds+unix" => keys.add("driver", "nbd"),
        other => return Err(Failure::new(format!("Unknown protocol '{other}'"))),
    }
    Ok(())
}

fn driver_of_path(path: &str) -> &'static str {
    match is_device(path) {
        true => "host_device",
        false => "file",
    }
}

/// Whether there is a block or character device of this name.
pub fn is_device(path: &str) -> bool {
    let found = std::fs::metadata(path).map(|m| m.file_type());
    found.is_ok_and(|kind| kind.is_block_device() || kind.is_char_device())
}

fn open_file(driver: &str, mut keys: Keys, access: &Access) -> Result<OpenStorage, Failure> {
    let Some(path) = keys.take("filename") else {
        return Err(Failure::new(format!(
            "The '{driver}' block driver requires a file name"
        )));
    };
    if let Some(aio) = keys.take("aio").filter(|a| a != "threads") {
        return Err(Failure::new(format!("aio '{aio}' is not supported; only 'threads' is")));
    }
    let locking = keys.take("locking");
    refuse_rest(&keys, driver)?;
    let lock = match locking.as_deref() {
        None | Some("on" | "auto") => access.lock(),
        Some("off") => LockMode::None,
        Some(other) => {
            return Err(Failure::new(format!(
                "Parameter 'locking' does not accept value '{other}'"
            )));
        }
    };
    let options = FileOptions {
        writable: access.writable,
        lock,
        cache: access.cache,
        devices: driver != "file",
    };
    let path = in_bundle(path);
    if options.devices && !is_device(&path) && Path::new(&path).exists() {
        return Err(Failure::new(format!(
            "'{driver}' driver requires '{path}' to be either a character or block device"
        )));
    }
    let storage = FileStorage::open(Path::new(&path), options).map_err(|e| cannot_open(&path, &e))?;
    let shown = Shown::plain(driver, &path);
    Ok(OpenStorage {
        storage: Arc::new(storage),
        shown,
        driver: driver.to_owned(),
    })
}

/// A folder that is a Parallels bundle is opened by its descriptor.
fn in_bundle(path: String) -> String {
    let descriptor = Path::new(&path).join("DiskDescriptor.xml");
    match descriptor.to_str() {
        Some(name) if Path::new(&path).is_dir() && descriptor.is_file() => name.to_owned(),
        _ => path,
    }
}

/// Why a file does not open, as QEMU says it.
pub fn cannot_open(path: &str, error: &Error) -> Failure {
    match (error.kind(), error.io_error()) {
        (ErrorKind::Io, Some(io)) if io.kind() == std::io::ErrorKind::IsADirectory => not_a_file(path),
        (ErrorKind::Io, Some(io)) => Failure::new(format!("Could not open '{path}': {}", app::system_error(io))),
        (ErrorKind::Denied, _) => not_a_file(path),
        _ => Failure::new(app::sentence(error)),
    }
}

fn not_a_file(path: &str) -> Failure {
    Failure::new(format!("'file' driver requires '{path}' to be a regular file"))
}

/// A disk of nothing.
fn open_null(driver: &str, mut keys: Keys) -> Result<OpenStorage, Failure> {
    let len = match keys.take("size") {
        None => 1 << 30,
        Some(text) => crate::text::size::size("size", &text)?,
    };
    let zero = keys.take_flag("read-zeroes")?.unwrap_or(false);
    if keys.take("latency-ns").is_some_and(|l| l != "0") {
        return Err(Failure::new("latency-ns is not supported"));
    }
    keys.take("filename");
    refuse_rest(&keys, driver)?;
    Ok(OpenStorage {
        storage: Arc::new(NullStorage::new(len, zero)),
        shown: Shown::plain(driver, &format!("{driver}://")),
        driver: driver.to_owned(),
    })
}

fn open_image(opener: &Opener, driver: &str, mut keys: Keys, access: &Access) -> Result<OpenStorage, Failure> {
    keys.add("driver", driver);
    let resolved = opener.resolve_keys(keys, access)?;
    let shown = resolved.shown.clone();
    opener.count_inner(&shown.name())?;
    let chain = opener.open_chain(resolved, access)?;
    let storage = ImageStorage::new(chain, shown.name(), !access.writable);
    Ok(OpenStorage {
        storage: Arc::new(storage),
        shown,
        driver: driver.to_owned(),
    })
}

/// Refuses options that nobody understood.
pub fn refuse_rest(keys: &Keys, driver: &str) -> Result<(), Failure> {
    match keys.iter().next() {
        None => Ok(()),
        Some(("filename", Value::Null)) => Ok(()),
        Some((key, _)) => Err(Failure::new(format!(
            "Block protocol '{driver}' doesn't support the option '{key}'"
        ))),
    }
}
