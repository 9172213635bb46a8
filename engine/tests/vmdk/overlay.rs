//! Layers: the base is known by its CID.

use e2e::tools::{arg, have, ok, run};
use vdisk_engine::env::BackingReference;
use vdisk_engine::ops::{convert::CopyOptions, rebase::rebase};
use vdisk_engine::{Control, ErrorKind};

use crate::support::{contents, create, open, options, pattern, try_open};

#[test]
fn an_overlay_of_qemu_shows_its_base_and_takes_writes() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (base, top, raw) = (
        dir.path().join("base.vmdk"),
        dir.path().join("top.vmdk"),
        dir.path().join("x.raw"),
    );
    ok("qemu-img", &["create", "-q", "-f", "vmdk", arg(&base), "10M"]);
    ok("qemu-io", &["-f", "vmdk", "-c", "write -P 1 1M 3M", arg(&base)]);
    ok(
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "vmdk",
            "-b",
            "base.vmdk",
            "-F",
            "vmdk",
            "-o",
            "zeroed_grain=on",
            arg(&top),
        ],
    );
    let chain = open(&top, true);
    chain.write((2 << 20) + 100, &pattern(1000, 1)).unwrap();
    chain.write_zeroes((3 << 20) + 100, 200_000, true).unwrap();
    chain.top().close().unwrap();
    let content = contents(&chain);
    drop(chain);
    assert!(content[1 << 20..(2 << 20) + 100].iter().all(|b| *b == 1));
    std::fs::write(&raw, &content).unwrap();
    ok(
        "qemu-img",
        &["compare", "-f", "vmdk", "-F", "raw", arg(&top), arg(&raw)],
    );
    ok("qemu-img", &["check", "-f", "vmdk", arg(&top)]);
}

#[test]
fn a_base_that_was_changed_is_refused_by_us_and_by_qemu() {
    if !have(&["qemu-img"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (base, top) = (dir.path().join("base.vmdk"), dir.path().join("top.vmdk"));
    create(&base, 4 << 20, options(&[]), None).unwrap();
    create(&top, 4 << 20, options(&[]), Some("base.vmdk")).unwrap();
    drop(open(&top, false));
    let chain = open(&base, true);
    chain.write(0, &[1; 512]).unwrap();
    chain.top().close().unwrap();
    drop(chain);
    let error = try_open(&top, false).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("CID 5a5a5a5a"), "{error}");
    let out = run(
        "qemu-img",
        &[
            "convert",
            "-f",
            "vmdk",
            "-O",
            "raw",
            arg(&top),
            arg(&dir.path().join("o.raw")),
        ],
    );
    assert!(!out.status.success());
}

#[test]
fn a_layer_that_is_rebased_stays_the_base_of_its_overlay() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for name in ["a.vmdk", "b.vmdk"] {
        create(&path(name), 4 << 20, options(&[]), None).unwrap();
    }
    let chain = open(&path("a.vmdk"), true);
    chain.write(1 << 20, &pattern(1 << 20, 1)).unwrap();
    chain.top().close().unwrap();
    drop(chain);
    create(&path("middle.vmdk"), 4 << 20, options(&[]), Some("a.vmdk")).unwrap();
    create(&path("top.vmdk"), 4 << 20, options(&[]), Some("middle.vmdk")).unwrap();
    let before = contents(&open(&path("top.vmdk"), false));
    let (chain, other) = (open(&path("middle.vmdk"), true), open(&path("b.vmdk"), false));
    let reference = BackingReference {
        name: "b.vmdk".into(),
        format: Some("vmdk".into()),
    };
    let control = Control::default();
    rebase(
        &chain,
        Some(&other),
        Some(&reference),
        &CopyOptions::default(),
        &control,
    )
    .unwrap();
    drop((chain, other));
    assert!(contents(&open(&path("top.vmdk"), false)) == before);
}

#[test]
fn another_base_is_recorded_with_its_cid() {
    if !have(&["qemu-img"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for name in ["a.vmdk", "b.vmdk"] {
        create(&path(name), 4 << 20, options(&[]), None).unwrap();
        let chain = open(&path(name), true);
        chain
            .write(
                65536,
                &pattern(65536, name.len() as u64 + u64::from(name.as_bytes()[0])),
            )
            .unwrap();
        chain.top().close().unwrap();
    }
    create(&path("top.vmdk"), 4 << 20, options(&[]), Some("a.vmdk")).unwrap();
    let (chain, other) = (open(&path("top.vmdk"), true), open(&path("b.vmdk"), false));
    let reference = BackingReference {
        name: "b.vmdk".into(),
        format: Some("vmdk".into()),
    };
    assert!(chain.top().set_backing(Some(&reference)).is_err());
    chain
        .top()
        .set_backing_over(Some(&reference), Some(other.top()))
        .unwrap();
    drop(chain);
    assert!(contents(&open(&path("top.vmdk"), false)) == contents(&other));
    ok(
        "qemu-img",
        &[
            "compare",
            "-f",
            "vmdk",
            "-F",
            "vmdk",
            arg(&path("top.vmdk")),
            arg(&path("b.vmdk")),
        ],
    );
    let chain = open(&path("top.vmdk"), true);
    chain.top().set_backing(None).unwrap();
    drop(chain);
    assert_eq!(open(&path("top.vmdk"), false).layers().len(), 1);
}
