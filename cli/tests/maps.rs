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
