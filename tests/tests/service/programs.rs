//! The program's commands, as a person at a terminal runs them.

use std::process::{Command, Output};

use crate::vdiskd::{Vdiskd, folder, program};

fn vdiskd(args: &[&str]) -> Output {
    Command::new(program())
        .args(args)
        .env_remove("VDISKD_LISTEN")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn quickstart_runs_the_main_job_and_exits_with_0() {
    let data = folder();
    let folder = data.path().join("vdisk-data");
    let args = [
        "quickstart",
        "--exit",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        folder.to_str().unwrap(),
    ];
    for run in ["first", "second"] {
        let output = vdiskd(&args);
        let told = text(&output.stdout);
        assert!(output.status.success(), "{run}: {told}{}", text(&output.stderr));
        for word in [
            "uploaded",
            "an overlay on it",
            "queued job",
            "succeeded",
            "its map starts so",
            "compressed",
        ] {
            assert!(told.contains(word), "{run}: '{word}' is missing in\n{told}");
        }
    }
}

#[test]
fn the_health_check_tells_by_its_exit_status() {
    let data = folder();
    let server = Vdiskd::start(data.path(), &[]);
    let address = server.url.strip_prefix("http://").unwrap().to_owned();
    assert!(vdiskd(&["healthcheck", "--listen", &address]).status.success());
    assert_eq!(server.terminate(), 0);
    assert_eq!(vdiskd(&["healthcheck", "--listen", &address]).status.code(), Some(1));
}

#[test]
fn the_health_check_says_when_nobody_answers() {
    // Connections are taken by the system, and stay unanswered.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let asked = vdiskd(&["healthcheck", "--listen", &address]);
    assert_eq!(asked.status.code(), Some(1));
    assert_eq!(text(&asked.stderr), "vdiskd: no answer within 5 seconds\n");
}

#[test]
fn addresses_that_others_reach_need_the_explicit_choice() {
    let data = folder();
    let refused = vdiskd(&[
        "serve",
        "--listen",
        "0.0.0.0:0",
        "--data-dir",
        data.path().to_str().unwrap(),
    ]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused.stderr).contains("--allow-unauthenticated"),
        "{}",
        text(&refused.stderr)
    );
    assert_eq!(
        std::fs::read_dir(data.path()).unwrap().count(),
        0,
        "nothing was touched"
    );
}

#[test]
fn options_that_are_not_known_are_refused() {
    let data = folder();
    let file = data.path().join("vdiskd.toml");
    std::fs::write(&file, "wrokers = 2\n").unwrap();
    let refused = vdiskd(&["serve", "--config", file.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("wrokers"), "{}", text(&refused.stderr));
}

#[test]
fn the_example_configuration_can_be_read() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../docker/vdiskd.toml");
    let data = folder();
    let port_taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = port_taken.local_addr().unwrap().to_string();
    let output = vdiskd(&[
        "serve",
        "--config",
        example,
        "--listen",
        &address,
        "--data-dir",
        data.path().to_str().unwrap(),
    ]);
    // It gets as far as the address, which is taken.
    assert!(
        text(&output.stderr).contains("cannot listen"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_data_folder_has_one_owner() {
    let data = folder();
    let _first = Vdiskd::start(data.path(), &[]);
    let second = vdiskd(&[
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        data.path().to_str().unwrap(),
    ]);
    assert_eq!(second.status.code(), Some(1), "{}", text(&second.stdout));
}
