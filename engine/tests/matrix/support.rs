//! Images in files of a folder, and what is in them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vdisk_engine::env::{CreateSpec, Secrets};
use vdisk_engine::formats::vvfat::{FolderDisk, FolderOptions};
use vdisk_engine::gate::{BackingChoice, Gate, Node, Reference};
use vdisk_engine::image::Repair;
use vdisk_engine::ops::compare::compare;
use vdisk_engine::ops::convert::{CopyOptions, convert};
use vdisk_engine::ops::create::create;
use vdisk_engine::options::Options;
use vdisk_engine::storage::{FileOptions, FileStorage};
use vdisk_engine::{Chain, Control, CreateEnv, Limits, OpenEnv, Result, StorageRef};

use crate::variants::Variant;

/// One passphrase.
pub struct Passphrase;

impl Secrets for Passphrase {
    fn get(&self, _id: &str) -> Result<zeroize::Zeroizing<Vec<u8>>> {
        Ok(b"open sesame".to_vec().into())
    }
}

/// Opens and creates what lies beside an image.
pub struct Beside;

impl Beside {
    fn path(reference: &Reference<'_>) -> PathBuf {
        Path::new(reference.from.name()).with_file_name(reference.name)
    }
}

impl Gate for Beside {
    fn open(&self, reference: &Reference<'_>) -> Result<Node> {
        let path = Self::path(reference);
        Ok(Node::new(
            file(&path, reference.writable)?,
            reference.format.unwrap_or("raw"),
        ))
    }
    fn create(&self, reference: &Reference<'_>) -> Result<StorageRef> {
        Ok(Arc::new(FileStorage::create_new(
            &Self::path(reference),
            FileOptions::write(),
        )?))
    }
}

pub fn file(path: &Path, writable: bool) -> Result<StorageRef> {
    let options = if writable {
        FileOptions::write()
    } else {
        FileOptions::read()
    };
    Ok(Arc::new(FileStorage::open(path, options)?))
}

pub fn open(path: &Path, format: &str, writable: bool) -> Result<Chain> {
    if format == "vvfat" {
        return folder(path);
    }
    let options = match format {
        "luks" => Options::new().with("key-secret", "key"),
        _ => Options::new(),
    };
    let mut node = Node::new(file(path, writable)?, format).with_options(options);
    node.backing = BackingChoice::None;
    let limits = Limits::default();
    let env = OpenEnv::closed(&limits).with_gate(&Beside).with_secrets(&Passphrase);
    Chain::open(node, &if writable { env.writable() } else { env })
}

fn folder(path: &Path) -> Result<Chain> {
    let root = std::fs::File::open(path).unwrap();
    let options = FolderOptions {
        floppy: true,
        ..FolderOptions::default()
    };
    let disk: StorageRef = Arc::new(FolderDisk::new(root.into(), "folder", &options)?);
    let limits = Limits::default();
    Chain::open(Node::new(disk, "vvfat"), &OpenEnv::closed(&limits))
}

/// Makes an image by `variant` and fills it from `source`.
pub fn write(variant: &Variant, path: &Path, source: &Chain) -> Result<()> {
    let format = variant.driver.name();
    let random = |buf: &mut [u8]| buf.fill(0x5a);
    let limits = Limits::default();
    let env = CreateEnv {
        gate: &Beside,
        limits: &limits,
        secrets: &Passphrase,
        random: &random,
        now: 1_700_000_000,
    };
    let spec = CreateSpec {
        virtual_size: source.virtual_size(),
        options: variant.options(path.parent().unwrap()),
        backing: None,
    };
    create(
        Arc::new(FileStorage::create_new(path, FileOptions::write())?),
        format,
        &spec,
        &env,
    )?;
    let target = open(path, format, true)?;
    let options = CopyOptions {
        workers: 2,
        compress: variant.compress,
        ..CopyOptions::default()
    };
    convert(source, target.top(), &options, &Control::default())?;
    target.top().close()
}

/// What is wrong with an image that should show what `source` shows.
pub fn fault(source: &Chain, path: &Path, format: &str) -> Option<String> {
    let image = match open(path, format, false) {
        Ok(image) => image,
        Err(error) => return Some(format!("does not open: {error}")),
    };
    match compare(source, &image, false, 1, &Control::default()) {
        Err(failed) => return Some(format!("cannot be compared: {}", failed.error)),
        Ok(found) => {
            if let Some(difference) = found.difference {
                return Some(format!("other content: {difference:?}"));
            }
        }
    }
    if image.virtual_size() < source.virtual_size() {
        return Some(format!("only {} bytes", image.virtual_size()));
    }
    if !vdisk_engine::formats::by_name(format).unwrap().capabilities().check {
        return None;
    }
    match image.top().check(Repair::No, &Control::default()) {
        Ok(r) if (r.corruptions, r.leaks, r.check_errors) == (0, 0, 0) => None,
        Ok(r) => Some(format!("not clean: {:?}", r.messages)),
        Err(error) => Some(format!("cannot be checked: {error}")),
    }
}
