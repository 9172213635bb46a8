//! Folders as FAT disks: `fat:[32:][floppy:]FOLDER` and `driver=vvfat`.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use serde_json::Value;
use vdisk_engine::formats::vvfat::{FatType, FolderDisk, FolderOptions};

use super::protocol::{OpenStorage, refuse_rest};
use super::shown::Shown;
use super::{Access, Keys};
use crate::app::{self, Failure};

/// Opens a folder as a disk.
pub fn open(mut keys: Keys, access: &Access) -> Result<OpenStorage, Failure> {
    let plain = keys.take("filename");
    if let Some(name) = &plain {
        keys_of_name(&mut keys, name)?;
    }
    let dir = keys
        .take("dir")
        .ok_or_else(|| Failure::new("vvfat block driver requires a 'dir' option"))?;
    let (options, mut shown) = options(&mut keys)?;
    if keys.take_flag("rw")? == Some(true) || access.writable {
        return Err(Failure::new("vvfat: writing to a folder is not supported"));
    }
    refuse_rest(&keys, "vvfat")?;
    let disk = FolderDisk::new(folder(&dir)?, &dir, &options).map_err(|e| Failure::new(app::sentence(&e)))?;
    shown.push(("dir".to_owned(), dir.into()));
    Ok(OpenStorage {
        storage: Arc::new(disk),
        shown: match plain {
            Some(name) => Shown::url("vvfat", &name, shown),
            None => Shown::options("vvfat", shown),
        },
        driver: "vvfat".to_owned(),
    })
}

/// Takes a name apart into options: the folder is what follows the last colon.
fn keys_of_name(keys: &mut Keys, name: &str) -> Result<(), Failure> {
    let rest = name
        .strip_prefix("fat:")
        .ok_or_else(|| Failure::new("File name string must start with 'fat:'"))?;
    let (words, dir) = match rest.rsplit_once(':') {
        Some((words, dir)) => (words, dir),
        None => ("", rest),
    };
    for word in words.split(':').filter(|w| !w.is_empty()) {
        match word {
            "12" | "16" | "32" => keys.add("fat-type", word),
            "floppy" | "rw" => keys.add(word, "on"),
            other => return Err(Failure::new(format!("'{other}' is no word of a 'fat:' name"))),
        }
    }
    keys.add("dir", dir);
    Ok(())
}

fn options(keys: &mut Keys) -> Result<(FolderOptions, Vec<(String, Value)>), Failure> {
    let mut options = FolderOptions::default();
    let mut shown = Vec::new();
    if let Some(bits) = keys.take("fat-type").filter(|b| b != "0") {
        options.fat_type = Some(match bits.as_str() {
            "12" => FatType::Fat12,
            "16" => FatType::Fat16,
            "32" => FatType::Fat32,
            _ => return Err(Failure::new("Valid FAT types are only 12, 16 and 32")),
        });
        shown.push(("fat-type".to_owned(), bits.into()));
    }
    if keys.take_flag("floppy")? == Some(true) {
        options.floppy = true;
        shown.push(("floppy".to_owned(), true.into()));
    }
    if let Some(label) = keys.take("label") {
        shown.push(("label".to_owned(), label.as_str().into()));
        options.label = label;
    }
    Ok((options, shown))
}

fn folder(path: &str) -> Result<OwnedFd, Failure> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| {
        let io = std::io::Error::from(errno);
        Failure::new(format!("Could not read directory {path}: {}", app::system_error(&io)))
    })
}
