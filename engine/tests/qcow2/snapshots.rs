//! Internal snapshots of ours and of qemu-img's.

use std::path::{Path, PathBuf};

use e2e::tools::{arg, have, ok, run};
use vdisk_engine::image::{NothingBelow, Resize};
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

/// The content of the active image and of its snapshots, as qemu-img reads it.
fn contents(path: &str, snapshots: &[&str]) -> Vec<Vec<u8>> {
    let out = format!("{path}.raw");
    let read = |args: &[&str]| {
        ok("qemu-img", &[&["convert"], args, &["-O", "raw", path, &out]].concat());
        std::fs::read(&out).unwrap()
    };
    let mut list = vec![read(&[])];
    list.extend(snapshots.iter().map(|name| read(&["-l", name])));
    list
}

#[test]
fn version_2_keeps_the_zeroes_of_all_snapshots() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    for cluster in ["512", "4096", "65536"] {
        let scratch = Scratch::new();
        let (base, path) = (scratch.file("base"), scratch.file("top"));
        let (b, p) = (arg(&base), arg(&path));
        std::fs::write(&base, vec![9; 2 << 20]).unwrap();
        let size = format!("cluster_size={cluster}");
        ok(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", "-o", &size, "-b", b, "-F", "raw", p],
        );
        let io = |commands: &[&str]| {
            let mut args = vec!["-f", "qcow2"];
            commands.iter().for_each(|c| args.extend(["-c", c]));
            args.push(p);
            ok("qemu-io", &args);
        };
        io(&["write -P 1 0 128k", "write -z 128k 64k"]);
        ok("qemu-img", &["snapshot", "-c", "one", p]);
        // Zeroes over clusters that the snapshot has as data, with and without the place being kept; zeroes with a place of their own.
        io(&[
            "write -z 0 64k",
            "write -zu 64k 32k",
            "write -P 3 192k 64k",
            "write -z 192k 64k",
            "write -z 1M 64k",
        ]);
        ok("qemu-img", &["snapshot", "-c", "two", p]);
        io(&["write -P 4 1M 32k", "write -z 512k 64k"]);
        let before = contents(p, &["one", "two"]);
        let image = scratch.open_writable(&path);
        let options = Options::new().with("compat", "0.10");
        image.amend(&options, false, &vdisk_engine::Control::default()).unwrap();
        image.close().unwrap();
        drop(image);
        ok("qemu-img", &["check", "-f", "qcow2", p]);
        assert!(ok("qemu-img", &["info", p]).contains("compat: 0.10"));
        assert!(contents(p, &["one", "two"]) == before, "clusters of {cluster}");
        ok("qemu-img", &["snapshot", "-a", "one", p]);
        ok("qemu-img", &["check", "-f", "qcow2", p]);
    }
}

#[test]
fn snapshots_that_version_2_cannot_hold_keep_an_image_at_version_3() {
    let scratch = Scratch::new();
    let path = scratch.file("a.qcow2");
    scratch.create(&path, 4 << 20, Options::new());
    let image = scratch.open_writable(&path);
    image.snapshots().unwrap().create("one", (0, 0)).unwrap();
    let change = |name, value| {
        let options = Options::new().with(name, value);
        image.amend(&options, false, &vdisk_engine::Control::default())
    };
    change("size", "8M").unwrap();
    let error = change("compat", "0.10").unwrap_err();
    assert!(error.to_string().contains("internal snapshots prevent"), "{error}");
    change("size", "4M").unwrap();
    change("compat", "0.10").unwrap();
    assert_clean(&*image);
}

/// A disk of 4 MiB whose snapshot has VM state behind the disk, as a machine leaves it; and what the snapshot holds, the state included.
fn with_vm_state(scratch: &Scratch, name: &str, state: u64) -> (PathBuf, Vec<u8>) {
    let path = scratch.file(name);
    scratch.create(&path, 8 << 20, Options::new().with("cluster_size", "4096"));
    let image = scratch.open_writable(&path);
    image.write(0, &[1; 300_000], &NothingBelow).unwrap();
    image.write(4 << 20, &[5; 200_000], &NothingBelow).unwrap();
    image
        .write_zeroes((4 << 20) + 8192, 4096, false, &NothingBelow)
        .unwrap();
    let held = read_all(&*image);
    image.snapshots().unwrap().create("vm", (0, 0)).unwrap();
    image.write(0, &[2; 300_000], &NothingBelow).unwrap();
    image.close().unwrap();
    drop(image);
    set_disk(&path, 4 << 20, state);
    (path, held)
}

/// Sets the size of the disk, in the header and in the only snapshot, and the size of its VM state.
fn set_disk(path: &Path, size: u64, state: u64) {
    let mut bytes = std::fs::read(path).unwrap();
    let entry = usize::from_be_bytes(bytes[64..72].try_into().unwrap());
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(24, &size.to_be_bytes());
    put(entry + 32, &u32::try_from(state).unwrap_or(0).to_be_bytes());
    put(entry + 40, &state.to_be_bytes());
    put(entry + 48, &size.to_be_bytes());
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn version_2_keeps_the_vm_state_of_a_snapshot() {
    let scratch = Scratch::new();
    let (path, held) = with_vm_state(&scratch, "a.qcow2", 200_000);
    let image = scratch.open_writable(&path);
    let options = Options::new().with("compat", "0.10");
    image.amend(&options, false, &vdisk_engine::Control::default()).unwrap();
    image.close().unwrap();
    assert_clean(&*image);
    assert_eq!(image.info().unwrap().snapshots[0].vm_state_size, 200_000);
    drop(image);
    if have(&["qemu-img"]) {
        let copy = scratch.file("copy");
        std::fs::copy(&path, &copy).unwrap();
        let p = arg(&copy);
        ok("qemu-img", &["check", "-f", "qcow2", p]);
        assert!(ok("qemu-img", &["info", p]).contains("compat: 0.10"));
        ok("qemu-img", &["snapshot", "-a", "vm", p]);
        assert!(read_all(&*scratch.open(&copy)) == held[..4 << 20]);
    }
    // As a larger disk the snapshot shows its VM state.
    set_disk(&path, 8 << 20, 200_000);
    let image = scratch.open(&path);
    assert!(read_all(&*image.snapshots().unwrap().open("vm").unwrap()) == held);
}

#[test]
fn vm_state_whose_size_version_2_cannot_say_keeps_an_image_at_version_3() {
    let scratch = Scratch::new();
    let options = Options::new().with("compat", "0.10");
    for (name, state, fits) in [("most", u64::from(u32::MAX), true), ("more", 1 << 32, false)] {
        let (path, _) = with_vm_state(&scratch, name, state);
        if have(&["qemu-img"]) {
            let copy = scratch.file("copy");
            std::fs::copy(&path, &copy).unwrap();
            let out = run("qemu-img", &["amend", "-f", "qcow2", "-o", "compat=0.10", arg(&copy)]);
            assert_eq!(out.status.success(), fits, "{name}: {out:?}");
        }
        let image = scratch.open_writable(&path);
        let done = image.amend(&options, false, &vdisk_engine::Control::default());
        assert_eq!(done.is_ok(), fits, "{name}: {done:?}");
    }
}

/// QEMU refuses each of them too, and leaves the image as it was.
#[test]
fn a_snapshot_of_a_disk_that_cannot_be_is_refused_without_a_trace() {
    for size in [1 << 53, 1 << 62, (1 << 63) - 512, u64::MAX, (4 << 20) + 1] {
        let scratch = Scratch::new();
        let path = scratch.file("a.qcow2");
        scratch.create(&path, 4 << 20, Options::new());
        let image = scratch.open_writable(&path);
        image.write(0, &[1; 300_000], &NothingBelow).unwrap();
        image.snapshots().unwrap().create("s", (0, 0)).unwrap();
        image.close().unwrap();
        drop(image);
        let mut bytes = std::fs::read(&path).unwrap();
        let entry = usize::from_be_bytes(bytes[64..72].try_into().unwrap());
        bytes[entry + 48..entry + 56].copy_from_slice(&size.to_be_bytes());
        std::fs::write(&path, &bytes).unwrap();
        if have(&["qemu-img"]) {
            let out = run("qemu-img", &["snapshot", "-a", "s", arg(&path)]);
            assert!(!out.status.success(), "{size:#x}: {out:?}");
        }
        let image = scratch.open_writable(&path);
        let error = image.snapshots().unwrap().apply("s").unwrap_err();
        assert!(error.to_string().contains(&size.to_string()), "{error}");
        image.close().unwrap();
        assert!(std::fs::read(&path).unwrap() == bytes, "{size:#x}: changed");
    }
}

/// Going back to a snapshot of a machine brings its memory into the active tables, behind the disk.
#[test]
fn a_disk_does_not_grow_over_the_memory_of_a_machine() {
    for to in [(4 << 20) + 65_536, 8 << 20, 16 << 20] {
        let scratch = Scratch::new();
        let (path, held) = with_vm_state(&scratch, "a.qcow2", 200_000);
        let image = scratch.open_writable(&path);
        image.snapshots().unwrap().apply("vm").unwrap();
        let resize = |virtual_size| {
            let to = Resize {
                virtual_size,
                ..Resize::default()
            };
            image.resize(&to).unwrap();
        };
        resize(to);
        let grown = read_all(&*image);
        assert!(grown[..4 << 20] == held[..4 << 20]);
        assert!(grown[4 << 20..].iter().all(|b| *b == 0), "to {to}");
        // What stood behind the first growth does not come back with the second.
        resize(20 << 20);
        assert!(read_all(&*image)[4 << 20..].iter().all(|b| *b == 0), "from {to}");
        image.close().unwrap();
        assert_clean(&*image);
        drop(image);
        if have(&["qemu-img"]) {
            ok("qemu-img", &["check", "-f", "qcow2", arg(&path)]);
        }
        // The snapshot has kept it: as a larger disk it shows it.
        set_disk(&path, 8 << 20, 200_000);
        let image = scratch.open(&path);
        assert!(read_all(&*image.snapshots().unwrap().open("vm").unwrap()) == held);
    }
}
