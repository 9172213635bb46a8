//! Internal snapshots of ours and of qemu-img's.

use e2e::tools::{arg, have, ok};
use vdisk_engine::image::NothingBelow;
use vdisk_engine::options::Options;

use crate::support::{Scratch, assert_clean, read_all};

#[test]
fn qemu_applies_and_deletes_our_snapshots() {
    if !have(&["qemu-img"]) {
        return;
    }
    for compat in ["0.10", "1.1"] {
        let scratch = Scratch::new();
        let path = scratch.file("a.qcow2");
        scratch.create(&path, 4 << 20, Options::new().with("compat", compat));
        let image = scratch.open_writable(&path);
        image.write(0, &[1; 300_000], &NothingBelow).unwrap();
        let before = read_all(&*image);
        image.snapshots().unwrap().create("first", (1_700_000_000, 5)).unwrap();
        image.write(100_000, &[2; 1_000_000], &NothingBelow).unwrap();
        image.snapshots().unwrap().create("second", (1_700_000_001, 0)).unwrap();
        let after = read_all(&*image);
        image.close().unwrap();
        drop(image);
        ok("qemu-img", &["check", "-f", "qcow2", arg(&path)]);
        let listed = ok("qemu-img", &["snapshot", "-l", arg(&path)]);
        assert!(listed.contains("first") && listed.contains("second"), "{listed}");
        ok("qemu-img", &["snapshot", "-a", "first", arg(&path)]);
        assert!(read_all(&*scratch.open(&path)) == before);
        ok("qemu-img", &["snapshot", "-d", "first", arg(&path)]);
        let image = scratch.open(&path);
        assert!(read_all(&*image.snapshots().unwrap().open("second").unwrap()) == after);
        assert_clean(&*image);
    }
}

#[test]
fn we_apply_and_delete_qemus_snapshots() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let scratch = Scratch::new();
    let path = scratch.file("a.qcow2");
    let p = arg(&path);
    ok("qemu-img", &["create", "-q", "-f", "qcow2", p, "4M"]);
    ok("qemu-io", &["-f", "qcow2", "-c", "write -P 1 0 300k", p]);
    let before = read_all(&*scratch.open(&path));
    ok("qemu-img", &["snapshot", "-c", "first", p]);
    ok("qemu-img", &["resize", "-f", "qcow2", p, "6M"]);
    ok("qemu-io", &["-f", "qcow2", "-c", "write -P 2 100k 5M", p]);
    ok("qemu-img", &["snapshot", "-c", "second", p]);
    let image = scratch.open_writable(&path);
    let info = image.info().unwrap();
    assert_eq!(info.snapshots.len(), 2);
    assert_eq!(
        (info.snapshots[0].virtual_size, info.snapshots[1].virtual_size),
        (4 << 20, 6 << 20)
    );
    assert!(read_all(&*image.snapshots().unwrap().open("1").unwrap()) == before);
    image.snapshots().unwrap().apply("first").unwrap();
    assert_eq!(image.virtual_size(), 4 << 20);
    assert!(read_all(&*image) == before);
    image.snapshots().unwrap().delete("second").unwrap();
    image.close().unwrap();
    drop(image);
    ok("qemu-img", &["check", "-f", "qcow2", p]);
    ok("qemu-io", &["-f", "qcow2", "-c", "read -P 1 0 300k", p]);
}

#[test]
fn a_missing_snapshot_is_named() {
    let scratch = Scratch::new();
    let path = scratch.file("a.qcow2");
    scratch.create(&path, 1 << 20, Options::new());
    let image = scratch.open_writable(&path);
    let error = image.snapshots().unwrap().apply("no\nsuch").unwrap_err();
    assert!(error.to_string().contains("no\\nsuch"), "{error}");
}
