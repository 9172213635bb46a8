//! Parallels bundles: a folder with a descriptor, files that qemu-img wrote, and snapshots.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

mod common;

use std::fs;
use std::path::Path;

use common::{ok, vdisk};
use e2e::tools::{arg, have};

const MIB: usize = 1 << 20;
const TOP: &str = "{5fbaabe3-6958-40ff-92a7-860e329aab41}";
const BASE: &str = "{11111111-2222-3333-4444-555555555555}";
const NIL: &str = "{00000000-0000-0000-0000-000000000000}";

/// A disk of so many MiB with a byte in each of some of them.
fn disk(mib: usize, filled: &[(usize, u8)]) -> Vec<u8> {
    let mut bytes = vec![0; mib * MIB];
    for (at, byte) in filled {
        bytes[at * MIB..(at + 1) * MIB].fill(*byte);
    }
    bytes
}

/// An expandable image in the bundle, as qemu-img makes it.
fn expandable(bundle: &Path, name: &str, bytes: &[u8]) {
    let raw = bundle.parent().unwrap().join("raw");
    fs::write(&raw, bytes).unwrap();
    let to = bundle.join(name);
    e2e::tools::ok(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "parallels", arg(&raw), arg(&to)],
    );
}

fn image(guid: &str, kind: &str, name: &str) -> String {
    format!("<Image><GUID>{guid}</GUID><Type>{kind}</Type><File>{name}</File></Image>")
}

fn storage(start: usize, end: usize, images: &[String]) -> String {
    let (start, end) = (start * MIB / 512, end * MIB / 512);
    let images = images.concat();
    format!("<Storage><Start>{start}</Start><End>{end}</End><Blocksize>2048</Blocksize>{images}</Storage>")
}

fn shot(guid: &str, parent: &str) -> String {
    format!("<Shot><GUID>{guid}</GUID><ParentGUID>{parent}</ParentGUID></Shot>")
}

fn descriptor(bundle: &Path, mib: usize, storages: &[String], shots: &[String]) {
    let (size, storages, shots) = (mib * MIB / 512, storages.concat(), shots.concat());
    let text = format!(
        "<?xml version='1.0' encoding='UTF-8'?>\n<Parallels_disk_image Version=\"1.0\">\n<Disk_Parameters><Disk_size>{size}</Disk_size>\
         <LogicSectorSize>512</LogicSectorSize></Disk_Parameters><StorageData>{storages}</StorageData><Snapshots>{shots}</Snapshots>\
         </Parallels_disk_image>\n"
    );
    fs::write(bundle.join("DiskDescriptor.xml"), text).unwrap();
}

/// Three MiB in two parts: an expandable file over a plain one, then two expandable ones over each other.
fn make(folder: &Path) -> Vec<u8> {
    let bundle = folder.join("disk.hdd");
    fs::create_dir(&bundle).unwrap();
    fs::write(bundle.join("base0.hds"), disk(3, &[(0, 1), (1, 2)])).unwrap();
    expandable(&bundle, "top0.hds", &disk(3, &[(1, 3)]));
    expandable(&bundle, "base1.hds", &disk(3, &[(0, 4), (2, 5)]));
    expandable(&bundle, "top1.hds", &disk(3, &[(2, 6)]));
    let storages = [
        storage(
            3,
            6,
            &[
                image(BASE, "Compressed", "base1.hds"),
                image(TOP, "Compressed", "top1.hds"),
            ],
        ),
        storage(
            0,
            3,
            &[
                image(TOP, "Compressed", "/elsewhere/top0.hds"),
                image(BASE, "Plain", "base0.hds"),
            ],
        ),
    ];
    descriptor(&bundle, 6, &storages, &[shot(TOP, BASE), shot(BASE, NIL)]);
    disk(6, &[(0, 1), (1, 3), (3, 4), (5, 6)])
}

#[test]
fn the_current_state_shows_through_the_folder_and_its_descriptor() {
    if !have(&["qemu-img"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("expected"), make(path)).unwrap();
    for name in ["disk.hdd", "disk.hdd/", "disk.hdd/DiskDescriptor.xml"] {
        for format in [&[][..], &["-f", "parallels"]] {
            ok(path, &[&["convert"], format, &["-O", "raw", name, "out"]].concat());
            assert!(
                fs::read(path.join("out")).unwrap() == fs::read(path.join("expected")).unwrap(),
                "{name}"
            );
        }
    }
    ok(path, &["check", "disk.hdd"]);
    let info = ok(path, &["info", "--output=json", "disk.hdd"]);
    assert!(
        info.contains("\"virtual-size\": 6291456") && info.contains("base1.hds"),
        "{info}"
    );
    let map = ok(path, &["map", "disk.hdd"]);
    assert!(
        map.contains("disk.hdd/base0.hds") && map.contains("disk.hdd/top1.hds"),
        "{map}"
    );
}

#[test]
fn a_bundle_is_not_written_to() {
    if !have(&["qemu-img"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    make(path);
    for args in [
        &["resize", "-f", "parallels", "disk.hdd", "12M"][..],
        &["check", "-r", "all", "disk.hdd"],
        &["create", "-q", "-f", "parallels", "disk.hdd", "1M"],
    ] {
        let out = vdisk(path, args);
        assert_eq!(out.status.code(), Some(1), "{args:?}");
    }
}

#[test]
fn what_a_bundle_lacks_is_named() {
    if !have(&["qemu-img"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    make(path);
    let bundle = path.join("disk.hdd");
    let fails = |word: &str| {
        let out = vdisk(path, &["convert", "-O", "raw", "disk.hdd", "out"]);
        let error = String::from_utf8(out.stderr).unwrap();
        assert!(out.status.code() == Some(1) && error.contains(word), "{word}: {error}");
    };
    let plain = fs::File::options().write(true).open(bundle.join("base0.hds")).unwrap();
    plain.set_len(3 * MIB as u64 - 1).unwrap();
    fails("base0.hds");
    plain.set_len(3 * MIB as u64).unwrap();
    fs::rename(bundle.join("base1.hds"), bundle.join("gone")).unwrap();
    fails("base1.hds");
}
