//! VHD.

use e2e::tools::{arg, have, ok};
use sha2::{Digest, Sha256};
use vdisk_engine::image::{ExtentKind, Repair, Resize};
use vdisk_engine::ops::map::map;
use vdisk_engine::options::Options;
use vdisk_engine::{Control, ErrorKind};

use crate::support::{Folder, assert_same, contents, hex, libvhdi_contents, nonzero_digest, qemu_map};

fn folder() -> (tempfile::TempDir, Folder) {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder(dir.path().to_owned());
    (dir, folder)
}

#[test]
fn new_images_have_the_bytes_of_qemu_img() {
    if !have(&["qemu-img"]) {
        return;
    }
    let (_dir, folder) = folder();
    let mut number = 0;
    for subformat in ["dynamic", "fixed"] {
        for force in ["off", "on"] {
            for size in [
                0u64,
                1,
                512,
                1 << 20,
                5_000_000,
                528_482_304,
                4 << 30,
                33_822_351_360,
                130 << 30,
            ] {
                if subformat == "fixed" && size > 1 << 30 {
                    continue;
                }
                number += 1;
                let (ours, theirs) = (format!("o{number}"), folder.path(&format!("t{number}")));
                let options = Options::new().with("subformat", subformat).with("force_size", force);
                folder.create(&ours, "vpc", size, None, options).unwrap();
                let option = format!("subformat={subformat},force_size={force}");
                ok(
                    "qemu-img",
                    &["create", "-f", "vpc", "-o", &option, arg(&theirs), &size.to_string()],
                );
                let mut a = std::fs::read(folder.path(&ours)).unwrap();
                let mut b = std::fs::read(&theirs).unwrap();
                assert_eq!(a.len(), b.len(), "{option} {size}");
                // Time, sum and identity differ.
                for bytes in [&mut a, &mut b] {
                    let end = bytes.len() - 512;
                    for footer in [0, end] {
                        for field in [24..28, 64..68, 68..84] {
                            if bytes[footer..].starts_with(b"conectix") {
                                bytes[footer..][field].fill(0);
                            }
                        }
                    }
                }
                assert!(a == b, "{option} {size}");
            }
        }
    }
}

#[test]
fn a_disk_over_2040_gib_is_refused() {
    let (_dir, folder) = folder();
    for force in ["on", "off"] {
        let options = Options::new().with("force_size", force);
        let error = folder.create(force, "vpc", 2041 << 30, None, options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
}

#[test]
fn qemu_and_libvhdi_read_what_we_write() {
    if !have(&["qemu-img"]) {
        return;
    }
    for subformat in ["dynamic", "fixed"] {
        let (_dir, folder) = folder();
        let options = Options::new().with("subformat", subformat).with("force_size", "on");
        folder.create("a.vhd", "vpc", (9 << 20) + 512, None, options).unwrap();
        let chain = folder.open("a.vhd", "vpc", true);
        for (offset, len, byte) in [(7 << 20, 3000, 1), (100, 2 << 20, 2), (9 << 20, 512, 3)] {
            chain.write(offset, &vec![byte; len]).unwrap();
        }
        chain.write_zeroes(1 << 20, 4096, true).unwrap();
        chain
            .top()
            .resize(&Resize {
                virtual_size: 9_000_000_000,
                ..Resize::default()
            })
            .unwrap();
        chain
            .top()
            .resize(&Resize {
                virtual_size: 40 << 20,
                shrink: true,
                ..Resize::default()
            })
            .unwrap();
        chain.write(39 << 20, &[4; 513]).unwrap();
        chain.top().close().unwrap();
        let bytes = contents(&chain);
        drop(chain);
        assert_eq!(bytes[100], 2);
        assert_eq!(bytes[1 << 20], 0);
        std::fs::write(folder.path("raw"), &bytes).unwrap();
        ok(
            "qemu-img",
            &[
                "compare",
                "-f",
                "vpc",
                "-F",
                "raw",
                arg(&folder.path("a.vhd")),
                arg(&folder.path("raw")),
            ],
        );
        if let Some(theirs) = libvhdi_contents(&folder.path("a.vhd")) {
            // libvhdi shows as much as the disk had when it was made.
            assert_eq!(theirs.len(), (9 << 20) + 512);
            assert_same(&theirs, &bytes[..theirs.len()], subformat);
        }
    }
}

#[test]
fn we_read_and_map_what_qemu_writes() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    for subformat in ["dynamic", "fixed"] {
        let (_dir, folder) = folder();
        let (path, raw) = (folder.path("a.vhd"), folder.path("a.raw"));
        let option = format!("subformat={subformat}");
        ok("qemu-img", &["create", "-f", "vpc", "-o", &option, arg(&path), "20M"]);
        let io = [
            "-c",
            "write -P 1 13M 70k",
            "-c",
            "write -P 2 19M 1M",
            "-c",
            "write -P 3 0 512",
            "-c",
            "write -P 4 2M 3M",
        ];
        ok("qemu-io", &[&["-f", "vpc"][..], &io, &[arg(&path)]].concat());
        ok(
            "qemu-img",
            &["convert", "-f", "vpc", "-O", "raw", arg(&path), arg(&raw)],
        );
        let chain = folder.open("a.vhd", "vpc", false);
        assert!(contents(&chain) == std::fs::read(&raw).unwrap());
        let ours = map(&chain, 0, chain.virtual_size()).map(|entry| {
            let entry = entry.unwrap();
            assert!(entry.present, "{subformat} {:#x}", entry.start);
            (entry.start, entry.length, entry.zero, entry.place.map(|p| p.offset))
        });
        assert_eq!(ours.collect::<Vec<_>>(), qemu_map(&path, "vpc"), "{subformat}");
        let report = chain.top().check(Repair::No, &Control::default()).unwrap();
        assert_eq!((report.corruptions, report.leaks), (0, 0), "{:?}", report.messages);
    }
}

#[test]
fn qemu_io_goes_on_where_we_stopped() {
    if !have(&["qemu-io"]) {
        return;
    }
    let (_dir, folder) = folder();
    folder.create("a.vhd", "vpc", 20 << 20, None, Options::new()).unwrap();
    let chain = folder.open("a.vhd", "vpc", true);
    chain.write(3 << 20, &[1; 4096]).unwrap();
    chain.top().close().unwrap();
    drop(chain);
    let path = folder.path("a.vhd");
    ok(
        "qemu-io",
        &[
            "-f",
            "vpc",
            "-c",
            "write -P 2 9M 1M",
            "-c",
            "read -P 1 3M 4k",
            arg(&path),
        ],
    );
    let chain = folder.open("a.vhd", "vpc", true);
    chain.write(15 << 20, &[3; 4096]).unwrap();
    chain.top().close().unwrap();
    let bytes = contents(&chain);
    drop(chain);
    let found = [3 << 20, 9 << 20, (10 << 20) - 1, 15 << 20].map(|at: usize| bytes[at]);
    assert_eq!(found, [1, 2, 2, 3]);
    ok(
        "qemu-io",
        &[
            "-r",
            "-f",
            "vpc",
            "-c",
            "read -P 1 3M 4k",
            "-c",
            "read -P 2 9M 1M",
            "-c",
            "read -P 3 15M 4k",
            arg(&path),
        ],
    );
}

/// Whole bytes of the bitmaps where the base is not zero: libvhdi takes each sector after the first present one of a group of eight
/// for present.
#[test]
fn libvhdi_reads_our_overlays() {
    let (_dir, folder) = folder();
    folder.create("base.vhd", "vpc", 9 << 20, None, Options::new()).unwrap();
    let base = folder.open("base.vhd", "vpc", true);
    base.write(1 << 20, &vec![7; 5 << 20]).unwrap();
    base.top().close().unwrap();
    let size = base.virtual_size();
    drop(base);
    folder
        .create("top.vhd", "vpc", size, Some("base.vhd"), Options::new())
        .unwrap();
    let top = folder.open("top.vhd", "vpc", true);
    let mut model = contents(&top);
    assert_eq!(model[1 << 20], 7);
    for (offset, len, byte) in [
        (1000usize, 100usize, 1u8),
        (3 << 20, 17 * 4096, 2),
        (size as usize - 700, 700, 3),
    ] {
        top.write(offset as u64, &vec![byte; len]).unwrap();
        model[offset..offset + len].fill(byte);
    }
    top.write_zeroes(4 << 20, 77 * 4096, true).unwrap();
    model[4 << 20..(4 << 20) + 77 * 4096].fill(0);
    top.top().close().unwrap();
    assert!(contents(&top) == model);
    drop(top);
    if let Some(theirs) = libvhdi_contents(&folder.path("top.vhd")) {
        assert_same(&theirs, &model, "overlay");
    }
}

#[test]
fn an_overlay_over_another_disk_is_refused() {
    let (_dir, folder) = folder();
    for name in ["base.vhd", "other.vhd"] {
        folder.create(name, "vpc", 4 << 20, None, Options::new()).unwrap();
    }
    let size = folder.open("base.vhd", "vpc", false).virtual_size();
    folder
        .create("top.vhd", "vpc", size, Some("base.vhd"), Options::new())
        .unwrap();
    folder.open("top.vhd", "vpc", false);
    std::fs::rename(folder.path("other.vhd"), folder.path("base.vhd")).unwrap();
    let error = folder.open_with("top.vhd", "vpc", false, Options::new()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("expected unique id"), "{error}");
}

#[test]
fn an_overlay_without_its_base_is_refused() {
    let (_dir, folder) = folder();
    folder.create("base.vhd", "vpc", 4 << 20, None, Options::new()).unwrap();
    let size = folder.open("base.vhd", "vpc", false).virtual_size();
    folder
        .create("top.vhd", "vpc", size, Some("base.vhd"), Options::new())
        .unwrap();
    std::fs::remove_file(folder.path("base.vhd")).unwrap();
    assert!(folder.open_with("top.vhd", "vpc", false, Options::new()).is_err());
}

#[test]
fn the_size_rule_of_the_creator_can_be_overruled() {
    let Some(samples) = e2e::corpus::samples(&["vpc"]) else {
        return;
    };
    // QEMU's own test 146 gives these numbers.
    for (name, rule, size) in [
        ("qemu/virtualpc-dynamic.vhd", None, 136_363_130_880),
        ("qemu/virtualpc-dynamic.vhd", Some("current_size"), 136_365_211_648),
        ("qemu/hyperv2012r2-dynamic.vhd", None, 136_365_211_648),
        ("qemu/hyperv2012r2-dynamic.vhd", Some("chs"), 136_363_130_880),
        ("qemu/d2v-zerofilled.vhd", None, 263_454_720),
    ] {
        let sample = samples.iter().find(|s| s.name() == name).unwrap();
        let folder = Folder(sample.path.parent().unwrap().to_owned());
        let options = rule.map_or(Options::new(), |r| Options::new().with("force_size_calc", r));
        let file = sample.path.file_name().unwrap().to_str().unwrap();
        let chain = folder.open_with(file, "vpc", false, options).unwrap();
        assert_eq!(chain.virtual_size(), size, "{name} {rule:?}");
    }
}

/// The specification has a bit a sector. libvhdi (up to 20260901) shifts a byte of the bitmap without masking it: after the first present
/// sector of a group of eight it takes the others for present, too. A digest that only libvhdi gives is compared with that mistake made.
fn read_as_libvhdi(chain: &vdisk_engine::Chain, bytes: &mut [u8]) {
    let mut offset = 0;
    while offset < bytes.len() as u64 {
        let group = (offset / 4096 + 1) * 4096;
        let top = chain.top().extent(offset, group - offset).unwrap();
        if matches!(top.kind, ExtentKind::Data { .. }) {
            chain
                .top()
                .read(offset, &mut bytes[offset as usize..group as usize])
                .unwrap();
            offset = group;
        } else {
            offset += top.len;
        }
    }
}

#[test]
fn the_corpus_has_the_content_of_its_manifest() {
    let Some(samples) = e2e::corpus::samples(&["vpc"]) else {
        return;
    };
    let mut read = 0;
    for sample in samples {
        let folder = Folder(sample.path.parent().unwrap().to_owned());
        let file = sample.path.file_name().unwrap().to_str().unwrap();
        if sample.get("notes").contains("must fail") {
            assert!(
                folder.open_with(file, "vpc", false, Options::new()).is_err(),
                "{}",
                sample.name()
            );
            continue;
        }
        let chain = folder.open(file, "vpc", false);
        assert_eq!(Some(chain.virtual_size()), sample.virtual_size(), "{}", sample.name());
        if let Some(digest) = sample.nonzero_digest() {
            assert_eq!(nonzero_digest(&chain), digest, "{}", sample.name());
        }
        if let Some(digest) = sample.content_sha256() {
            let mut bytes = contents(&chain);
            if digest.starts_with("libvhdi:") {
                read_as_libvhdi(&chain, &mut bytes);
            }
            let ours = hex(&Sha256::digest(bytes));
            assert!(digest.contains(&ours), "{}: {ours}, not {digest}", sample.name());
        }
        assert_eq!(
            vdisk_engine::formats::detect(chain.top().storages()[0].as_ref()).unwrap()[0]
                .0
                .name(),
            "vpc",
            "{}",
            sample.name()
        );
        read += 1;
    }
    assert!(read >= 14, "only {read} images");
}

#[test]
fn converting_makes_a_file_no_larger_than_qemu_img_does() {
    use std::os::unix::fs::MetadataExt;
    if !have(&["qemu-img"]) {
        return;
    }
    let (_dir, folder) = folder();
    let mut bytes = vec![0u8; 40 << 20];
    for at in (0..bytes.len()).step_by(1 << 19) {
        bytes[at..at + 4096].fill(at as u8 | 1);
    }
    std::fs::write(folder.path("raw"), &bytes).unwrap();
    let source = folder.open("raw", "raw", false);
    folder.convert(&source, "ours", "vpc", Options::new().with("force_size", "on"));
    let (raw, theirs) = (folder.path("raw"), folder.path("theirs"));
    ok(
        "qemu-img",
        &[
            "convert",
            "-f",
            "raw",
            "-O",
            "vpc",
            "-o",
            "force_size=on",
            arg(&raw),
            arg(&theirs),
        ],
    );
    let blocks = |name: &str| std::fs::metadata(folder.path(name)).unwrap().blocks();
    assert!(
        blocks("ours") <= blocks("theirs") * 102 / 100,
        "{} {}",
        blocks("ours"),
        blocks("theirs")
    );
    ok(
        "qemu-img",
        &[
            "compare",
            "-f",
            "raw",
            "-F",
            "vpc",
            arg(&raw),
            arg(&folder.path("ours")),
        ],
    );
}
