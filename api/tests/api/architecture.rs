//! What must not be in this crate.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            found.extend(sources(&entry));
        } else if entry.extension().is_some_and(|kind| kind == "rs") {
            let text = fs::read_to_string(&entry).unwrap();
            found.push((entry, text));
        }
    }
    found
}

/// The names under `[dependencies]`.
fn dependencies() -> Vec<String> {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let table = manifest
        .split("\n[dependencies]\n")
        .nth(1)
        .unwrap()
        .split("\n[")
        .next()
        .unwrap();
    table
        .lines()
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_database_and_the_engine_are_reached_through_the_service() {
    let dependencies = dependencies();
    assert!(dependencies.contains(&"vdisk-service".to_owned()), "{dependencies:?}");
    for forbidden in ["sqlx", "vdisk-engine", "rustix"] {
        assert!(!dependencies.contains(&forbidden.to_owned()), "{forbidden}");
    }
    for (file, text) in sources(&root().join("src")) {
        for word in ["sqlx::", "vdisk_engine::", "std::process::Command"] {
            assert!(!text.contains(word), "{} says {word}", file.display());
        }
    }
}

#[test]
fn statuses_stand_in_one_table() {
    for (file, text) in sources(&root().join("src")) {
        let name = file
            .strip_prefix(root().join("src"))
            .unwrap()
            .to_string_lossy()
            .into_owned();
        if name == "errors.rs" {
            continue;
        }
        // Successes and redirects are the handlers' own.
        for word in [
            "NOT_FOUND",
            "CONFLICT",
            "BAD_REQUEST",
            "UNPROCESSABLE",
            "FORBIDDEN",
            "Code::NotFound",
            "Code::InvalidArgument",
        ] {
            assert!(!text.contains(word), "{name} says {word}");
        }
    }
}

#[test]
fn handlers_are_a_few_lines_over_the_service() {
    for (file, text) in sources(&root().join("src/http")) {
        for handler in text.split("#[utoipa::path").skip(1) {
            let (name, body) = handler.split_once("async fn ").unwrap().1.split_once('(').unwrap();
            let body = body.split("\n}\n").next().unwrap();
            let lines = body.lines().skip_while(|line| !line.ends_with('{')).skip(1).count();
            assert!(lines <= 15, "{name} in {} has {lines} lines", file.display());
        }
    }
}

#[test]
fn files_stay_readable() {
    for (file, text) in sources(&root().join("src")) {
        let lines = text.lines().count();
        assert!(lines <= 400, "{} has {lines} lines", file.display());
    }
}
