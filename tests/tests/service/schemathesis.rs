//! schemathesis reads the document and asks the running program whatever the document allows, and what it does not.

use std::process::Command;

use crate::python::{environment, root};
use crate::vdiskd::{Vdiskd, folder};

/// Cases of each operation; `VDISK_SCHEMATHESIS_EXAMPLES` makes them more.
fn examples() -> String {
    std::env::var("VDISK_SCHEMATHESIS_EXAMPLES").unwrap_or_else(|_| "20".to_owned())
}

#[test]
fn the_program_does_what_its_document_says() {
    let Some(environment) = environment() else {
        return;
    };
    let place = folder();
    let server = Vdiskd::start(&place.path().join("data"), &[]);
    let mut run = Command::new(environment.join("venv/bin/schemathesis"));
    run.arg("--config-file").arg(root().join("tests/schemathesis.toml"));
    run.args(["run", &format!("{}/openapi.json", server.url)]);
    run.args([
        "--phases",
        "examples,coverage,fuzzing,stateful",
        "--seed",
        "20261128",
        "--workers",
        "2",
    ]);
    run.args(["--max-examples", &examples(), "--no-color"]);
    let output = run.current_dir(place.path()).output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{told}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let cases = told
        .lines()
        .find(|line| line.contains(" generated"))
        .unwrap_or_default();
    assert!(!cases.is_empty(), "{told}");
    println!("{}", cases.trim());
}
