//! Reading a folder of the host: beneath one open folder, without following links.

use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};

use crate::{Error, Result};

/// Folders inside each other at most.
const MAX_DEPTH: usize = 64;

/// A file or folder.
#[derive(Debug)]
pub(super) struct Entry {
    pub name: String,
    /// Path from the root folder.
    pub path: String,
    pub mtime: i64,
    pub kind: Kind,
}

/// What an entry is.
#[derive(Debug)]
pub(super) enum Kind {
    File { size: u32 },
    Folder(Vec<Entry>),
}

/// Opens something beneath a folder: every part of the path by its own, never through a link, never blocking.
pub(super) fn open_beneath(root: &OwnedFd, path: &str, last: OFlags) -> Result<OwnedFd> {
    let failed = |e| Error::io(format!("cannot open \"{}\" of the folder", path.escape_debug()), e);
    let mut at: Option<OwnedFd> = None;
    let mut parts = path.split('/').filter(|p| !p.is_empty()).peekable();
    while let Some(part) = parts.next() {
        let flags = if parts.peek().is_some() {
            OFlags::DIRECTORY
        } else {
            last
        };
        let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        at = Some(openat(at.as_ref().unwrap_or(root), part, flags, Mode::empty()).map_err(failed)?);
    }
    match at {
        Some(file) => Ok(file),
        None => openat(root, ".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(failed),
    }
}

/// Everything in a folder that FAT can show, sorted by name. `left` counts down.
///
/// # Errors
/// `LimitExceeded` for too many or too deep entries, `Unsupported` for a file of 4 GiB and more or a name that is not UTF-8.
pub(super) fn read(root: &OwnedFd, path: &str, depth: usize, left: &mut usize) -> Result<Vec<Entry>> {
    if depth > MAX_DEPTH {
        return Err(Error::limit(format!("folders are nested deeper than {MAX_DEPTH}")));
    }
    let folder = open_beneath(root, path, OFlags::DIRECTORY)?;
    let failed = |e| Error::io(format!("cannot read \"{}\" of the folder", path.escape_debug()), e);
    let mut entries = Vec::new();
    for found in Dir::read_from(&folder).map_err(failed)? {
        let found = found.map_err(failed)?;
        let name = match found.file_name().to_str() {
            Ok("." | "..") => continue,
            Ok(name) => name.to_owned(),
            Err(_) => {
                let name = found.file_name().to_bytes().escape_ascii();
                return Err(Error::unsupported(format!("the name \"{name}\" is not UTF-8")));
            }
        };
        let Some(next) = left.checked_sub(1) else {
            return Err(Error::limit("the folder has too many entries"));
        };
        *left = next;
        let stat = statat(&folder, name.as_str(), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        let below = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}/{name}")
        };
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Folder(read(root, &below, depth + 1, left)?),
            FileType::RegularFile => Kind::File {
                size: u32::try_from(stat.st_size).map_err(|_| {
                    Error::unsupported(format!("\"{}\" is too large for FAT (4 GiB)", below.escape_debug()))
                })?,
            },
            _ => continue,
        };
        entries.push(Entry {
            name,
            path: below,
            mtime: stat.st_mtime,
            kind,
        });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// Opens a file of the tree, if it still is one.
pub(super) fn open_file(root: &OwnedFd, path: &str) -> Result<File> {
    let file = File::from(open_beneath(root, path, OFlags::empty())?);
    let is_file = file.metadata().is_ok_and(|m| m.is_file());
    if is_file {
        return Ok(file);
    }
    Err(Error::corrupt(format!(
        "\"{}\" is no file any more",
        path.escape_debug()
    )))
}
