//! What verbs that make images share: creating the file, opening it, snapshots and bitmaps of the source.

use std::os::unix::fs::MetadataExt as _;
use std::time::{SystemTime, UNIX_EPOCH};

use vdisk_engine::env::{CreateSpec, Secrets as _};
use vdisk_engine::image::{BitmapInfo, Bitmaps};
use vdisk_engine::options::Options;
use vdisk_engine::storage::{CacheMode, FileId};
use vdisk_engine::{Chain, CreateEnv, Image, StorageRef};

use crate::app::{self, Failure};
use crate::spec::gate::{CliGate, Trail};
use crate::spec::new_file::{Hints, create_file};
use crate::spec::{Access, Made, Opener, name, protocol};

/// Makes a new image in a file; a file that is there loses what it held, one that another program uses is refused.
///
/// Gives the files that did not exist before: they are gone when this fails, or when they are not kept. `inputs` are files that are read for
/// it and must not be emptied.
pub fn create(
    opener: &Opener,
    path: &str,
    format: &str,
    spec: &CreateSpec,
    hints: Hints,
    inputs: Vec<FileId>,
) -> Result<Made, Failure> {
    let mut made = Made::from_inputs(inputs);
    if is_remote(path) {
        let there = protocol::open_name(opener, path, &Access::write())?;
        made.refuse_input(there.storage.as_ref())?;
        return fill(opener, there.storage, format, spec, made);
    }
    let plain = local_path(path)?;
    refuse_binary_passphrase(opener, &spec.options)?;
    let storage = create_file(plain, &mut made, hints).map_err(|e| cannot_create(path, &e))?;
    fill(opener, storage, format, spec, made)
}

/// The files of an image and of all that lies below it.
pub fn files_of(chain: &Chain) -> Vec<FileId> {
    let storages = chain.layers().iter().flat_map(|layer| layer.storages());
    storages.filter_map(|storage| storage.identity()).collect()
}

/// The file of this name, if there is one.
pub fn file_named(name: &str) -> Option<FileId> {
    let found = std::fs::metadata(local_path(name).ok()?).ok()?;
    Some(FileId {
        device: found.dev(),
        inode: found.ino(),
    })
}

/// Makes the image in what was opened or created for it.
fn fill(opener: &Opener, storage: StorageRef, format: &str, spec: &CreateSpec, made: Made) -> Result<Made, Failure> {
    let trail = Trail::of_new(made);
    let gate = CliGate {
        opener,
        access: Access::write(),
        trail: &trail,
        beside: None,
    };
    let env = CreateEnv {
        gate: &gate,
        limits: &opener.limits,
        secrets: &opener.secrets,
        random: &random,
        now: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs(),
    };
    vdisk_engine::ops::create::create(storage, format, spec, &env)?;
    Ok(trail.into_made())
}

/// Whether the name is of something that is there already, with a size of its own, and that images are made in.
fn is_remote(name: &str) -> bool {
    name::protocol(name).is_some_and(|p| p.starts_with("nbd"))
}

/// QEMU takes passphrases as UTF-8 text alone: an image with another one could not be opened by it.
fn refuse_binary_passphrase(opener: &Opener, options: &Options) -> Result<(), Failure> {
    let id = options.get("key-secret").or(options.get("encrypt.key-secret"));
    match id.map(|id| (id, opener.secrets.get(id))) {
        Some((id, Ok(secret))) if std::str::from_utf8(&secret).is_err() => {
            Err(Failure::new(format!("Data from secret {id} is not valid UTF-8")))
        }
        _ => Ok(()),
    }
}

/// The path of a new file; only local files are created, and images in what a server exports.
pub fn local_path(name: &str) -> Result<&str, Failure> {
    match name::protocol(name) {
        None => Ok(name),
        Some("file") => Ok(&name["file:".len()..]),
        Some("host_device") if protocol::is_device(&name["host_device:".len()..]) => Ok(&name["host_device:".len()..]),
        Some(other) if other.starts_with("nbd") => Ok(name),
        Some(other) if protocol::is_protocol(other) => Err(Failure::new(format!(
            "Protocol driver '{other}' does not support image creation, and opening the image failed"
        ))),
        Some(other) => Err(Failure::new(format!("Unknown protocol '{other}'"))),
    }
}

fn cannot_create(path: &str, error: &vdisk_engine::Error) -> Failure {
    match error.io_error() {
        Some(io) => Failure::new(format!("Could not create '{path}': {}", app::system_error(io))),
        None if error.kind() == vdisk_engine::ErrorKind::Denied => {
            Failure::new(format!("Could not create '{path}': {}", error.what()))
        }
        None => Failure::new(app::sentence(error)),
    }
}

/// Random bytes from the system.
pub fn random(buf: &mut [u8]) {
    let mut rest = buf;
    while !rest.is_empty() {
        match rustix::rand::getrandom(&mut *rest, rustix::rand::GetRandomFlags::empty()) {
            Ok(n) => rest = &mut rest[n..],
            Err(rustix::io::Errno::INTR) => {}
            // Keys must never be made of anything else.
            Err(error) => {
                app::error(&format!("the system gives no random bytes: {error}"));
                std::process::exit(1);
            }
        }
    }
}

/// The chain as it was when a snapshot was taken, and its top as it is now, which alone has the bitmaps. `selector` is an id, a name, or
/// `snapshot.id=..,snapshot.name=..`.
pub fn snapshot(chain: Chain, selector: &str) -> Result<(Chain, Box<dyn Image>), Failure> {
    let failed = |why: &str| Failure::new(format!("Failed to load snapshot: {why}"));
    let pairs = crate::spec::keyval::parse(selector, Some("name"));
    let dotted = selector.starts_with("snapshot.");
    let unknown = pairs
        .iter()
        .find(|(k, _)| !["snapshot.id", "snapshot.name"].contains(&k.as_str()));
    if let Some((key, _)) = unknown.filter(|_| dotted) {
        app::error(&format!("Invalid parameter '{key}'"));
        return Err(Failure::new(format!("Failed in parsing snapshot param '{selector}'")));
    }
    let wanted = |key: &str| {
        let full = format!("snapshot.{key}");
        pairs.iter().find(|(k, _)| *k == full).map(|(_, v)| v.clone())
    };
    let mut layers = chain.into_layers();
    let top = layers.first().ok_or_else(|| failed("no image"))?;
    let Some(snapshots) = top.snapshots() else {
        return Err(failed(&format!(
            "Block format '{}' used by device '' does not support temporarily loading internal snapshots",
            top.format()
        )));
    };
    let list = snapshots.list()?;
    let found = match dotted {
        true => list
            .iter()
            .find(|s| wanted("id").is_none_or(|id| id == s.id) && wanted("name").is_none_or(|name| name == s.name)),
        false => list
            .iter()
            .find(|s| s.id == selector)
            .or_else(|| list.iter().find(|s| s.name == selector)),
    };
    let id = found.ok_or_else(|| failed("Can't find snapshot"))?.id.clone();
    let image = snapshots.open(&id).map_err(|e| failed(&app::sentence(&e)))?;
    let active = std::mem::replace(&mut layers[0], image);
    Ok((Chain::from_layers(layers)?, active))
}

/// Bytes that the bitmaps take in a qcow2 image: tables and data in whole clusters, and the directory.
pub fn bitmap_space(list: &[BitmapInfo], virtual_size: u64, cluster: u64) -> u64 {
    let mut directory = 0;
    let mut space: u64 = 0;
    for bitmap in list.iter().filter(|b| !b.in_use) {
        let bits = virtual_size.div_ceil(bitmap.granularity.max(1));
        let clusters = bits.div_ceil(8).div_ceil(cluster);
        let table = (clusters * 8).next_multiple_of(cluster);
        space += clusters * cluster + table;
        directory += (24 + bitmap.name.len() as u64).next_multiple_of(8);
    }
    space + directory.next_multiple_of(cluster)
}

/// Copies the bitmaps of one image to another of the same content.
pub fn copy_bitmaps(from: &dyn Bitmaps, to: &dyn Bitmaps, skip_broken: bool) -> Result<(), Failure> {
    for bitmap in from.list()? {
        let name = &bitmap.name;
        if bitmap.in_use {
            if skip_broken {
                app::warning(&format!("Skipping inconsistent bitmap '{name}'"));
                continue;
            }
            return Err(Failure::new(format!("Cannot copy inconsistent bitmap '{name}'")));
        }
        to.add(name, bitmap.granularity, false)
            .map_err(|e| Failure::from(e).context(format!("Failed to create bitmap {name}")))?;
        to.merge(name, from, name)
            .map_err(|e| Failure::from(e).context(format!("Failed to populate bitmap {name}")))?;
        to.set_enabled(name, bitmap.enabled)?;
    }
    Ok(())
}

/// A bitmap says of every part of its own disk whether it changed: it means nothing for a disk of another size.
pub fn refuse_other_size(into: u64, from: u64) -> Result<(), Failure> {
    match into == from {
        true => Ok(()),
        false => Err(Failure::new(format!(
            "Bitmaps are of different sizes (destination size is {into}, source size is {from}) and can't be merged"
        ))),
    }
}

/// The first inconsistent bitmap, which stands in the way of copying all.
pub fn refuse_broken_bitmaps(from: &dyn Bitmaps) -> Result<(), Failure> {
    match from.list()?.iter().find(|b| b.in_use) {
        None => Ok(()),
        Some(bitmap) => {
            app::error(&format!("Cannot copy inconsistent bitmap '{}'", bitmap.name));
            Err(Failure::new(
                "Try --skip-broken-bitmaps, or use 'bitmap --remove' to delete it",
            ))
        }
    }
}

/// How a new image is written: its data can be made again.
pub const NEW_IMAGE: CacheMode = CacheMode::Unsafe;
