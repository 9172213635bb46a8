//! qed against qemu-img.

use std::sync::Arc;

use e2e::tools::{arg, have, ok, run};
use proptest::prelude::*;
use tempfile::TempDir;
use vdisk_engine::image::{NothingBelow, Repair, Resize};
use vdisk_engine::storage::MemoryStorage;
use vdisk_engine::{Control, ErrorKind};

use crate::support::{self, *};

const SMALL: &[(&str, &str)] = &[("cluster_size", "4096"), ("table_size", "2")];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_image_behaves_as_a_byte_array(ops in ops(200 << 10)) {
        behaves_as_bytes("qed", created("qed", 200 << 10, SMALL), &ops);
    }

    #[test]
    fn no_flipped_bytes_make_it_panic(flips in flips()) {
        let storage = created("qed", 1 << 20, SMALL);
        open_rw(storage.clone(), "qed").unwrap().write(5000, &[9; 20_000], &NothingBelow).unwrap();
        never_panics("qed", &storage.contents(), 64, &flips);
    }
}

#[test]
fn created_files_are_those_of_qemu_img() {
    if !have(&["qemu-img"]) {
        return;
    }
    let dir = TempDir::new().unwrap();
    for (size, opts) in [
        (0, &[][..]),
        (512, &[]),
        (10 << 20, &[]),
        ((3 << 30) + 512, &[("cluster_size", "4096"), ("table_size", "16")]),
        (2 << 40, &[("cluster_size", "1M"), ("table_size", "2")]),
    ] {
        let theirs = dir.path().join("theirs.qed");
        let list: Vec<_> = opts.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let size_text = format!("{size}");
        let mut args = vec!["create", "-q", "-f", "qed", arg(&theirs), &size_text];
        let joined = list.join(",");
        if !opts.is_empty() {
            args.extend(["-o", &joined]);
        }
        ok("qemu-img", &args);
        let ours = created("qed", size, opts).contents();
        assert_eq!(std::fs::read(&theirs).unwrap(), ours, "{size} {joined}");
    }
}

#[test]
fn qemu_reads_what_we_write() {
    if !have(&["qemu-img"]) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let (path, raw) = (dir.path().join("a.qed"), dir.path().join("a.raw"));
    let data = pattern(3 << 20);
    std::fs::write(&raw, &data).unwrap();
    create_on(file(&path, true), "qed", 3 << 20, &[], None);
    bulk_fill("qed", file(&path, true), &data);
    ok(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "qed", arg(&raw), arg(&path)],
    );
    ok("qemu-img", &["check", "-f", "qed", arg(&path)]);
}

#[test]
fn we_read_what_qemu_writes() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let (base, top) = (dir.path().join("base.raw"), dir.path().join("top.qed"));
    std::fs::write(&base, pattern(1 << 20)).unwrap();
    let create = [
        "create",
        "-q",
        "-f",
        "qed",
        "-b",
        arg(&base),
        "-F",
        "raw",
        arg(&top),
        "5M",
    ];
    ok("qemu-img", &create);
    let writes = [
        "-c",
        "write -P 5 100k 200k",
        "-c",
        "write -z 512k 128k",
        "-c",
        "write -P 6 4M 10k",
    ];
    ok("qemu-io", &[&["-f", "qed"], &writes[..], &[arg(&top)]].concat());
    let chain = support::chain(&[(&top, "qed"), (&base, "raw")], false);
    let flat = dir.path().join("flat.raw");
    ok("qemu-img", &["convert", "-O", "raw", arg(&top), arg(&flat)]);
    assert!(content(&chain) == std::fs::read(&flat).unwrap());
    let backing = chain.top().backing().unwrap();
    assert_eq!(
        (backing.name.as_str(), backing.format.as_deref()),
        (arg(&base), Some("raw"))
    );
}

#[test]
fn copy_on_write_takes_the_rest_from_below() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let (base, top) = (dir.path().join("base.raw"), dir.path().join("top.qed"));
    let mut model = pattern(1 << 20);
    std::fs::write(&base, &model).unwrap();
    create_on(file(&top, true), "qed", 1 << 20, &[], Some((arg(&base), "raw")));
    let chain = support::chain(&[(&top, "qed"), (&base, "raw")], true);
    chain.write(70_000, &[7; 90_000]).unwrap();
    chain.write_zeroes(300_000, 200_000, true).unwrap();
    chain.top().close().unwrap();
    model[70_000..160_000].fill(7);
    model[300_000..500_000].fill(0);
    assert!(content(&chain) == model);
    drop(chain);
    let flat = dir.path().join("flat.raw");
    ok(
        "qemu-img",
        &["convert", "-f", "qed", "-O", "raw", arg(&top), arg(&flat)],
    );
    assert!(std::fs::read(&flat).unwrap() == model);
}

#[test]
fn a_crash_at_any_change_keeps_what_was_flushed() {
    let qemu = have(&["qemu-img"]);
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("crashed.qed");
    let fresh = created("qed", 64 << 10, SMALL).contents();
    survives_crashes("qed", fresh, &crash_script(4096), |bytes| {
        if qemu {
            std::fs::write(&path, bytes).unwrap();
            let out = run("qemu-img", &["check", "-f", "qed", arg(&path)]);
            assert!(matches!(out.status.code(), Some(0 | 3)), "more than leaks: {out:?}");
        }
    });
}

#[test]
fn check_finds_what_qemu_img_finds_and_repairs_it() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.qed");
    ok("qemu-img", &["create", "-q", "-f", "qed", arg(&path), "10M"]);
    ok(
        "qemu-io",
        &["-f", "qed", "-c", "write 0 192k", "-c", "write 5M 64k", arg(&path)],
    );
    let mut bytes = std::fs::read(&path).unwrap();
    let l2 = u64::from_le_bytes(bytes[65536..65544].try_into().unwrap()) as usize;
    bytes[l2..l2 + 8].copy_from_slice(&0x7777_0000u64.to_le_bytes());
    bytes[l2 + 8..l2 + 16].copy_from_slice(&0x123u64.to_le_bytes());
    bytes[16] |= 2; // need check
    std::fs::write(&path, &bytes).unwrap();
    let theirs: serde_json::Value = {
        let out = run("qemu-img", &["check", "-f", "qed", "--output=json", arg(&path)]);
        serde_json::from_slice(&out.stdout).unwrap()
    };
    let storage = Arc::new(MemoryStorage::new("m", bytes));
    let ours = open_ro(storage.clone(), "qed").unwrap();
    let report = ours.check(Repair::No, &Control::default()).unwrap();
    let number = |key: &str| theirs[key].as_u64().unwrap_or(0);
    assert_eq!(report.corruptions, number("corruptions"));
    assert_eq!(report.leaks, number("leaks"));
    assert_eq!(report.allocated_clusters, Some(number("allocated-clusters")));
    assert_eq!(report.fragmented_clusters, Some(number("fragmented-clusters")));
    assert_eq!(report.total_clusters, Some(number("total-clusters")));
    assert_eq!(ours.read(0, &mut [0; 512]).unwrap_err().kind(), ErrorKind::Corrupt);

    let repaired = open_rw(storage.clone(), "qed").unwrap();
    assert_eq!(repaired.info().unwrap().dirty, Some(false));
    assert_eq!(repaired.check(Repair::No, &Control::default()).unwrap().corruptions, 0);
    repaired.read(0, &mut [0; 512]).unwrap();
    std::fs::write(&path, storage.contents()).unwrap();
    let status = run("qemu-img", &["check", "-q", "-f", "qed", arg(&path)]).status;
    assert_eq!(status.code(), Some(3), "only leaks are left");
}

#[test]
fn growing_keeps_data_and_shows_zeroes() {
    let storage = created("qed", 1 << 20, SMALL);
    let image = open_rw(storage.clone(), "qed").unwrap();
    image.write(0, &[3; 1 << 20], &NothingBelow).unwrap();
    let to = Resize {
        virtual_size: 40 << 20,
        ..Resize::default()
    };
    image.resize(&to).unwrap();
    image.write((40 << 20) - 512, &[4; 512], &NothingBelow).unwrap();
    image.close().unwrap();
    let again = open_ro(storage, "qed").unwrap();
    let mut model = vec![0; 40 << 20];
    model[..1 << 20].fill(3);
    model[(40 << 20) - 512..].fill(4);
    matches_model(again.as_ref(), &model);
}

#[test]
fn extents_join_whole_empty_tables() {
    let storage = created("qed", 1 << 40, &[]);
    let image = open_rw(storage, "qed").unwrap();
    let whole = image.extent(0, 1 << 40).unwrap();
    assert_eq!(whole.len, 1 << 40);
}
