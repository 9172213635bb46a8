//! The table in `docs/formats/README.md` says what the drivers say of themselves. `VDISK_UPDATE=1` rewrites it.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

use std::fmt::Write;
use std::fs;
use std::path::Path;

use vdisk_engine::formats::{Capabilities, DRIVERS};

const INTRODUCTION: &str = "# Formats

What each driver can do, and what of it qemu-img 10.0.2 can: **yes** both, **+** this program alone, **qemu** qemu-img alone. This page is
generated from the drivers' `Capabilities` and from what qemu-img answers; `GET /v1/formats` and `vdisk formats` give the drivers' part with every
create option.

";

const STORAGES: &str = "
Where images lie: files, [block devices](devices.md), [NBD exports](nbd.md) (read, written and converted to), [web servers](http.md) (read) and
folders ([vvfat](vvfat.md), read).
";

/// A heading and what it says of a driver.
type Column = (&'static str, fn(&Capabilities) -> bool);

const COLUMNS: [Column; 14] = [
    ("create", |c| c.create),
    ("write", |c| c.write),
    ("backing", |c| c.backing),
    ("rebase", |c| c.change_backing),
    ("discard", |c| c.discard),
    ("compress", |c| c.compress),
    ("grow", |c| c.grow),
    ("shrink", |c| c.shrink),
    ("check", |c| c.check),
    ("repair", |c| c.repair),
    ("snapshots", |c| c.snapshots),
    ("bitmaps", |c| c.bitmaps),
    ("encryption", |c| c.encryption),
    ("measure", |c| c.measure),
];

/// What qemu-img 10.0.2 does with each format, by the names of the columns; `read` is one of them. What it says of itself is compared
/// with this where it is installed.
const PEER: &[(&str, &[&str])] = &[
    (
        "raw",
        &["read", "create", "write", "discard", "grow", "shrink", "measure"],
    ),
    ("bochs", &["read"]),
    ("cloop", &["read"]),
    ("dmg", &["read"]),
    (
        "luks",
        &["read", "create", "write", "grow", "shrink", "encryption", "measure"],
    ),
    ("parallels", &["read", "create", "write", "discard", "check", "repair"]),
    (
        "qcow2",
        &[
            "read",
            "create",
            "write",
            "backing",
            "rebase",
            "discard",
            "compress",
            "grow",
            "shrink",
            "check",
            "repair",
            "snapshots",
            "bitmaps",
            "encryption",
            "measure",
        ],
    ),
    // `convert -c` to qcow fails at its end.
    ("qcow", &["read", "create", "write", "backing", "encryption"]),
    (
        "qed",
        &[
            "read", "create", "write", "backing", "rebase", "grow", "check", "repair",
        ],
    ),
    ("vdi", &["read", "create", "write", "check"]),
    ("vhdx", &["read", "create", "write", "check", "repair"]),
    ("vmdk", &["read", "create", "write", "backing", "compress", "check"]),
    ("vpc", &["read", "create", "write"]),
    ("vvfat", &["read", "write"]),
];

fn peer_can(format: &str, what: &str) -> bool {
    PEER.iter().any(|(name, list)| *name == format && list.contains(&what))
}

fn mark(format: &str, what: &str, ours: bool) -> &'static str {
    match (ours, peer_can(format, what)) {
        (true, true) => "yes",
        (true, false) => "+",
        (false, true) => "qemu",
        (false, false) => "",
    }
}

fn table() -> String {
    let mut text = String::from(INTRODUCTION);
    let names: Vec<_> = COLUMNS.iter().map(|(name, _)| *name).collect();
    writeln!(text, "| format | read | {} |", names.join(" | ")).unwrap();
    writeln!(text, "|---|---|{}", "---|".repeat(COLUMNS.len())).unwrap();
    for driver in DRIVERS {
        let marks: Vec<_> = COLUMNS
            .iter()
            .map(|(what, has)| mark(driver.name(), what, has(driver.capabilities())))
            .collect();
        let name = match driver.name() {
            "raw" => "raw".to_owned(),
            name => format!("[{name}]({name}.md)"),
        };
        let read = mark(driver.name(), "read", true);
        writeln!(text, "| {name} | {read} | {} |", marks.join(" | ")).unwrap();
    }
    writeln!(text).unwrap();
    for driver in DRIVERS {
        let aliases = driver.aliases();
        let also = if aliases.is_empty() {
            String::new()
        } else {
            format!(" (also `{}`)", aliases.join("`, `"))
        };
        writeln!(text, "- **{}**{also}: {}", driver.name(), driver.description()).unwrap();
    }
    text.push_str(STORAGES);
    text
}

#[test]
fn the_table_of_formats_is_true() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/formats/README.md");
    let table = table();
    if std::env::var_os("VDISK_UPDATE").is_some() {
        fs::write(&page, &table).unwrap();
    }
    let committed = fs::read_to_string(&page).unwrap_or_default();
    assert!(
        committed == table,
        "docs/formats/README.md is stale: run this test with VDISK_UPDATE=1"
    );
}

#[test]
fn every_format_with_a_header_has_its_page() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/formats");
    for driver in DRIVERS.iter().filter(|d| d.name() != "raw") {
        assert!(
            folder.join(format!("{}.md", driver.name())).is_file(),
            "{}",
            driver.name()
        );
    }
}

/// A qemu-img that is asked what it can do.
struct Peer {
    folder: tempfile::TempDir,
    format: &'static str,
}

impl Peer {
    fn run(&self, args: &[&str]) -> bool {
        let program = e2e::tools::find("qemu-img").unwrap();
        let out = std::process::Command::new(program)
            .args(args)
            .current_dir(self.folder.path())
            .output()
            .unwrap();
        out.status.success()
    }
    fn create(&self, name: &str, more: &[&str]) -> bool {
        let f = self.format;
        match f {
            "luks" => self.run(
                &[
                    &["create", "-f", f, "--object", SECRET, "-o", "key-secret=k,iter-time=10"],
                    more,
                    &[name, "4M"],
                ]
                .concat(),
            ),
            _ => self.run(&[&["create", "-f", f], more, &[name, "4M"]].concat()),
        }
    }
    fn can(&self, what: &str) -> bool {
        let f = self.format;
        // No question to qemu-img tells these apart; deriving keys takes it seconds for each question about LUKS.
        if ["write", "discard", "encryption"].contains(&what) || f == "luks" && what != "create" {
            return peer_can(f, what);
        }
        let _ = fs::remove_file(self.folder.path().join("i"));
        if what == "compress" {
            let more: &[&str] = if f == "vmdk" {
                &["-o", "subformat=streamOptimized"]
            } else {
                &[]
            };
            return self.run(&[&["convert", "-c", "-O", f], more, &["raw", "i"]].concat());
        }
        let made = self.create("i", &[]);
        match what {
            "create" => made,
            "backing" => self.create("o", &["-b", "i", "-F", f]),
            "rebase" => self.create("o", &["-b", "i", "-F", f]) && self.run(&["rebase", "-u", "-f", f, "-b", "", "o"]),
            "grow" => self.run(&["resize", "-f", f, "i", "8M"]),
            "shrink" => self.run(&["resize", "--shrink", "-f", f, "i", "2M"]),
            "check" => self.run(&["check", "-f", f, "i"]),
            "repair" => self.run(&["check", "-r", "all", "-f", f, "i"]),
            "snapshots" => self.run(&["snapshot", "-c", "s", "i"]),
            "bitmaps" => self.run(&["bitmap", "--add", "-f", f, "i", "b"]),
            "measure" => self.run(&["measure", "-O", f, "--size", "4M"]),
            other => unreachable!("no question for {other}"),
        }
    }
}

const SECRET: &str = "secret,id=k,data=open";

#[test]
fn what_the_table_says_of_qemu_img_is_what_it_does() {
    if !e2e::tools::have(&["qemu-img"]) {
        return;
    }
    let mut wrong = Vec::new();
    for driver in DRIVERS {
        let peer = Peer {
            folder: tempfile::tempdir().unwrap(),
            format: driver.name(),
        };
        fs::write(peer.folder.path().join("raw"), vec![1; 1 << 20]).unwrap();
        // What it cannot create is asked for nothing else.
        let creates = peer_can(driver.name(), "create");
        for (what, _) in COLUMNS.iter().filter(|(what, _)| creates || *what == "create") {
            if peer.can(what) != peer_can(driver.name(), what) {
                wrong.push(format!("{}: {what}", driver.name()));
            }
        }
    }
    assert!(wrong.is_empty(), "the table is wrong about {wrong:?}");
}
