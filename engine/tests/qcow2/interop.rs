//! qcow2 against its peers: what we write QEMU reads, what QEMU writes we read.

use crate::support::{CLUSTER_SIZES, Scratch, pattern, read_all};
use e2e::tools::{arg, have, ok, run};
use vdisk_engine::image::NothingBelow;
use vdisk_engine::options::Options;

const SIZE: u64 = 3 << 20;

/// Cluster size, refcount bits and other options worth telling apart.
fn matrix() -> Vec<(String, Options)> {
    let mut list = Vec::new();
    for cluster in CLUSTER_SIZES {
        for bits in [1, 2, 4, 8, 16, 32, 64] {
            let options = Options::new()
                .with("cluster_size", cluster.to_string())
                .with("refcount_bits", bits.to_string());
            list.push((format!("cluster_size={cluster},refcount_bits={bits}"), options));
        }
    }
    for (name, value) in [("compat", "0.10"), ("compression_type", "zstd"), ("extended_l2", "on")] {
        list.push((format!("{name}={value}"), Options::new().with(name, value)));
    }
    list
}

#[test]
fn qemu_reads_what_we_write() {
    if !have(&["qemu-img"]) {
        return;
    }
    let scratch = Scratch::new();
    let expected = pattern(SIZE as usize);
    let raw = scratch.file("expected.raw");
    std::fs::write(&raw, &expected).unwrap();
    for (label, options) in matrix() {
        let path = scratch.file("ours.qcow2");
        scratch.create(&path, SIZE, options);
        let image = scratch.open_writable(&path);
        for (n, part) in expected.chunks(100_000).enumerate() {
            if part.iter().any(|b| *b != 0) {
                image.write(n as u64 * 100_000, part, &NothingBelow).unwrap();
            }
        }
        image.close().unwrap();
        drop(image);
        ok("qemu-img", &["check", "-f", "qcow2", arg(&path)]);
        let out = run(
            "qemu-img",
            &["compare", "-f", "raw", "-F", "qcow2", arg(&raw), arg(&path)],
        );
        assert!(out.status.success(), "{label}: {out:?}");
        assert!(read_all(&*scratch.open(&path)) == expected, "{label}");
    }
}

#[test]
fn qemu_reads_what_we_write_compressed() {
    if !have(&["qemu-img"]) {
        return;
    }
    let scratch = Scratch::new();
    let expected = pattern(SIZE as usize);
    let raw = scratch.file("expected.raw");
    std::fs::write(&raw, &expected).unwrap();
    for (label, options) in matrix() {
        let path = scratch.file("ours.qcow2");
        scratch.create(&path, SIZE, options);
        let image = scratch.open_writable(&path);
        let cluster = image.info().unwrap().cluster_size.unwrap();
        for (n, part) in expected.chunks(cluster as usize).enumerate() {
            image.write_compressed(n as u64 * cluster, part).unwrap();
        }
        image.close().unwrap();
        drop(image);
        ok("qemu-img", &["check", "-f", "qcow2", arg(&path)]);
        let out = run(
            "qemu-img",
            &["compare", "-f", "raw", "-F", "qcow2", arg(&raw), arg(&path)],
        );
        assert!(out.status.success(), "{label}: {out:?}");
        assert!(read_all(&*scratch.open(&path)) == expected, "{label}");
    }
}

#[test]
fn we_read_what_qemu_writes() {
    if !have(&["qemu-img"]) {
        return;
    }
    let scratch = Scratch::new();
    let expected = pattern(SIZE as usize);
    let raw = scratch.file("expected.raw");
    std::fs::write(&raw, &expected).unwrap();
    for (label, _) in matrix() {
        for compress in [false, true] {
            let path = scratch.file("theirs.qcow2");
            let mut args = vec![
                "convert",
                "-f",
                "raw",
                "-O",
                "qcow2",
                "-o",
                &label,
                arg(&raw),
                arg(&path),
            ];
            if compress {
                args.push("-c");
            }
            ok("qemu-img", &args);
            assert!(
                read_all(&*scratch.open(&path)) == expected,
                "{label} compress={compress}"
            );
        }
    }
}
