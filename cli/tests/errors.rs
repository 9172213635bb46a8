//! Bad images and bad usage: `vdisk` and qemu-img end with the same exit code and the same class of error.
//!
//! Where the words are the same, too, the command lines stand in `usage.txt` and `images.txt`. Here our messages say more than qemu-img's.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// How our answer may differ.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Alike,
    /// We refuse what qemu-img takes: it would show bytes that are not the guest's.
    Stricter,
    /// We take what qemu-img refuses: a second copy of the table is whole.
    Kinder,
}

/// An image, and what is wrong with it: bytes (hexadecimal) at offsets, or a new length.
struct Bad {
    what: &'static str,
    format: &'static str,
    changes: &'static [(u64, &'static str)],
    cut: Option<u64>,
    wanted: Wanted,
}

const fn qcow2(what: &'static str, changes: &'static [(u64, &'static str)]) -> Bad {
    of("qcow2", what, changes)
}

const fn of(format: &'static str, what: &'static str, changes: &'static [(u64, &'static str)]) -> Bad {
    Bad {
        what,
        format,
        changes,
        cut: None,
        wanted: Wanted::Alike,
    }
}

const fn short(format: &'static str, what: &'static str, len: u64) -> Bad {
    Bad {
        what,
        format,
        changes: &[],
        cut: Some(len),
        wanted: Wanted::Alike,
    }
}

/// 64 KiB clusters: header 0, refcount table 1, block 2, L1 3, L2 4, data 5.
const BAD: &[Bad] = &[
    qcow2("magic", &[(0, "00")]),
    qcow2("version 0", &[(4, "00000000")]),
    qcow2("version 1", &[(4, "00000001")]),
    qcow2("version 4", &[(4, "00000004")]),
    qcow2("cluster bits 8", &[(20, "00000008")]),
    qcow2("cluster bits 22", &[(20, "00000016")]),
    qcow2("cluster bits 63", &[(20, "0000003f")]),
    qcow2(
        "backing name past the cluster",
        &[(8, "0000000000020000"), (16, "00000008")],
    ),
    qcow2(
        "backing name of 1024 bytes",
        &[(8, "0000000000000400"), (16, "00000400")],
    ),
    qcow2("size 2^63", &[(24, "8000000000000000")]),
    qcow2("encryption 3", &[(32, "00000003")]),
    qcow2("encryption 2 without a header", &[(32, "00000002")]),
    qcow2("L1 of 2^32-1", &[(36, "ffffffff")]),
    qcow2("L1 too small", &[(36, "00000000")]),
    qcow2("L1 unaligned", &[(40, "0000000000030200")]),
    qcow2("L1 far away", &[(40, "4000000000000000")]).but(Wanted::Stricter),
    qcow2("refcount table unaligned", &[(48, "0000000000010200")]),
    qcow2("refcount table of 0", &[(56, "00000000")]),
    qcow2("refcount table of 2^32-1", &[(56, "ffffffff")]),
    qcow2("65537 snapshots", &[(60, "00010001")]),
    qcow2("snapshots unaligned", &[(60, "00000001"), (64, "0000000000030200")]),
    qcow2("feature bit 5", &[(72, "0000000000000020")]),
    qcow2("feature bit 63", &[(72, "8000000000000000")]),
    qcow2("data file without a name", &[(72, "0000000000000004")]).but(Wanted::Stricter),
    qcow2("refcount order 7", &[(96, "00000007")]),
    qcow2("header length 72", &[(100, "00000048")]),
    qcow2("header length past the cluster", &[(100, "00010001")]),
    qcow2("extension past the cluster", &[(112, "12345678 7fffffff")]),
    qcow2("compression type 255", &[(72, "0000000000000008"), (104, "ff")]),
    qcow2("marked corrupt", &[(72, "0000000000000002")]),
    qcow2("L2 table is the L1 table", &[(0x3_0000, "8000000000030000")]).but(Wanted::Stricter),
    qcow2("L2 table unaligned", &[(0x3_0000, "8000000000042a00")]),
    qcow2("cluster unaligned", &[(0x4_0000, "8000000000052a00")]),
    qcow2("cluster past the end", &[(0x4_0000, "8000000100000000")]).but(Wanted::Stricter),
    qcow2("refcount block unaligned", &[(0x1_0000, "0000000000020200")]),
    qcow2("refcount 0 of data", &[(0x2_000a, "0000")]),
    qcow2("a leak", &[(0x2_0010, "0001")]),
    short("qcow2", "empty", 0),
    short("qcow2", "100 bytes", 100),
    short("qcow2", "without its tables", 70_000).but(Wanted::Stricter),
    of("qed", "cluster size 0", &[(4, "00000000")]),
    of("qed", "table size 3", &[(8, "03000000")]),
    of("qed", "unknown feature", &[(16, "0000000000000080")]),
    of("qed", "L1 unaligned", &[(40, "0100000000000000")]),
    of("vdi", "signature", &[(64, "00000000")]),
    of("vdi", "version", &[(68, "00000000")]),
    of("vdi", "block size 0", &[(0x178, "00000000")]),
    of("vdi", "sector size 1", &[(0x168, "01000000")]),
    of("vdi", "too many blocks", &[(0x180, "ffffffff")]),
    of("vpc", "block size 0", &[(512 + 32, "00000000")]),
    of("vpc", "table of 2^32-1", &[(512 + 28, "ffffffff")]),
    of(
        "vhdx",
        "both headers",
        &[(0x1_0000, "00000000"), (0x2_0000, "00000000")],
    ),
    of("vhdx", "region table", &[(0x3_0000, "00000000")]).but(Wanted::Kinder),
    of("vmdk", "version 9", &[(4, "09000000")]),
    of("vmdk", "grain 0", &[(20, "0000000000000000")]),
    of("vmdk", "1024 entries a table", &[(44, "00040000")]),
    of("parallels", "tracks 0", &[(28, "00000000")]),
    of("parallels", "2^32-1 entries", &[(32, "ffffffff")]),
];

const VERBS: &[&str] = &[
    "info -f FMT bad",
    "map -f FMT bad",
    "convert -f FMT -O raw bad out",
    "resize -f FMT bad 2M",
];

/// What kind of error a program tells.
fn class(out: &Output) -> &'static str {
    let text = String::from_utf8_lossy(&out.stderr);
    let known = [
        ("--help", "usage"),
        ("No such file", "missing"),
        ("Permission denied", "denied"),
        (" lock", "locked"),
        ("Could not open", "open"),
        ("Unknown driver", "driver"),
        ("Unknown file format", "driver"),
        ("nvalid parameter", "argument"),
        ("nvalid option", "argument"),
    ];
    match out.status.code() {
        Some(0) => "fine",
        _ => known
            .iter()
            .find(|(words, _)| text.contains(words))
            .map_or("work", |(_, class)| class),
    }
}

fn run(program: &Path, line: &str, folder: &Path) -> Output {
    let mut command = Command::new(program);
    command.args(line.split(' ')).current_dir(folder).stdin(Stdio::null());
    command.output().unwrap()
}

impl Bad {
    const fn but(mut self, wanted: Wanted) -> Self {
        self.wanted = wanted;
        self
    }
    /// Whether exit codes and classes of qemu-img's answer and ours are as wanted.
    fn is_met(&self, peer: (Option<i32>, &str), ours: (Option<i32>, &str)) -> bool {
        match self.wanted {
            Wanted::Alike => peer == ours,
            Wanted::Stricter => peer == ours || peer.0 == Some(0) && ours.0 == Some(1),
            Wanted::Kinder => peer == ours || peer.0 == Some(1) && ours.0 == Some(0),
        }
    }
    /// Makes the image in a folder.
    fn make(&self, folder: &Path) {
        let path = folder.join("bad");
        let _ = std::fs::remove_file(&path);
        let create = format!("create -q -f {} bad 1M", self.format);
        assert!(run(Path::new("qemu-img"), &create, folder).status.success(), "{create}");
        let io = ["-f", self.format, "-c", "write -P 3 0 64k", "bad"];
        let out = Command::new("qemu-io").args(io).current_dir(folder).output().unwrap();
        assert!(out.status.success(), "{out:?}");
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        for (at, hex) in self.changes {
            let digits: Vec<u8> = hex.bytes().filter(|b| *b != b' ').collect();
            let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
            let bytes: Vec<u8> = digits.chunks(2).map(byte).collect();
            file.write_all_at(&bytes, *at).unwrap();
        }
        if let Some(len) = self.cut {
            file.set_len(len).unwrap();
        }
    }
}

#[test]
fn bad_images_end_alike() {
    if !e2e::tools::have(&["qemu-img", "qemu-io"]) {
        return;
    }
    let bin = tempfile::tempdir().unwrap();
    let ours = bin.path().join("qemu-img");
    symlink(env!("CARGO_BIN_EXE_vdisk"), &ours).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (mut count, mut wrong) = (0, Vec::new());
    for bad in BAD {
        bad.make(folder.path());
        let image = std::fs::read(folder.path().join("bad")).unwrap();
        for verb in VERBS {
            let line = verb.replace("FMT", bad.format);
            let answers = [Path::new("qemu-img"), &ours].map(|program| {
                // A verb that writes must not meet what the other program made of the image.
                std::fs::write(folder.path().join("bad"), &image).unwrap();
                let _ = std::fs::remove_file(folder.path().join("out"));
                let out = run(program, &line, folder.path());
                (
                    out.status.code(),
                    class(&out),
                    String::from_utf8_lossy(&out.stderr).into_owned(),
                )
            });
            count += usize::from(bad.wanted == Wanted::Alike);
            let [peer, ours] = &answers;
            if !bad.is_met((peer.0, peer.1), (ours.0, ours.1)) {
                wrong.push(format!(
                    "{} {}, {line}\n  peer: {:?}\n  ours: {:?}",
                    bad.format, bad.what, peer, ours
                ));
            }
        }
    }
    println!("{count} command lines on bad images end alike");
    assert!(
        wrong.is_empty(),
        "{} of {count} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert!(count >= 200);
}
