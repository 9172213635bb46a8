//! A Python client generated from the OpenAPI document runs the main job; a validator accepts the document.

use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::corpus;

use crate::vdiskd::{Vdiskd, folder};

/// Versions that were tried; newer ones may generate other names.
const PACKAGES: [&str; 3] = [
    "openapi-python-client==0.29.1",
    "openapi-spec-validator==0.9.0",
    "schemathesis==4.32.5",
];

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The folder of a Python environment with the generator, the validator and the tester, made once below `target/`.
pub fn environment() -> Option<PathBuf> {
    let folder = root().join("target/e2e-python");
    std::fs::create_dir_all(&folder).unwrap();
    let lock = std::fs::File::create(folder.join("lock")).unwrap();
    lock.lock().unwrap();
    let ready = folder.join("ready");
    if std::fs::read_to_string(&ready).is_ok_and(|made| made == PACKAGES.join(" ")) {
        return Some(folder);
    }
    let venv = Command::new("python3")
        .args(["-m", "venv"])
        .arg(folder.join("venv"))
        .status();
    if !venv.is_ok_and(|status| status.success()) {
        e2e::skip("python3 with venv is not there");
        return None;
    }
    let pip = Command::new(folder.join("venv/bin/pip"))
        .args(["install", "--quiet"])
        .args(PACKAGES)
        .status();
    if !pip.is_ok_and(|status| status.success()) {
        e2e::skip("the packages of the Python client cannot be installed");
        return None;
    }
    std::fs::write(&ready, PACKAGES.join(" ")).unwrap();
    Some(folder)
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    let told = [output.stdout, output.stderr].concat();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&told)
    );
}

#[test]
fn a_validator_accepts_the_document() {
    let Some(environment) = environment() else {
        return;
    };
    let validator = environment.join("venv/bin/openapi-spec-validator");
    run(Command::new(validator)
        .args(["--schema", "3.1"])
        .arg(root().join("openapi/openapi.json")));
}

#[test]
fn a_generated_python_client_runs_the_main_job() {
    let (Some(environment), Some(samples)) = (environment(), corpus::samples(&["qcow2"])) else {
        return;
    };
    let sample = samples
        .into_iter()
        .find(|sample| sample.name() == "dfvfs/ext2.qcow2")
        .unwrap();
    let place = folder();
    let client = place.path().join("client");
    let mut generate = Command::new(environment.join("venv/bin/openapi-python-client"));
    generate
        .arg("generate")
        .arg("--path")
        .arg(root().join("openapi/openapi.json"));
    run(generate
        .arg("--meta")
        .arg("none")
        .arg("--output-path")
        .arg(client.join("vdiskd_client")));
    let server = Vdiskd::start(&place.path().join("data"), &[]);
    let mut story = Command::new(environment.join("venv/bin/python"));
    story
        .arg(root().join("tests/python/story.py"))
        .arg(&server.url)
        .arg(&sample.path);
    run(story.arg(sample.content_sha256().unwrap()).env("PYTHONPATH", client));
}
