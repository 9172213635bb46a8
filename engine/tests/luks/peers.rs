//! What qemu-img and cryptsetup write we read, and the other way round.

use std::path::Path;

use e2e::tools::{self, arg, have, ok};
use tempfile::tempdir;
use vdisk_engine::image::{NothingBelow, Resize};
use vdisk_engine::options::Options;

use super::support::{create, open, pattern, read_all};

const SIZE: u64 = 1 << 20;

type Row = (&'static str, &'static str, &'static str, &'static str, &'static str);

/// Cipher, mode, IV generator, its hash, hash: every value that QEMU 10.0.2 offers, and the combinations that differ in kind.
/// Not among them: volume keys of 24 bytes, whose key material is no multiple of a sector: QEMU ends with a failed assertion.
const COMBINATIONS: &[Row] = &[
    ("aes-256", "xts", "plain64", "", "sha256"),
    ("aes-256", "xts", "plain64", "sha256", "sha256"),
    ("aes-128", "xts", "plain64", "", "sha1"),
    ("aes-128", "cbc", "plain", "sha1", "sha256"),
    ("aes-192", "xts", "plain", "", "sha512"),
    ("aes-256", "xts", "essiv", "sha256", "ripemd160"),
    ("aes-128", "cbc", "essiv", "sha256", "sha256"),
    ("aes-128", "cbc", "plain64", "", "sha224"),
    ("aes-256", "cbc", "plain", "", "sha384"),
    ("aes-256", "ctr", "plain64", "", "sha256"),
    ("aes-256", "ecb", "plain64", "", "sha256"),
    ("serpent-128", "cbc", "plain64", "", "sha256"),
    ("serpent-192", "xts", "plain64", "", "sha256"),
    ("serpent-256", "xts", "essiv", "sha256", "sha1"),
    ("twofish-128", "xts", "plain64", "", "sha256"),
    ("twofish-128", "cbc", "plain", "", "sha256"),
    ("twofish-192", "xts", "plain64", "", "sha256"),
    ("twofish-256", "cbc", "essiv", "sha256", "sha256"),
    ("cast5-128", "cbc", "plain64", "", "sha1"),
    ("cast5-128", "ctr", "plain64", "", "sha256"),
];

/// Every cipher with every mode and IV generator, the hashes in turn: for `VDISK_LUKS_MATRIX=1`, which takes minutes.
fn whole_matrix() -> Vec<Row> {
    let ciphers = [
        "aes-128",
        "aes-192",
        "aes-256",
        "serpent-128",
        "serpent-192",
        "serpent-256",
        "twofish-128",
        "twofish-192",
        "twofish-256",
        "cast5-128",
    ];
    let generators = [("plain", ""), ("plain64", ""), ("essiv", "sha256")];
    let mut hashes = ["sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160"]
        .into_iter()
        .cycle();
    let mut rows = Vec::new();
    for cipher in ciphers {
        for mode in ["ecb", "cbc", "ctr", "xts"] {
            // Keys of 24 bytes end QEMU with an assertion; blocks of 8 bytes have no XTS.
            let excluded = (cipher.ends_with("-192") && mode != "xts") || (cipher == "cast5-128" && mode == "xts");
            for (iv, iv_hash) in generators.iter().filter(|_| !excluded) {
                rows.push((cipher, mode, *iv, *iv_hash, hashes.next().unwrap()));
            }
        }
    }
    rows
}

#[test]
fn the_whole_matrix_goes_both_ways_with_qemu() {
    if std::env::var_os("VDISK_LUKS_MATRIX").is_none() || !have(&["qemu-img"]) {
        return;
    }
    let dir = tempdir().unwrap();
    let (raw, path) = (dir.path().join("data.raw"), dir.path().join("x.luks"));
    let data = pattern(SIZE as usize, 3);
    std::fs::write(&raw, &data).unwrap();
    let (mut agreed, mut refused) = (0, Vec::new());
    for row in whole_matrix() {
        let text: Vec<_> = options(&row)
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let text = format!("key-secret=s,iter-time=10,{}", text.join(","));
        let [object, value] = secret();
        let args = [
            "convert",
            object,
            value,
            "-O",
            "luks",
            "-o",
            &text,
            arg(&raw),
            arg(&path),
        ];
        let theirs = tools::run("qemu-img", &args);
        if theirs.status.success() {
            let image = open(&path, "letmein").unwrap();
            assert!(read_all(image.as_ref()) == data, "{row:?}, written by QEMU");
            drop(image);
            std::fs::remove_file(&path).unwrap();
            create(&path, SIZE, options(&row), "letmein").unwrap();
            let image = open(&path, "letmein").unwrap();
            image.write(0, &data, &NothingBelow).unwrap();
            image.close().unwrap();
            drop(image);
            assert!(qemu_reads(&path) == data, "{row:?}, written by us");
            agreed += 1;
        } else {
            refused.push(row);
        }
        let _ = std::fs::remove_file(&path);
    }
    println!("{agreed} agree, QEMU refuses {}: {refused:?}", refused.len());
    assert!(agreed > 70, "{agreed}");
}

fn options(row: &Row) -> Options {
    let (alg, mode, iv, iv_hash, hash) = *row;
    let options = Options::new()
        .with("cipher-alg", alg)
        .with("cipher-mode", mode)
        .with("ivgen-alg", iv);
    let options = options.with("hash-alg", hash);
    if iv_hash.is_empty() {
        options
    } else {
        options.with("ivgen-hash-alg", iv_hash)
    }
}

fn secret() -> [&'static str; 2] {
    ["--object", "secret,id=s,data=letmein"]
}

fn image_opts(path: &Path) -> String {
    format!("driver=luks,key-secret=s,file.driver=file,file.filename={}", arg(path))
}

/// What qemu-img reads from a volume.
fn qemu_reads(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("raw");
    let [object, value] = secret();
    ok(
        "qemu-img",
        &[
            "convert",
            object,
            value,
            "--image-opts",
            &image_opts(path),
            "-O",
            "raw",
            arg(&raw),
        ],
    );
    std::fs::read(raw).unwrap()
}

#[test]
fn qemu_reads_what_we_write_with_every_cipher() {
    if !have(&["qemu-img"]) {
        return;
    }
    let dir = tempdir().unwrap();
    for row in COMBINATIONS {
        let path = dir.path().join("ours.luks");
        create(&path, SIZE, options(row), "letmein").unwrap();
        let image = open(&path, "letmein").unwrap();
        let data = pattern(SIZE as usize, 7);
        image.write(0, &data, &NothingBelow).unwrap();
        image.close().unwrap();
        drop(image);
        assert!(qemu_reads(&path) == data, "{row:?}");
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn we_read_what_qemu_writes() {
    if !have(&["qemu-img"]) {
        return;
    }
    let dir = tempdir().unwrap();
    let data = pattern(SIZE as usize, 9);
    let raw = dir.path().join("data.raw");
    std::fs::write(&raw, &data).unwrap();
    // A key costs QEMU two seconds: one of each cipher, with different modes.
    for row in COMBINATIONS.iter().filter(|row| {
        matches!(
            row,
            ("aes-256", "xts", "plain64", ..) | (_, "cbc", "essiv", ..) | ("serpent-192" | "cast5-128", ..)
        )
    }) {
        let path = dir.path().join("theirs.luks");
        let text: Vec<_> = options(row)
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let text = format!("key-secret=s,iter-time=10,{}", text.join(","));
        let [object, value] = secret();
        ok(
            "qemu-img",
            &[
                "convert",
                object,
                value,
                "-O",
                "luks",
                "-o",
                &text,
                arg(&raw),
                arg(&path),
            ],
        );
        let image = open(&path, "letmein").unwrap();
        assert!(read_all(image.as_ref()) == data, "{row:?}");
    }
}

#[test]
fn qemu_io_agrees_on_every_unaligned_write() {
    if !have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let dir = tempdir().unwrap();
    let path = dir.path().join("io.luks");
    create(&path, SIZE, Options::new(), "letmein").unwrap();
    let image = open(&path, "letmein").unwrap();
    image.write_zeroes(0, SIZE, false, &NothingBelow).unwrap();
    let mut model = vec![0; SIZE as usize];
    for (offset, len, fill) in [
        (0, 1, 1),
        (511, 2, 2),
        (1000, 5000, 3),
        (512, 512, 4),
        (70_001, 300_000, 5),
        (SIZE - 3, 3, 6),
    ] {
        image.write(offset, &vec![fill; len as usize], &NothingBelow).unwrap();
        model[offset as usize..(offset + len) as usize].fill(fill);
    }
    image.close().unwrap();
    drop(image);
    let [object, value] = secret();
    let write = "write -P 9 4097 1023";
    ok(
        "qemu-io",
        &[object, value, "--image-opts", &image_opts(&path), "-c", write],
    );
    model[4097..4097 + 1023].fill(9);
    assert!(qemu_reads(&path) == model);
    let image = open(&path, "letmein").unwrap();
    assert!(read_all(image.as_ref()) == model);
    let mut part = vec![0; 5001];
    image.read(999, &mut part).unwrap();
    assert!(part == model[999..6000]);
}

#[test]
fn info_says_what_qemu_says() {
    if !have(&["qemu-img"]) {
        return;
    }
    let dir = tempdir().unwrap();
    for row in COMBINATIONS.iter().take(5) {
        let path = dir.path().join("info.luks");
        create(&path, SIZE, options(row), "letmein").unwrap();
        let theirs = ok("qemu-img", &["info", "--output=json", arg(&path)]);
        let theirs: serde_json::Value = serde_json::from_str(&theirs).unwrap();
        let image = open(&path, "letmein").unwrap();
        let ours = serde_json::Value::from(image.info().unwrap().specific.unwrap());
        assert_eq!(ours, theirs["format-specific"]["data"], "{row:?}");
        assert_eq!(image.virtual_size(), theirs["virtual-size"]);
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_resized_volume_is_as_long_as_qemu_says() {
    if !have(&["qemu-img"]) {
        return;
    }
    let dir = tempdir().unwrap();
    let path = dir.path().join("resize.luks");
    create(&path, SIZE, Options::new(), "letmein").unwrap();
    let image = open(&path, "letmein").unwrap();
    let data = pattern(SIZE as usize, 1);
    image.write(0, &data, &NothingBelow).unwrap();
    image
        .resize(&Resize {
            virtual_size: 3 * SIZE,
            ..Resize::default()
        })
        .unwrap();
    assert!(
        image
            .resize(&Resize {
                virtual_size: SIZE / 2,
                ..Resize::default()
            })
            .is_err()
    );
    drop(image);
    let read = qemu_reads(&path);
    assert!(read.len() as u64 == 3 * SIZE && read[..SIZE as usize] == data);
    let image = open(&path, "letmein").unwrap();
    image
        .resize(&Resize {
            virtual_size: SIZE / 2,
            shrink: true,
            ..Resize::default()
        })
        .unwrap();
    drop(image);
    assert!(qemu_reads(&path) == data[..SIZE as usize / 2]);
}

#[test]
fn cryptsetup_opens_what_we_create() {
    if !have(&["cryptsetup"]) {
        return;
    }
    let dir = tempdir().unwrap();
    // Without device-mapper cryptsetup can unlock these alone, whoever made them.
    let usable = |row: &&Row| {
        let hash = row.2 == "essiv" || row.3.is_empty();
        matches!(row.0, "aes-128" | "aes-256") && matches!(row.1, "xts" | "cbc") && hash
    };
    for row in COMBINATIONS
        .iter()
        .filter(usable)
        .chain(&[("aes-192", "cbc", "plain64", "", "sha256")])
    {
        let path = dir.path().join("ours.luks");
        create(&path, SIZE, options(row), "letmein").unwrap();
        let key = dir.path().join("key");
        std::fs::write(&key, "letmein").unwrap();
        ok(
            "cryptsetup",
            &["open", "--test-passphrase", "--key-file", arg(&key), arg(&path)],
        );
        let dump = ok("cryptsetup", &["luksDump", arg(&path)]);
        assert!(dump.contains("Version:       \t1"), "{dump}");
        std::fs::write(&key, "wrong").unwrap();
        let out = tools::run(
            "cryptsetup",
            &["open", "--test-passphrase", "--key-file", arg(&key), arg(&path)],
        );
        assert_eq!(out.status.code(), Some(2));
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn we_open_what_cryptsetup_formats_and_each_of_its_keys() {
    if !have(&["cryptsetup"]) {
        return;
    }
    let dir = tempdir().unwrap();
    let (path, key, second) = (
        dir.path().join("c.luks"),
        dir.path().join("key"),
        dir.path().join("second"),
    );
    std::fs::write(&key, "letmein").unwrap();
    std::fs::write(&second, b"\xff\0second").unwrap();
    for (cipher, bits, hash) in [
        ("aes-xts-plain64", "512", "sha256"),
        ("aes-cbc-essiv:sha256", "256", "whirlpool"),
    ] {
        std::fs::write(&path, vec![0; 4 << 20]).unwrap();
        let format = [
            "luksFormat",
            "--type",
            "luks1",
            "-q",
            "--pbkdf-force-iterations",
            "1000",
            "--cipher",
            cipher,
        ];
        let more = ["--key-size", bits, "--hash", hash, arg(&path), arg(&key)];
        ok("cryptsetup", &[&format[..], &more[..]].concat());
        let add = [
            "luksAddKey",
            "--pbkdf-force-iterations",
            "1000",
            "--key-file",
            arg(&key),
            arg(&path),
            arg(&second),
        ];
        ok("cryptsetup", &add);
        for passphrase in [&b"letmein"[..], b"\xff\0second"] {
            assert!(
                super::support::open_on(super::support::file(&path), passphrase).is_ok(),
                "{cipher} {hash}"
            );
        }
        assert!(open(&path, "other").is_err());
    }
}

/// QEMU makes a file as long as it was told, and counts it in whole sectors.
#[test]
fn a_volume_of_odd_length_is_as_long_as_with_qemu() {
    if !have(&["qemu-img"]) {
        return;
    }
    let dir = tempdir().unwrap();
    let path = dir.path().join("odd.luks");
    let [object, value] = secret();
    let options = "key-secret=s,iter-time=10";
    let args = [
        "create",
        "-q",
        object,
        value,
        "-f",
        "luks",
        "-o",
        options,
        arg(&path),
        "1000",
    ];
    ok("qemu-img", &args);
    let image = open(&path, "letmein").unwrap();
    assert_eq!(image.virtual_size(), 1024);
    assert!(read_all(image.as_ref()) == qemu_reads(&path));
    image.write(0, &pattern(1024, 2), &NothingBelow).unwrap();
    image.close().unwrap();
    drop(image);
    assert!(qemu_reads(&path) == pattern(1024, 2));
}
