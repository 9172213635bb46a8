//! vvfat against mtools and fsck.fat.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use e2e::tools::{arg, have, ok, run};
use tempfile::TempDir;
use vdisk_engine::formats::vvfat::{FatType, FolderDisk, FolderOptions};
use vdisk_engine::storage::{MemoryStorage, Storage};
use vdisk_engine::{Chain, ErrorKind, Result};

use crate::support::*;

fn show(folder: &Path, fat_type: Option<FatType>, floppy: bool) -> Result<Arc<FolderDisk>> {
    let options = FolderOptions {
        fat_type,
        floppy,
        ..FolderOptions::default()
    };
    let root = fs::File::open(folder).unwrap().into();
    FolderDisk::new(root, "folder", &options).map(Arc::new)
}

fn fill(folder: &Path) {
    fs::create_dir_all(folder.join("sub folder/deeper")).unwrap();
    fs::write(folder.join("README.TXT"), b"short\n").unwrap();
    fs::write(folder.join("a rather long name with größe.tar.gz"), pattern(100_000)).unwrap();
    fs::write(folder.join("empty"), b"").unwrap();
    fs::write(folder.join("sub folder/deeper/file one.bin"), pattern(70_001)).unwrap();
    for n in 0..40 {
        fs::write(folder.join(format!("sub folder/another file number {n}.dat")), [n; 700]).unwrap();
    }
    std::os::unix::fs::symlink("/etc/passwd", folder.join("link")).unwrap();
}

#[test]
fn mtools_and_fsck_find_every_file_on_every_type_of_disk() {
    if !have(&["mcopy", "fsck.fat"]) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let folder = dir.path().join("in");
    fs::create_dir(&folder).unwrap();
    fill(&folder);
    for (name, fat_type, floppy) in [
        ("default", None, false),
        ("12", Some(FatType::Fat12), false),
        ("16", Some(FatType::Fat16), false),
        ("32", Some(FatType::Fat32), false),
        ("floppy", None, true),
        ("floppy16", Some(FatType::Fat16), true),
    ] {
        let image = open_ro(show(&folder, fat_type, floppy).unwrap(), "vvfat").unwrap();
        let chain = Chain::from_layers(vec![image]).unwrap();
        let volume = dir.path().join(format!("{name}.img"));
        write_volume(&chain, &volume, if floppy { 0 } else { 63 * 512 });
        let out = run("fsck.fat", &["-n", arg(&volume)]);
        assert!(out.status.success(), "{name}: {}", String::from_utf8_lossy(&out.stdout));
        let copy = dir.path().join(name);
        fs::create_dir(&copy).unwrap();
        ok("mcopy", &["-s", "-Q", "-i", arg(&volume), "::*", arg(&copy)]);
        fs::remove_file(folder.join("link")).unwrap();
        ok("diff", &["-r", arg(&folder), arg(&copy)]);
        std::os::unix::fs::symlink("/etc/passwd", folder.join("link")).unwrap();
    }
}

/// Writes the data of a disk from `start` on into a sparse file.
fn write_volume(chain: &Chain, path: &Path, start: u64) {
    use std::os::unix::fs::FileExt;
    let file = fs::File::create(path).unwrap();
    file.set_len(chain.virtual_size() - start).unwrap();
    let mut offset = start;
    while offset < chain.virtual_size() {
        let extent = chain.extent(offset, chain.virtual_size() - offset).unwrap();
        if !extent.is_zero() {
            let mut bytes = vec![0; extent.len as usize];
            chain.read(offset, &mut bytes).unwrap();
            file.write_all_at(&bytes, offset - start).unwrap();
        }
        offset += extent.len;
    }
}

#[test]
fn a_folder_that_does_not_fit_is_refused_or_becomes_fat32() {
    let dir = TempDir::new().unwrap();
    let big = fs::File::create(dir.path().join("big")).unwrap();
    big.set_len(600 << 20).unwrap();
    assert_eq!(
        show(dir.path(), None, true).unwrap_err().kind(),
        ErrorKind::LimitExceeded
    );
    assert_eq!(
        show(dir.path(), Some(FatType::Fat16), false).unwrap_err().kind(),
        ErrorKind::LimitExceeded
    );
    assert!(show(dir.path(), None, false).unwrap().len().unwrap() > 600 << 20);
    big.set_len(4 << 30).unwrap();
    assert_eq!(
        show(dir.path(), None, false).unwrap_err().kind(),
        ErrorKind::Unsupported
    );
}

#[test]
fn a_file_that_became_a_link_is_not_followed() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("a"), [1; 5000]).unwrap();
    let disk = show(dir.path(), None, true).unwrap();
    fs::remove_file(dir.path().join("a")).unwrap();
    std::os::unix::fs::symlink("/proc/self/maps", dir.path().join("a")).unwrap();
    let mut all = vec![0; disk.len().unwrap() as usize];
    assert!(disk.read_at(0, &mut all).is_err());
}

#[test]
fn other_storages_are_not_this_format() {
    let storage = Arc::new(MemoryStorage::new("m", vec![0; 4096]));
    assert_eq!(
        open_ro(storage, "vvfat").err().unwrap().kind(),
        ErrorKind::NotThisFormat
    );
    let dir = TempDir::new().unwrap();
    let disk = show(dir.path(), None, true).unwrap();
    assert_eq!(open_rw(disk, "vvfat").err().unwrap().kind(), ErrorKind::Unsupported);
}
