//! VHDX disks over others.

use vdisk_engine::options::Options;
use vdisk_engine::{Control, ErrorKind};

use super::vhdx::folder;
use crate::support::{assert_same, contents, libvhdi_overlay};

#[test]
fn libvhdi_reads_our_overlays() {
    let (_dir, folder) = folder();
    folder
        .create("base.vhdx", "vhdx", 9 << 20, None, Options::new())
        .unwrap();
    let base = folder.open("base.vhdx", "vhdx", true);
    base.write(1 << 20, &vec![7; 5 << 20]).unwrap();
    base.top().close().unwrap();
    drop(base);
    folder
        .create("top.vhdx", "vhdx", 9 << 20, Some("base.vhdx"), Options::new())
        .unwrap();
    let top = folder.open("top.vhdx", "vhdx", true);
    let mut model = contents(&top);
    assert_eq!(model[1 << 20], 7);
    for (offset, len, byte) in [
        (1000usize, 100usize, 1u8),
        (3 << 20, 70_000, 2),
        ((9 << 20) - 700, 700, 3),
        (4 << 20, 2 << 20, 5),
    ] {
        top.write(offset as u64, &vec![byte; len]).unwrap();
        model[offset..offset + len].fill(byte);
    }
    for (offset, len) in [(2 << 20, 300_001usize), (6 << 20, 2 << 20)] {
        top.write_zeroes(offset as u64, len as u64, true).unwrap();
        model[offset..offset + len].fill(0);
    }
    top.top().close().unwrap();
    assert_same(&contents(&top), &model, "before reopening");
    drop(top);
    assert_same(
        &contents(&folder.open("top.vhdx", "vhdx", false)),
        &model,
        "after reopening",
    );
    // vhdimount looks for an absolute path only; its library is told where the base is.
    let Some(theirs) = libvhdi_overlay(&folder.path("top.vhdx"), &folder.path("base.vhdx")) else {
        return;
    };
    assert_same(&theirs, &model, "libvhdi");
}

#[test]
fn a_base_that_was_written_since_is_refused() {
    let (_dir, folder) = folder();
    folder
        .create("base.vhdx", "vhdx", 4 << 20, None, Options::new())
        .unwrap();
    folder
        .create("top.vhdx", "vhdx", 4 << 20, Some("base.vhdx"), Options::new())
        .unwrap();
    folder.open("top.vhdx", "vhdx", false);
    let base = folder.open("base.vhdx", "vhdx", true);
    base.write(0, &[1; 512]).unwrap();
    base.top().close().unwrap();
    drop(base);
    let error = folder
        .open_with("top.vhdx", "vhdx", false, Options::new())
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("data-write id"), "{error}");
}

#[test]
fn an_overlay_opens_after_the_disk_below_it_came_onto_another_one() {
    use vdisk_engine::image::BackingReference;
    use vdisk_engine::ops::convert::CopyOptions;
    use vdisk_engine::ops::rebase::{rebase, rebase_unsafe};
    let disks = [
        ("base", None, 1u8),
        ("other", None, 2),
        ("mid", Some("base"), 3),
        ("top", Some("mid"), 4),
    ];
    let ways = ["unsafe", "onto", "flatten"];
    for (way, guest_writes) in ways.iter().flat_map(|way| [(*way, false), (*way, true)]) {
        let (_dir, folder) = folder();
        for (name, below, byte) in disks {
            folder.create(name, "vhdx", 4 << 20, below, Options::new()).unwrap();
            let disk = folder.open(name, "vhdx", true);
            let len = if name == "base" || name == "other" {
                3 << 20
            } else {
                70_000
            };
            disk.write(u64::from(byte) << 16, &vec![byte; len]).unwrap();
            disk.top().close().unwrap();
        }
        if way == "unsafe" {
            std::fs::copy(folder.path("base"), folder.path("other")).unwrap();
        }
        let expected = contents(&folder.open("top", "vhdx", false));
        let (mid, other) = (folder.open("mid", "vhdx", true), folder.open("other", "vhdx", false));
        let before = mid.top().layer_id();
        let backing = BackingReference {
            name: "other".into(),
            format: Some("vhdx".into()),
        };
        let (options, control) = (CopyOptions::default(), Control::default());
        match way {
            "unsafe" => rebase_unsafe(mid.top(), Some(&backing)),
            "onto" => rebase(&mid, Some(&other), Some(&backing), &options, &control),
            _ => rebase(&mid, None, None, &options, &control),
        }
        .unwrap();
        assert_eq!(mid.top().layer_id(), before);
        if guest_writes {
            mid.write(0, &[9; 512]).unwrap();
            mid.top().close().unwrap();
        }
        drop((mid, other));
        match folder.open_with("top", "vhdx", false, Options::new()) {
            Ok(top) if !guest_writes => assert_same(&contents(&top), &expected, way),
            Err(error) if guest_writes => assert!(error.to_string().contains("data-write id"), "{way}: {error}"),
            found => panic!("{way}, written: {guest_writes}: {:?}", found.err()),
        }
    }
}

#[test]
fn an_overlay_opens_after_it_was_committed() {
    use vdisk_engine::ops::commit::commit;
    use vdisk_engine::ops::convert::CopyOptions;
    for (format, size) in [("vhdx", 4u64 << 20), ("vpc", 1_079_296)] {
        for empty in [true, false] {
            let (_dir, folder) = folder();
            folder.create("base", format, size, None, Options::new()).unwrap();
            folder
                .create("top", format, size, Some("base"), Options::new())
                .unwrap();
            let top = folder.open("top", format, true);
            top.write(1000, &[7; 5000]).unwrap();
            top.top().close().unwrap();
            let expected = contents(&top);
            drop(top);
            let chain = folder.open_for_commit("top", "base", format);
            commit(&chain, 1, empty, &CopyOptions::default(), &Control::default()).unwrap();
            drop(chain);
            assert_same(&contents(&folder.open("top", format, false)), &expected, format);
            assert_same(&contents(&folder.open("base", format, false)), &expected, format);
        }
    }
}
