//! The table in `docs/formats/README.md` says what the drivers say of themselves. `VDISK_UPDATE=1` rewrites it.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

use std::fmt::Write;
use std::fs;
use std::path::Path;

use vdisk_engine::formats::{Capabilities, DRIVERS};

const INTRODUCTION: &str = "# Formats

What each driver can do. This page is generated from the drivers' `Capabilities`; `GET /v1/formats` and `vdisk formats` give the same with
every create option.

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

fn table() -> String {
    let mut text = String::from(INTRODUCTION);
    let names: Vec<_> = COLUMNS.iter().map(|(name, _)| *name).collect();
    writeln!(text, "| format | read | {} |", names.join(" | ")).unwrap();
    writeln!(text, "|---|---|{}", "---|".repeat(COLUMNS.len())).unwrap();
    for driver in DRIVERS {
        let marks: Vec<_> = COLUMNS
            .iter()
            .map(|(_, has)| if has(driver.capabilities()) { "yes" } else { "" })
            .collect();
        let name = match driver.name() {
            "raw" => "raw".to_owned(),
            name => format!("[{name}]({name}.md)"),
        };
        writeln!(text, "| {name} | yes | {} |", marks.join(" | ")).unwrap();
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
