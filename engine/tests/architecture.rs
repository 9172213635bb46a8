//! What the engine must not know.

#![expect(clippy::unwrap_used, reason = "a broken precondition fails the test")]

use std::fs;
use std::path::{Path, PathBuf};

use vdisk_engine::formats::DRIVERS;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All sources below a folder, without their test modules.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join("src").join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|e| e == "rs") && !is_test(&entry) {
                let text = fs::read_to_string(&entry).unwrap();
                let code = text
                    .split("#[cfg(test)]\nmod tests {")
                    .next()
                    .unwrap_or_default()
                    .to_owned();
                found.push((entry, code));
            }
        }
    }
    assert!(!found.is_empty(), "{folder}");
    found
}

fn is_test(path: &Path) -> bool {
    path.components().any(|c| {
        c.as_os_str()
            .to_str()
            .is_some_and(|c| c == "tests" || c == "tests.rs" || c.ends_with("_tests.rs"))
    })
}

/// Fails with every line of code that holds one of the words.
fn assert_absent(folder: &str, words: &[String], why: &str) {
    let mut found = Vec::new();
    for (path, code) in sources(folder) {
        for (number, line) in code.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if let Some(word) = words.iter().find(|w| code.contains(w.as_str())) {
                found.push(format!("{}:{}: {word}", path.display(), number + 1));
            }
        }
    }
    assert!(found.is_empty(), "{why}:\n{}", found.join("\n"));
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|w| (*w).to_owned()).collect()
}

#[test]
fn the_engine_depends_on_no_runtime_database_or_transport() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    for name in ["tokio", "sqlx", "axum", "tonic", "hyper", "vdisk-service", "vdisk-api"] {
        assert!(!manifest.lines().any(|l| l.starts_with(name)), "{name}");
    }
}

#[test]
fn the_engine_reads_no_clock_and_no_environment() {
    let clock = words(&[
        "SystemTime::now",
        "Instant::now",
        "std::env::",
        "env::var",
        "UNIX_EPOCH",
    ]);
    for folder in ["", "formats", "ops", "storage"] {
        assert_absent(folder, &clock, "time and environment come in as parameters");
    }
}

#[test]
fn formats_do_not_know_the_operations() {
    assert_absent(
        "formats",
        &words(&["crate::ops", "super::ops"]),
        "a driver knows storages and the driver traits",
    );
}

#[test]
fn formats_do_not_know_each_other() {
    for driver in DRIVERS {
        let folder = root().join("src/formats").join(driver.name());
        if !folder.is_dir() {
            continue;
        }
        let others = DRIVERS.iter().filter(|d| d.name() != driver.name());
        let others: Vec<_> = others.map(|d| format!("formats::{}::", d.name())).collect();
        assert_absent(
            &format!("formats/{}", driver.name()),
            &others,
            "a driver uses no other driver",
        );
    }
}

#[test]
fn operations_match_no_format_by_name() {
    let names: Vec<_> = DRIVERS.iter().map(|d| format!("\"{}\"", d.name())).collect();
    assert_absent(
        "ops",
        &names,
        "what depends on the format is asked of the traits and capabilities",
    );
}
