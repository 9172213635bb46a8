//! Every readable format to every writable one, with all values of all create options, at sizes that hurt, and with qemu-img on the other
//! end where it knows the format.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

mod support;
mod variants;

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use e2e::tools::{arg, have, run};
use support::{fault, open, write};
use variants::Variant;
use vdisk_engine::formats::DRIVERS;
use vdisk_engine::{Chain, ErrorKind};

/// Formats of qemu-img 10.0.2 that it reads here, and those of them that it checks.
const PEER_READS: [&str; 10] = [
    "raw",
    "qcow2",
    "qcow",
    "qed",
    "vdi",
    "vmdk",
    "vpc",
    "vhdx",
    "parallels",
    "bochs",
];
const PEER_CHECKS: [&str; 5] = ["qcow2", "qed", "vdi", "vhdx", "parallels"];
/// Formats that it writes.
const PEER_WRITES: [&str; 9] = ["raw", "qcow2", "qcow", "qed", "vdi", "vmdk", "vpc", "vhdx", "parallels"];

const MIB: u64 = 1 << 20;

/// A raw image in a sparse file: data at the start, in the middle and at the end, zeroes written and not written between.
fn raw(path: &Path, size: u64) -> Chain {
    let file = std::fs::File::create(path).unwrap();
    file.set_len(size).unwrap();
    let put = |at: u64, len: u64, seed: u64| {
        let len = len.min(size.saturating_sub(at));
        let bytes: Vec<u8> = (0..len).map(|i| (i / 97 * 31 + seed) as u8 | 1).collect();
        file.write_all_at(&bytes, at).unwrap();
    };
    put(0, 70_000, 3);
    put(size / 2 / 512 * 512, 200_001, 5);
    put(size.saturating_sub(1000), 1000, 7);
    file.write_all_at(
        &vec![0; size.min(9000) as usize],
        (size / 3 / 512 * 512).min(size.saturating_sub(9000)),
    )
    .unwrap();
    open(path, "raw", false).unwrap()
}

/// A folder in memory, where there is such a file system: what is synced need not wait for a disk.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    match memory.is_dir() {
        true => tempfile::tempdir_in(memory),
        false => tempfile::tempdir(),
    }
    .unwrap()
}

/// All variants of all formats that can be created.
fn all_variants() -> Vec<Variant> {
    DRIVERS
        .iter()
        .filter(|d| d.capabilities().create)
        .flat_map(|d| variants::of(*d))
        .collect()
}

/// Does `work` for each job on as many threads as there are processors; gives what they found wrong.
fn each<T: Sync>(jobs: &[T], work: impl Fn(&T, &Path) -> Vec<String> + Sync) -> Vec<String> {
    let (next, faults) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let folder = scratch();
                    let found = work(job, folder.path());
                    faults.lock().unwrap().extend(found);
                }
            });
        }
    });
    faults.into_inner().unwrap()
}

fn assert_none(faults: &[String]) {
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// An image of each readable format.
fn sources(folder: &Path) -> Vec<(String, PathBuf)> {
    let mut all = Vec::new();
    let content = raw(&folder.join("content"), 2 * MIB + 3 * 4096);
    for driver in DRIVERS {
        let path = folder.join(driver.name());
        match driver.name() {
            "vvfat" => {
                std::fs::create_dir(&path).unwrap();
                std::fs::write(path.join("a file.txt"), vec![9; 70_000]).unwrap();
            }
            "iso" => {
                std::fs::copy(folder.join("content"), &path).unwrap();
                let file = std::fs::File::options().write(true).open(&path).unwrap();
                // The primary volume descriptor and the end of the list (ECMA-119, 8.1).
                file.write_all_at(b"\x01CD001\x01", 16 * 2048).unwrap();
                file.write_all_at(b"\xffCD001\x01", 17 * 2048).unwrap();
            }
            _ => write(&variants::of(*driver)[0], &path, &content).unwrap(),
        }
        all.push((driver.name().to_owned(), path));
    }
    all
}

#[test]
fn every_readable_format_becomes_every_writable_one() {
    let folder = scratch();
    let (sources, variants) = (sources(folder.path()), all_variants());
    let faults = each(&variants, |variant, folder| {
        let mut faults = Vec::new();
        for (format, path) in &sources {
            let source = open(path, format, false).unwrap();
            // Past the end of its content an encrypted disk is noise: no size that is rounded up.
            if variant.has("sector-size", "4096") && !source.virtual_size().is_multiple_of(4096) {
                continue;
            }
            let below = tempfile::tempdir_in(folder).unwrap();
            let image = below.path().join("image");
            let found = match write(variant, &image, &source) {
                Err(error) => Some(format!("cannot be written: {error}")),
                Ok(()) => fault(&source, &image, variant.driver.name()),
            };
            faults.extend(found.map(|f| format!("{format} to {}: {f}", variant.name())));
        }
        faults
    });
    println!(
        "{} formats read x {} formats written with their options ({} ways) = {} conversions",
        sources.len(),
        DRIVERS.iter().filter(|d| d.capabilities().create).count(),
        variants.len(),
        sources.len() * variants.len()
    );
    assert_none(&faults);
}

#[test]
fn sizes_that_hurt_are_kept_and_qemu_img_agrees() {
    let peer = have(&["qemu-img"]);
    let folder = scratch();
    let sizes = [0, 512, 3 * MIB + 512 * 7, (2 << 30) + 512 * 3, 2 << 40];
    let contents: Vec<_> = sizes.iter().map(|size| folder.path().join(size.to_string())).collect();
    for (path, size) in contents.iter().zip(sizes) {
        raw(path, size);
    }
    let variants = all_variants();
    let (made, asked) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let faults = each(&variants, |variant, folder| {
        let mut faults = Vec::new();
        for (content, size) in contents.iter().zip(sizes) {
            // Past the end of its content an encrypted disk is noise: no size that is rounded up.
            let rounded = variant.has("sector-size", "4096") && size % 4096 != 0;
            if rounded || size > 1 << 30 && is_slow(variant, size) {
                continue;
            }
            let below = tempfile::tempdir_in(folder).unwrap();
            let image = below.path().join("image");
            let source = open(content, "raw", false).unwrap();
            let format = variant.driver.name();
            let mut found = match write(variant, &image, &source) {
                // Not every format has room for 2 TiB, or knows an empty disk.
                Err(error) if is_refusal(error.kind(), size) => continue,
                Err(error) => Some(format!("cannot be written: {error}")),
                Ok(()) => fault(&source, &image, format),
            };
            made.fetch_add(1, Ordering::Relaxed);
            if peer && found.is_none() && peer_reads(variant, size) {
                asked.fetch_add(1, Ordering::Relaxed);
                found = peer_fault(content, &image, format);
            }
            faults.extend(found.map(|f| format!("{size} bytes as {}: {f}", variant.name())));
        }
        faults
    });
    println!(
        "{} images of {} sizes, {} of them read and checked by qemu-img",
        made.into_inner(),
        sizes.len(),
        asked.into_inner()
    );
    assert_none(&faults);
}

fn is_refusal(kind: ErrorKind, size: u64) -> bool {
    let refused = [
        ErrorKind::InvalidArgument,
        ErrorKind::Unsupported,
        ErrorKind::LimitExceeded,
    ]
    .contains(&kind);
    // An empty VMDK is made as qemu-img makes it, and refused as qemu-img refuses it.
    size == 0 && kind == ErrorKind::Corrupt || refused && (size == 0 || size >= 1 << 40)
}

/// Ways that store zeroes, or tables for the whole disk, are not tried with gigabytes.
fn is_slow(variant: &Variant, size: u64) -> bool {
    let small = ["512", "4k"]
        .iter()
        .any(|v| variant.has("cluster_size", v) || variant.has("block_size", v));
    let streams = ["cloop", "dmg", "luks"].contains(&variant.driver.name());
    variant.is_full() || streams || size > 1 << 40 && (small || !variant.options.is_empty())
}

/// Whether qemu-img reads what a variant makes. It does not read what it refuses to make itself: other block sizes of VDI, QED tables of
/// one cluster, QED clusters of 64 MiB (its largest size overflows), and empty images of some formats.
fn peer_reads(variant: &Variant, size: u64) -> bool {
    let ours = variant.options.iter().any(|(n, _)| *n == "block_size") && variant.driver.name() == "vdi"
        || variant.has("table_size", "1")
        || variant.has("cluster_size", "64M");
    let empty = ["vhdx", "vpc", "vmdk"].contains(&variant.driver.name());
    PEER_READS.contains(&variant.driver.name()) && !ours && !(empty && size == 0) && size < 1 << 40
}

/// What qemu-img finds wrong.
fn peer_fault(content: &Path, image: &Path, format: &str) -> Option<String> {
    let out = run(
        "qemu-img",
        &["compare", "-f", "raw", "-F", format, arg(content), arg(image)],
    );
    if !out.status.success() {
        let text = [out.stdout, out.stderr].concat();
        return Some(format!("qemu-img compare: {}", String::from_utf8_lossy(&text)));
    }
    if !PEER_CHECKS.contains(&format) {
        return None;
    }
    let out = run("qemu-img", &["check", "-f", format, arg(image)]);
    let text = [out.stdout, out.stderr].concat();
    (!out.status.success()).then(|| format!("qemu-img check: {}", String::from_utf8_lossy(&text)))
}

#[test]
fn what_qemu_img_writes_with_any_option_is_read() {
    if !have(&["qemu-img"]) {
        return;
    }
    let folder = scratch();
    let content = folder.path().join("content");
    raw(&content, 3 * MIB + 512 * 7);
    let ways: Vec<Variant> = all_variants()
        .into_iter()
        .filter(|v| PEER_WRITES.contains(&v.driver.name()))
        .collect();
    let (written, refused) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let faults = each(&ways, |variant, folder| {
        let image = folder.join("image");
        let options: Vec<_> = variant
            .options
            .iter()
            .map(|(n, v)| format!("{n}={}", variants::placed(folder, n, v)))
            .collect();
        let options = options.join(",");
        let format = variant.driver.name();
        let mut args = vec!["convert", "-f", "raw", "-O", format];
        if variant.compress {
            args.push("-c");
        }
        if !options.is_empty() {
            args.extend(["-o", &options]);
        }
        args.extend([arg(&content), arg(&image)]);
        if !run("qemu-img", &args).status.success() {
            refused.lock().unwrap().push(variant.name());
            return Vec::new();
        }
        written.fetch_add(1, Ordering::Relaxed);
        let source = open(&content, "raw", false).unwrap();
        let found = fault(&source, &image, format);
        found
            .map(|f| format!("qemu-img's {}: {f}", variant.name()))
            .into_iter()
            .collect()
    });
    println!(
        "{} images of qemu-img read; it refuses {:?}",
        written.into_inner(),
        refused.into_inner().unwrap()
    );
    assert_none(&faults);
}
