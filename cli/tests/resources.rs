//! What copying may cost: memory that does not grow with the disk, and the same output whatever the number of workers.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use common::ok;

/// What a conversion may take at most.
const MOST_KIB: u64 = 256 << 10;
/// What it may take more at 64 TiB than at a smaller size: how buffers fall differs from run to run.
const SPREAD_KIB: u64 = 32 << 10;

/// A sparse raw disk with 2,000 scattered blocks.
fn scattered(folder: &Path, size: u64) {
    let file = File::create(folder.join("disk")).unwrap();
    file.set_len(size).unwrap();
    let mut state = 1u64;
    for n in 0..2000u32 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let block = (state >> 12) % (size / 4096);
        file.write_all_at(&[n as u8 | 1; 4096], block * 4096).unwrap();
    }
}

/// Runs `vdisk` and gives the peak of its resident memory in KiB.
fn peak_kib(folder: &Path, args: &[&str]) -> u64 {
    let report = folder.join("peak");
    let mut all = vec!["-f", "%M", "-o", e2e::tools::arg(&report), env!("CARGO_BIN_EXE_vdisk")];
    all.extend(args);
    e2e::tools::ok("time", &all);
    std::fs::read_to_string(report).unwrap().trim().parse().unwrap()
}

#[test]
fn memory_of_a_conversion_does_not_grow_with_the_disk() {
    if !e2e::tools::have(&["time"]) {
        return;
    }
    // 16 TiB less a page is the longest file of ext4; the larger disk is made of a qcow2 image.
    for (step, size) in [("1 TiB", 1u64 << 40), ("8 TiB", 8 << 40)] {
        let dir = tempfile::tempdir().unwrap();
        scattered(dir.path(), size);
        let path = |name: &str| e2e::tools::arg(&dir.path().join(name)).to_owned();
        let convert = |args: &[&str]| {
            let peak = peak_kib(dir.path(), args);
            assert!(peak <= MOST_KIB, "{step}: {args:?} took {peak} KiB");
            peak
        };
        convert(&["convert", "-f", "raw", "-O", "qcow2", &path("disk"), &path("plain")]);
        convert(&["convert", "-c", "-O", "qcow2", &path("plain"), &path("packed")]);
        let copy = ["convert", "-m", "8", "-O", "qcow2", &path("packed"), &path("copy")];
        let before = convert(&copy);
        std::fs::remove_file(path("copy")).unwrap();
        ok(dir.path(), &["resize", "-q", "packed", "64T"]);
        let largest = convert(&copy);
        assert!(
            largest <= before + SPREAD_KIB,
            "64 TiB took {largest} KiB, {step} {before} KiB"
        );
    }
}

#[test]
fn output_is_the_same_whatever_the_number_of_workers() {
    let dir = tempfile::tempdir().unwrap();
    scattered(dir.path(), 256 << 20);
    for (format, options) in [
        ("raw", vec![]),
        ("qcow2", vec![]),
        ("qcow2", vec!["-c"]),
        ("vmdk", vec!["-o", "subformat=streamOptimized"]),
        ("vdi", vec![]),
        ("parallels", vec![]),
        ("qed", vec![]),
        ("dmg", vec![]),
    ] {
        let copy = |workers: &str| {
            let mut args = vec!["convert", "-m", workers, "-f", "raw", "-O", format];
            args.extend(&options);
            args.extend(["disk", "copy"]);
            let _ = std::fs::remove_file(dir.path().join("copy"));
            ok(dir.path(), &args);
            without_identity(std::fs::read(dir.path().join("copy")).unwrap(), format)
        };
        let one = copy("1");
        for workers in ["2", "7"] {
            assert!(copy(workers) == one, "{format} {options:?} with {workers} workers");
        }
    }
}

/// Blanks what is random by design: the identifiers in the first sectors of some formats.
fn without_identity(mut bytes: Vec<u8>, format: &str) -> Vec<u8> {
    let identity = match format {
        "vdi" => 0x188..0x1a8,
        "vmdk" => 512..21 * 512,
        _ => 0..0,
    };
    bytes[identity].fill(0);
    bytes
}
