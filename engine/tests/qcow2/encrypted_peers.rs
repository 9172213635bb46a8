//! Encrypted images both ways with qemu-img and qemu-io.

use std::path::Path;

use e2e::tools::{arg, have, ok};
use vdisk_engine::env::CreateSpec;
use vdisk_engine::image::NothingBelow;
use vdisk_engine::options::Options;

use crate::support::{Scratch, assert_clean, encrypted, opening, pattern, read_all};

const SIZE: u64 = 1_100_288;
const SECRET: [&str; 2] = ["--object", "secret,id=s,data=letmein"];

/// Create options beside those of encryption: every kind of image that stores data differently.
const SHAPES: &[&[(&str, &str)]] = &[
    &[],
    &[("compat", "0.10")],
    &[("cluster_size", "512")],
    &[("cluster_size", "2097152")],
    &[("extended_l2", "on")],
    &[("refcount_bits", "1")],
    &[("data_file", "data.raw")],
];

/// Cipher, mode, IV generator, its hash, hash.
const CIPHERS: &[[&str; 5]] = &[
    ["aes-128", "xts", "plain64", "", "sha1"],
    ["aes-192", "xts", "plain", "", "sha512"],
    ["aes-256", "cbc", "essiv", "sha256", "ripemd160"],
    ["aes-256", "ctr", "plain64", "", "sha256"],
    ["aes-256", "ecb", "plain64", "", "sha224"],
    ["serpent-256", "xts", "plain64", "", "sha384"],
    ["twofish-128", "cbc", "plain", "", "sha256"],
    ["cast5-128", "cbc", "plain64", "", "sha1"],
];

fn source(path: &Path) -> String {
    format!("driver=qcow2,encrypt.key-secret=s,file.filename={}", arg(path))
}

fn cases() -> Vec<Vec<(&'static str, String)>> {
    let mut list = Vec::new();
    for shape in SHAPES {
        for format in ["luks", "aes"] {
            let mut options = encrypted(format);
            options.extend(shape.iter().map(|(name, value)| (*name, (*value).to_owned())));
            list.push(options);
        }
    }
    for [alg, mode, iv, iv_hash, hash] in CIPHERS {
        let mut options = encrypted("luks");
        let names = ["cipher-alg", "cipher-mode", "ivgen-alg", "ivgen-hash-alg", "hash-alg"];
        const PREFIXED: [&str; 5] = [
            "encrypt.cipher-alg",
            "encrypt.cipher-mode",
            "encrypt.ivgen-alg",
            "encrypt.ivgen-hash-alg",
            "encrypt.hash-alg",
        ];
        assert!(PREFIXED.iter().zip(names).all(|(long, short)| long.ends_with(short)));
        let values = [alg, mode, iv, iv_hash, hash];
        let given = PREFIXED.iter().zip(values).filter(|(_, value)| !value.is_empty());
        options.extend(given.map(|(name, value)| (*name, (*value).to_owned())));
        list.push(options);
    }
    list
}

/// The data file stands beside the image, by its full name: QEMU takes others from where it was started.
fn options(list: &[(&'static str, String)], scratch: &Scratch) -> Options {
    list.iter().fold(Options::new(), |o, (name, value)| match *name {
        "data_file" => o.with(*name, arg(&scratch.file(value))),
        _ => o.with(*name, value.clone()),
    })
}

/// A key of LUKS costs QEMU seconds: of those some are enough.
fn cheap(list: &&Vec<(&'static str, String)>) -> bool {
    let has = |name: &str, values: &[&str]| list.iter().any(|(n, v)| *n == name && values.contains(&v.as_str()));
    list.len() == 3
        || has("encrypt.format", &["aes"])
        || has("extended_l2", &["on"])
        || has("data_file", &["data.raw"])
        || has("encrypt.ivgen-alg", &["essiv"])
        || has("encrypt.cipher-alg", &["serpent-256", "cast5-128"])
}

/// What qemu-img reads.
fn qemu_reads(path: &Path, scratch: &Scratch) -> Vec<u8> {
    let raw = scratch.file("read.raw");
    let from = source(path);
    ok(
        "qemu-img",
        &[
            &["convert"],
            &SECRET[..],
            &["--image-opts", &from, "-O", "raw", arg(&raw)],
        ]
        .concat(),
    );
    std::fs::read(raw).unwrap()
}

fn qemu_checks(path: &Path) {
    ok(
        "qemu-img",
        &[&["check"], &SECRET[..], &["--image-opts", &source(path)]].concat(),
    );
}

#[test]
fn qemu_reads_and_finds_sound_what_we_write() {
    if !have(&["qemu-img"]) {
        return;
    }
    let scratch = Scratch::new();
    for list in cases() {
        let path = scratch.file("ours.qcow2");
        scratch.create(&path, SIZE, options(&list, &scratch));
        let image = scratch
            .try_open_with(&path, &opening(&list), |env| env.writable())
            .unwrap();
        let mut model = vec![0; SIZE as usize];
        for (at, len, seed) in [
            (0, 600_000, 1),
            (300_000, 200_001, 2),
            (1_000_001, 1, 3),
            (1_090_000, 10_288, 4),
        ] {
            let data: Vec<u8> = pattern(len).iter().map(|b| b ^ seed).collect();
            image.write(at as u64, &data, &NothingBelow).unwrap();
            model[at..at + len].copy_from_slice(&data);
        }
        image.write_zeroes(100_000, 150_000, true, &NothingBelow).unwrap();
        model[100_000..250_000].fill(0);
        image.close().unwrap();
        drop(image);
        assert!(qemu_reads(&path, &scratch) == model, "{list:?}");
        qemu_checks(&path);
    }
}

#[test]
fn we_read_what_qemu_writes() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let scratch = Scratch::new();
    for list in cases().iter().filter(cheap) {
        let path = scratch.file("theirs.qcow2");
        let created = options(list, &scratch);
        let text: Vec<_> = created.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let size = SIZE.to_string();
        let text = text.join(",");
        ok(
            "qemu-img",
            &[
                &["create", "-q", "-f", "qcow2"],
                &SECRET[..],
                &["-o", &text, arg(&path), &size],
            ]
            .concat(),
        );
        let writes = [
            "write -P 1 0 600000",
            "write -P 2 300000 200001",
            "write -P 3 1000001 1",
            "write -z 100000 150000",
        ];
        let writes: Vec<&str> = writes.iter().flat_map(|w| ["-c", w]).collect();
        ok(
            "qemu-io",
            &[&SECRET[..], &["--image-opts", &source(&path)], &writes].concat(),
        );
        let mut model = vec![0; SIZE as usize];
        model[..600_000].fill(1);
        model[300_000..500_001].fill(2);
        model[1_000_001] = 3;
        model[100_000..250_000].fill(0);
        let image = scratch.try_open_with(&path, &opening(list), |env| env).unwrap();
        assert!(read_all(&*image) == model, "{list:?}");
        assert_clean(&*image);
        let _ = std::fs::remove_file(path);
    }
}

#[test]
fn compressed_clusters_that_qemu_wrote_are_read() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let scratch = Scratch::new();
    for format in ["luks", "aes"] {
        let list = encrypted(format);
        let path = scratch.file("packed.qcow2");
        scratch.create(&path, SIZE, options(&list, &scratch));
        let writes = ["-c", "write -P 5 0 64k", "-c", "write -c -P 6 64k 64k"];
        ok(
            "qemu-io",
            &[&SECRET[..], &["--image-opts", &source(&path)], &writes].concat(),
        );
        let image = scratch
            .try_open_with(&path, &opening(&list), |env| env.writable())
            .unwrap();
        let mut seen = vec![0; 131_072];
        image.read(0, &mut seen).unwrap();
        assert!(
            seen[..65_536] == [5; 65_536] && seen[65_536..] == [6; 65_536],
            "{format}"
        );
        // Changing a part of a compressed cluster stores it encrypted.
        image.write(70_000, &[7; 10], &NothingBelow).unwrap();
        image.close().unwrap();
        drop(image);
        let theirs = qemu_reads(&path, &scratch);
        assert!(
            theirs[65_536..70_000] == [6; 4464] && theirs[70_000..70_010] == [7; 10],
            "{format}"
        );
        qemu_checks(&path);
    }
}

#[test]
fn an_encrypted_overlay_copies_what_it_needs_from_its_base() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let scratch = Scratch::new();
    let base = scratch.file("base.raw");
    let data = pattern(SIZE as usize);
    std::fs::write(&base, &data).unwrap();
    for format in ["luks", "aes"] {
        let list = encrypted(format);
        let path = scratch.file("overlay.qcow2");
        let backing = vdisk_engine::image::BackingReference {
            name: arg(&base).to_owned(),
            format: Some("raw".into()),
        };
        let spec = CreateSpec {
            virtual_size: SIZE,
            options: options(&list, &scratch),
            backing: Some(backing),
        };
        scratch.create_spec(&path, &spec).unwrap();
        let image = scratch
            .try_open_with(&path, &opening(&list), |env| env.writable())
            .unwrap();
        let mut model = data.clone();
        image.write(5000, &[1; 100], &Whole(&data)).unwrap();
        model[5000..5100].fill(1);
        image.close().unwrap();
        drop(image);
        ok(
            "qemu-io",
            &[
                &SECRET[..],
                &["--image-opts", &source(&path), "-c", "write -P 9 500001 70000"],
            ]
            .concat(),
        );
        model[500_001..570_001].fill(9);
        assert!(qemu_reads(&path, &scratch) == model, "{format}");
        let image = scratch.try_open_with(&path, &opening(&list), |env| env).unwrap();
        let mut ours = vec![0; 65_536];
        image.read(0, &mut ours).unwrap();
        assert!(ours == model[..65_536], "{format}");
    }
}

/// The layer below as bytes.
struct Whole<'a>(&'a [u8]);

impl vdisk_engine::image::Below for Whole<'_> {
    fn read(&self, offset: u64, buf: &mut [u8]) -> vdisk_engine::Result<()> {
        buf.copy_from_slice(&self.0[offset as usize..offset as usize + buf.len()]);
        Ok(())
    }
    fn is_zero(&self, _offset: u64, _len: u64) -> vdisk_engine::Result<bool> {
        Ok(false)
    }
}

#[test]
fn info_says_of_encryption_what_qemu_says() {
    if !have(&["qemu-img"]) {
        return;
    }
    let scratch = Scratch::new();
    for list in cases() {
        let path = scratch.file("info.qcow2");
        scratch.create(&path, SIZE, options(&list, &scratch));
        let theirs = ok("qemu-img", &["info", "--output=json", arg(&path)]);
        let theirs: serde_json::Value = serde_json::from_str(&theirs).unwrap();
        let info = scratch
            .try_open(&path, |env| env.metadata_only())
            .unwrap()
            .info()
            .unwrap();
        assert_eq!(theirs["encrypted"], info.encrypted, "{list:?}");
        let ours = serde_json::Value::Object(info.specific.unwrap());
        assert_eq!(
            theirs["format-specific"]["data"]["encrypt"], ours["encrypt"],
            "{list:?}"
        );
    }
}
