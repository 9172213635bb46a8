//! New images look as qemu-img's do, and need the space that qemu-img says.

use e2e::tools::{arg, have, ok, run};
use vdisk_engine::env::CreateSpec;
use vdisk_engine::formats::{self, MeasureSpec};
use vdisk_engine::image::{BackingReference, NothingBelow};
use vdisk_engine::options::Options;

use crate::support::{CLUSTER_SIZES, Scratch, assert_clean, read_all};

fn parse(text: &str) -> Options {
    text.split(',')
        .filter(|p| !p.is_empty())
        .fold(Options::new(), |options, pair| {
            let (name, value) = pair.split_once('=').unwrap();
            options.with(name, value)
        })
}

fn info(path: &std::path::Path) -> serde_json::Value {
    serde_json::from_str(&ok("qemu-img", &["info", "--output=json", arg(path)])).unwrap()
}

#[test]
fn a_new_image_equals_qemus_byte_for_byte() {
    if !have(&["qemu-img"]) {
        return;
    }
    let scratch = Scratch::new();
    let mut cases: Vec<String> = CLUSTER_SIZES.iter().map(|c| format!("cluster_size={c}")).collect();
    cases.extend(
        [
            "compat=0.10",
            "refcount_bits=1",
            "refcount_bits=64",
            "lazy_refcounts=on",
            "extended_l2=on",
            "compression_type=zstd",
            "compression_type=zstd,extended_l2=on,cluster_size=131072,refcount_bits=8",
        ]
        .map(str::to_owned),
    );
    for case in &cases {
        for size in ["0", "1M", "1G", "100000512"] {
            let (ours, theirs) = (scratch.file("ours.qcow2"), scratch.file("theirs.qcow2"));
            ok(
                "qemu-img",
                &["create", "-q", "-f", "qcow2", "-o", case, arg(&theirs), size],
            );
            let bytes = vdisk_engine::options::parse_size(size).unwrap();
            scratch.create(&ours, bytes, parse(case));
            let (ours, theirs) = (std::fs::read(&ours).unwrap(), std::fs::read(&theirs).unwrap());
            assert_eq!(ours.len(), theirs.len(), "{case} size={size}");
            // Where the L1 table needs more than one refcount block, we choose other clusters for the second one.
            let one_block = case != "cluster_size=512" || size != "1G";
            assert!(!one_block || ours == theirs, "{case} size={size}");
        }
    }
}

#[test]
fn an_overlay_equals_qemus_byte_for_byte() {
    if !have(&["qemu-img"]) {
        return;
    }
    let scratch = Scratch::new();
    for case in ["", "cluster_size=512", "compat=0.10", "extended_l2=on"] {
        let (ours, theirs) = (scratch.file("ours.qcow2"), scratch.file("theirs.qcow2"));
        let mut args = vec!["create", "-q", "-u", "-f", "qcow2", "-b", "base.raw", "-F", "raw"];
        if !case.is_empty() {
            args.extend(["-o", case]);
        }
        args.extend([arg(&theirs), "5M"]);
        ok("qemu-img", &args);
        let spec = CreateSpec {
            virtual_size: 5 << 20,
            options: parse(case),
            backing: Some(BackingReference {
                name: "base.raw".into(),
                format: Some("raw".into()),
            }),
        };
        scratch.create_spec(&ours, &spec).unwrap();
        assert!(
            std::fs::read(&ours).unwrap() == std::fs::read(&theirs).unwrap(),
            "{case}"
        );
    }
}

#[test]
fn preallocated_images_are_sound_and_as_large_as_qemus() {
    if !have(&["qemu-img"]) {
        return;
    }
    let scratch = Scratch::new();
    for mode in ["metadata", "falloc", "full"] {
        for more in ["", ",cluster_size=4096", ",extended_l2=on"] {
            let case = format!("preallocation={mode}{more}");
            let (ours, theirs) = (scratch.file("ours.qcow2"), scratch.file("theirs.qcow2"));
            ok(
                "qemu-img",
                &["create", "-q", "-f", "qcow2", "-o", &case, arg(&theirs), "10M"],
            );
            scratch.create(&ours, 10 << 20, parse(&case));
            ok("qemu-img", &["check", "-f", "qcow2", arg(&ours)]);
            ok(
                "qemu-img",
                &["compare", "-f", "qcow2", "-F", "qcow2", arg(&ours), arg(&theirs)],
            );
            let (ours, theirs) = (ours.metadata().unwrap().len(), theirs.metadata().unwrap().len());
            assert_eq!(ours, theirs, "{case}");
        }
    }
}

#[test]
fn info_has_qemus_keys_and_values() {
    if !have(&["qemu-img"]) {
        return;
    }
    let scratch = Scratch::new();
    for case in [
        "compat=0.10",
        "compat=1.1",
        "compression_type=zstd,lazy_refcounts=on",
        "extended_l2=on,refcount_bits=32",
        "data_file=DATA",
        "data_file=DATA,data_file_raw=on",
    ] {
        let path = scratch.file("ours.qcow2");
        let case = case.replace("DATA", arg(&scratch.file("data.raw")));
        scratch.create(&path, 1 << 20, parse(&case));
        let theirs = info(&path);
        let ours = scratch.open(&path).info().unwrap();
        let specific = serde_json::Value::Object(ours.specific.unwrap());
        assert_eq!(specific, theirs["format-specific"]["data"], "{case}");
        assert_eq!(ours.cluster_size, theirs["cluster-size"].as_u64(), "{case}");
        assert_eq!(ours.dirty, theirs["dirty-flag"].as_bool(), "{case}");
    }
}

#[test]
fn measure_says_what_qemu_says() {
    if !have(&["qemu-img"]) {
        return;
    }
    let driver = formats::by_name("qcow2").unwrap();
    for case in [
        "cluster_size=65536",
        "cluster_size=512",
        "cluster_size=2097152,refcount_bits=1",
        "extended_l2=on",
        "preallocation=full",
        "compat=0.10",
        "cluster_size=4096,refcount_bits=64",
    ] {
        for size in [0u64, 512, 1 << 20, 3 << 30, (1 << 40) + 512] {
            let size_arg = size.to_string();
            let out = run(
                "qemu-img",
                &[
                    "measure",
                    "--output=json",
                    "-O",
                    "qcow2",
                    "-o",
                    case,
                    "--size",
                    &size_arg,
                ],
            );
            let ours = driver.measure(&MeasureSpec {
                virtual_size: size,
                data: &[],
                options: &parse(case),
                backing: false,
            });
            if !out.status.success() {
                assert!(ours.is_err(), "{case} size={size}: only qemu refuses");
                continue;
            }
            let ours = ours.unwrap();
            let theirs: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
            let found = (Some(ours.required), Some(ours.fully_allocated));
            let expected = (theirs["required"].as_u64(), theirs["fully-allocated"].as_u64());
            assert_eq!(found, expected, "{case} size={size}");
        }
    }
}

#[test]
fn amended_images_are_sound_and_keep_their_content() {
    if !have(&["qemu-img"]) {
        return;
    }
    let scratch = Scratch::new();
    let path = scratch.file("ours.qcow2");
    scratch.create(&path, 4 << 20, Options::new());
    let image = scratch.open_writable(&path);
    image.write(100_000, &[7; 500_000], &NothingBelow).unwrap();
    image.write_zeroes(0, 1 << 17, true, &NothingBelow).unwrap();
    let before = read_all(&*image);
    for (name, value) in [
        ("lazy_refcounts", "on"),
        ("refcount_bits", "1"),
        ("refcount_bits", "64"),
        ("refcount_bits", "16"),
        ("compat", "0.10"),
        ("compat", "1.1"),
        ("size", "8M"),
    ] {
        let options = Options::new().with(name, value);
        image.amend(&options, false, &vdisk_engine::Control::default()).unwrap();
        image.flush().unwrap();
        ok("qemu-img", &["check", "-f", "qcow2", "-U", arg(&path)]);
        assert!(read_all(&*image)[..before.len()] == before, "{name}={value}");
        assert_clean(&*image);
    }
    let other = Options::new().with("cluster_size", "512");
    assert!(image.amend(&other, false, &vdisk_engine::Control::default()).is_err());
}

/// As QEMU reads it: a size of 0 was not given.
#[test]
fn an_amended_size_of_0_leaves_the_disk_as_it_is() {
    let scratch = Scratch::new();
    let path = scratch.file("ours.qcow2");
    scratch.create(&path, 1 << 20, Options::new());
    let image = scratch.open_writable(&path);
    image.write(0, &[7; 1 << 20], &NothingBelow).unwrap();
    image.snapshots().unwrap().create("one", (0, 0)).unwrap();
    let alone = Options::new().with("size", "0");
    let lazy = alone.clone().with("lazy_refcounts", "on");
    let older = alone.clone().with("compat", "0.10");
    for options in [alone, lazy, older] {
        image.amend(&options, false, &vdisk_engine::Control::default()).unwrap();
        assert!(read_all(&*image) == [7; 1 << 20], "{options:?}");
        assert_clean(&*image);
    }
}

#[test]
fn a_data_file_holds_the_guest_data_at_its_own_offsets() {
    let scratch = Scratch::new();
    for raw in ["off", "on"] {
        let path = scratch.file("ours.qcow2");
        let data = scratch.file("data.raw");
        let options = Options::new().with("data_file", arg(&data)).with("data_file_raw", raw);
        scratch.create(&path, 1 << 20, options);
        let image = scratch.open_writable(&path);
        image.write(70_000, &[5; 200_000], &NothingBelow).unwrap();
        image.write(0, &[6; 100], &NothingBelow).unwrap();
        image.write_zeroes(131_072, 65_536, true, &NothingBelow).unwrap();
        assert!(image.write_compressed(0, &[1; 65_536]).is_err());
        let encoded = image
            .bulk()
            .unwrap()
            .encode(&[1; 65_536], &mut vdisk_engine::image::Scratch::default());
        assert_eq!(encoded.unwrap_err().kind(), vdisk_engine::ErrorKind::Unsupported);
        image.close().unwrap();
        drop(image);
        let seen = read_all(&*scratch.open(&path));
        let data = std::fs::read(&data).unwrap();
        assert_eq!(
            (seen[0], seen[99], seen[100], seen[70_000], seen[131_072]),
            (6, 6, 0, 5, 0)
        );
        if raw == "on" {
            assert!(seen == data, "a raw data file is the disk");
        }
        assert_clean(&*scratch.open(&path));
        if have(&["qemu-img"]) {
            ok("qemu-img", &["check", "-f", "qcow2", arg(&path)]);
        }
    }
}
