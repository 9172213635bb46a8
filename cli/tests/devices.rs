//! Block devices as sources and targets. They need loop devices: where there are none, or no right to make them, all of this is skipped,
//! also under `VDISK_REQUIRE`, because no package brings them.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{ok, vdisk};
use e2e::tools::{arg, find, have};

const MIB: usize = 1 << 20;

/// A loop device over a file full of old bytes.
struct Device {
    name: String,
    file: PathBuf,
}

impl Device {
    fn new(folder: &Path, mib: usize) -> Option<Self> {
        let file = folder.join("behind");
        fs::write(&file, vec![0xa5; mib * MIB]).unwrap();
        let out = Command::new(find("losetup")?)
            .args(["--find", "--show", arg(&file)])
            .output()
            .unwrap();
        let name = String::from_utf8(out.stdout).unwrap().trim().to_owned();
        if !out.status.success() || !Path::new(&name).exists() {
            eprintln!("skipped: no loop device: {}", String::from_utf8_lossy(&out.stderr));
            return None;
        }
        Some(Self { name, file })
    }
    /// What is on the device now.
    fn bytes(&self) -> Vec<u8> {
        fs::read(&self.name).unwrap()
    }
    fn soil(&self) {
        let old = vec![0xa5; fs::metadata(&self.file).unwrap().len() as usize];
        fs::write(&self.name, old).unwrap();
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = Command::new(find("losetup").unwrap())
            .args(["--detach", &self.name])
            .status();
    }
}

/// Seven MiB with data, holes and an end inside a block.
fn disk(folder: &Path) -> Vec<u8> {
    let mut bytes = vec![0; 7 * MIB];
    bytes[100..3 * MIB].fill(1);
    bytes[5 * MIB..5 * MIB + 4096].fill(2);
    bytes[7 * MIB - 700..].fill(3);
    fs::write(folder.join("disk"), &bytes).unwrap();
    bytes
}

#[test]
fn images_on_a_device_equal_their_source_whatever_it_held() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let bytes = disk(path);
    let Some(device) = Device::new(path, 12) else { return };
    for format in ["raw", "qcow2", "vdi", "vdi -o static=on"] {
        device.soil();
        let words: Vec<_> = format.split(' ').collect();
        ok(
            path,
            &[
                &["convert", "-f", "raw", "-O"],
                words.as_slice(),
                &["disk", &device.name],
            ]
            .concat(),
        );
        ok(path, &["convert", "-f", words[0], "-O", "raw", &device.name, "back"]);
        assert!(fs::read(path.join("back")).unwrap()[..bytes.len()] == bytes, "{format}");
        // Of a raw image the device is the disk, which is larger.
        if words[0] != "raw" && have(&["qemu-img"]) {
            e2e::tools::ok(
                "qemu-img",
                &[
                    "compare",
                    "-f",
                    "raw",
                    "-F",
                    words[0],
                    arg(&path.join("disk")),
                    &device.name,
                ],
            );
        }
    }
    device.soil();
    ok(path, &["convert", "-n", "-f", "raw", "-O", "raw", "disk", &device.name]);
    assert!(device.bytes()[..bytes.len()] == bytes);
    assert!(
        device.bytes()[bytes.len()..].iter().all(|b| *b == 0xa5),
        "past the source nothing is written"
    );
}

#[test]
fn a_device_keeps_its_size() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    disk(path);
    let Some(device) = Device::new(path, 6) else { return };
    let grows = ["vhdx", "vpc", "vmdk", "qed", "qcow", "parallels", "cow", "bochs"];
    let grows = grows.map(|format| ["create", "-q", "-f", format, &device.name, "1M"]);
    let grows: Vec<&[&str]> = grows.iter().map(|args| args.as_slice()).collect();
    let raw = [
        &["convert", "-f", "raw", "-O", "raw", "disk", &device.name][..],
        &["resize", "-f", "raw", &device.name, "12M"],
        &["create", "-q", "-f", "raw", &device.name, "7M"],
    ];
    for args in raw.into_iter().chain(grows) {
        let out = vdisk(path, args);
        assert_eq!(out.status.code(), Some(1), "{args:?}");
        assert!(device.bytes().iter().all(|b| *b == 0xa5), "{args:?} changed the device");
    }
    let info = ok(path, &["info", "-f", "raw", &device.name]);
    assert!(info.contains("6 MiB (6291456 bytes)"), "{info}");
}

#[test]
fn the_magic_of_an_older_image_goes_when_a_raw_one_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let Some(device) = Device::new(path, 6) else { return };
    ok(path, &["create", "-q", "-f", "qcow2", &device.name, "4M"]);
    assert!(ok(path, &["info", &device.name]).contains("qcow2"));
    ok(path, &["create", "-q", "-f", "raw", &device.name, "6M"]);
    assert!(ok(path, &["info", &device.name]).contains("file format: raw"));
}

#[test]
fn a_device_is_told_from_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let Some(device) = Device::new(path, 20) else { return };
    let name = &device.name;
    ok(
        path,
        &["create", "-q", "-f", "qcow2", &format!("host_device:{name}"), "1M"],
    );
    for told in [name.clone(), format!("host_device:{name}")] {
        let facts = ok(path, &["info", &told]);
        assert!(
            facts.starts_with(&format!("image: {name}\nfile format: qcow2\n")),
            "{facts}"
        );
        assert!(facts.contains("protocol type: host_device\n"), "{facts}");
    }
    let out = vdisk(path, &["info", &format!("file:{name}")]);
    assert_eq!(out.status.code(), Some(1), "{out:?}");
    for format in ["qed", "qcow", "parallels", "vhdx"] {
        let out = vdisk(path, &["create", "-q", "-f", format, name, "1M"]);
        let message = String::from_utf8_lossy(&out.stderr);
        assert!(
            message.contains("is made in a file, which grows"),
            "{format}: {message}"
        );
    }
}
