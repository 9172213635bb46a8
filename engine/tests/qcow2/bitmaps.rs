//! Persistent dirty bitmaps of ours and of qemu-img's.

use e2e::tools::{arg, have, ok, run};
use vdisk_engine::image::{NothingBelow, Resize};
use vdisk_engine::options::Options;

use crate::support::{Scratch, assert_clean};

#[test]
fn qemu_takes_our_bitmaps() {
    if !have(&["qemu-img"]) {
        return;
    }
    let scratch = Scratch::new();
    let path = scratch.file("a.qcow2");
    scratch.create(&path, 100 << 20, Options::new());
    let image = scratch.open_writable(&path);
    let bitmaps = image.bitmaps().unwrap();
    bitmaps.add("auto", 0, true).unwrap();
    bitmaps.add("still", 512, false).unwrap();
    image.write(1 << 20, &[1; 70_000], &NothingBelow).unwrap();
    image.close().unwrap();
    assert_eq!(bitmaps.dirty("auto").unwrap(), [(1 << 20, 131_072)]);
    image
        .resize(&Resize {
            virtual_size: 300 << 20,
            ..Resize::default()
        })
        .unwrap();
    image.close().unwrap();
    assert_clean(&*image);
    drop(image);
    ok("qemu-img", &["check", "-f", "qcow2", arg(&path)]);
    let text = ok("qemu-img", &["info", "--output=json", arg(&path)]);
    let theirs: serde_json::Value = serde_json::from_str(&text).unwrap();
    let ours = scratch.open(&path).info().unwrap().specific.unwrap();
    assert_eq!(serde_json::Value::Object(ours), theirs["format-specific"]["data"]);
    ok(
        "qemu-img",
        &["bitmap", "--merge", "auto", "-f", "qcow2", arg(&path), "still"],
    );
    let image = scratch.open(&path);
    assert_eq!(image.bitmaps().unwrap().dirty("still").unwrap(), [(1 << 20, 131_072)]);
}

#[test]
fn we_follow_writes_in_qemus_bitmaps() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let scratch = Scratch::new();
    let path = scratch.file("a.qcow2");
    let p = arg(&path);
    ok("qemu-img", &["create", "-q", "-f", "qcow2", p, "64M"]);
    ok("qemu-img", &["bitmap", "--add", "-g", "4096", p, "b0"]);
    ok("qemu-io", &["-f", "qcow2", "-c", "write 8k 4k", p]);
    let image = scratch.open_writable(&path);
    image.write(40_960, &[1; 10], &NothingBelow).unwrap();
    image.discard(1 << 20, 65_536).unwrap();
    image.close().unwrap();
    drop(image);
    ok("qemu-img", &["check", "-f", "qcow2", p]);
    let image = scratch.open(&path);
    let dirty = image.bitmaps().unwrap().dirty("b0").unwrap();
    assert_eq!(dirty, [(8192, 4096), (40_960, 4096), (1 << 20, 65_536)]);
}

#[test]
fn a_bitmap_that_was_not_saved_is_only_good_for_removing() {
    let scratch = Scratch::new();
    let path = scratch.file("a.qcow2");
    scratch.create(&path, 64 << 20, Options::new());
    let image = scratch.open_writable(&path);
    image.bitmaps().unwrap().add("b0", 0, true).unwrap();
    image.write(0, &[1; 10], &NothingBelow).unwrap();
    image.flush().unwrap();
    drop(image);
    let image = scratch.open_writable(&path);
    let bitmaps = image.bitmaps().unwrap();
    assert!(bitmaps.list().unwrap()[0].in_use);
    assert!(bitmaps.dirty("b0").is_err());
    assert!(bitmaps.mark("b0", &[(0, 1)]).is_err());
    assert!(
        image
            .resize(&Resize {
                virtual_size: 128 << 20,
                ..Resize::default()
            })
            .is_err()
    );
    bitmaps.remove("b0").unwrap();
    assert!(bitmaps.list().unwrap().is_empty());
    assert_clean(&*image);
    image.close().unwrap();
    drop(image);
    if have(&["qemu-img"]) {
        assert!(run("qemu-img", &["check", arg(&path)]).status.success());
    }
}
