//! `map` of images that we made, holes of the file inside data clusters included, is qemu-img's for every shape.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::ok;

/// A sparse disk: pieces shorter than most clusters, so that clusters come out half empty.
fn sparse(path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len((3 << 20) + 512).unwrap();
    for (n, len) in [512, 4096, 70_000, 512, 9000, 200]
        .into_iter()
        .cycle()
        .take(30)
        .enumerate()
    {
        let offset = (n as u64 * 104_729) & !511;
        file.write_at(&vec![n as u8 + 1; len], offset).unwrap();
    }
}

#[test]
fn every_cluster_size_and_refcount_width_maps_as_in_qemu_img() {
    if !e2e::tools::have(&["qemu-img"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    sparse(&dir.path().join("raw"));
    let image = dir.path().join("image");
    let image = image.to_str().unwrap();
    for bits in 9..=21 {
        for width in [1, 16, 64] {
            let shape = format!("cluster_size={},refcount_bits={width}", 1 << bits);
            ok(
                dir.path(),
                &["convert", "-f", "raw", "-O", "qcow2", "-o", &shape, "raw", image],
            );
            for output in ["human", "json"] {
                let args = ["map", "--output", output, image];
                assert_eq!(ok(dir.path(), &args), e2e::tools::ok("qemu-img", &args), "{shape}");
            }
        }
    }
}

/// Images whose space is set aside beforehand, and their names.
const SET_ASIDE: &[(&str, &str)] = &[
    ("vdi", "static=on"),
    ("vmdk", "subformat=monolithicFlat"),
    ("vmdk", "subformat=twoGbMaxExtentFlat"),
    ("vpc", "subformat=fixed,force_size=on"),
    ("vhdx", "subformat=fixed"),
    ("qcow2", "preallocation=metadata"),
];

#[test]
fn holes_below_space_that_was_set_aside_map_as_in_qemu_img() {
    if !e2e::tools::have(&["qemu-img"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    sparse(&dir.path().join("raw"));
    // qemu-img does not look below fixed VHDX.
    let alike = SET_ASIDE.iter().filter(|(format, _)| *format != "vhdx");
    for (n, (format, options)) in alike.enumerate() {
        let image = dir.path().join(format!("image{n}"));
        let image = image.to_str().unwrap();
        e2e::tools::ok(
            "qemu-img",
            &["create", "-q", "-f", format, "-o", options, image, "3146240"],
        );
        let raw = dir.path().join("raw");
        e2e::tools::ok(
            "qemu-img",
            &["convert", "-n", "-f", "raw", "-O", format, raw.to_str().unwrap(), image],
        );
        for output in ["human", "json"] {
            let args = ["map", "--output", output, "-f", format, image];
            assert_eq!(
                ok(dir.path(), &args),
                e2e::tools::ok("qemu-img", &args),
                "{format} {options}"
            );
        }
        ok(dir.path(), &["convert", "-f", format, "-O", "raw", image, "back"]);
        ok(dir.path(), &["compare", "-f", "raw", "-F", "raw", "raw", "back"]);
    }
}

#[test]
fn what_was_only_set_aside_is_no_data() {
    let dir = tempfile::tempdir().unwrap();
    for (n, (format, options)) in SET_ASIDE.iter().enumerate() {
        let image = format!("image{n}");
        ok(dir.path(), &["create", "-q", "-f", format, "-o", options, &image, "5G"]);
        let map = ok(dir.path(), &["map", "--output=json", "-f", format, &image]);
        let map: Vec<serde_json::Value> = serde_json::from_str(&map).unwrap();
        // The first page may hold the end of the header as well.
        let read = map.iter().filter(|run| run["zero"] == false);
        let read: u64 = read.map(|run| run["length"].as_u64().unwrap()).sum();
        assert!(read <= 4096, "{format} {options}: {read} bytes");
    }
}
