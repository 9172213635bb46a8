//! The program as a process.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

/// The program's file, built when it is not there yet or stale.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        // target/PROFILE/deps/this-test
        let folder = std::env::current_exe()
            .unwrap()
            .parent()
            .unwrap()
            .parent()
            .unwrap()
            .to_owned();
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "-p", "vdisk-api", "--bin", "vdiskd"]);
        if folder.ends_with("release") {
            build.arg("--release");
        }
        // What cargo tells a test of its own package: build scripts that look at it would run again, and all that is built on them.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CARGO_PKG_") || name == "CARGO_MANIFEST_DIR" {
                build.env_remove(name);
            }
        }
        assert!(
            build
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .status()
                .unwrap()
                .success(),
            "vdiskd does not build"
        );
        folder.join("vdiskd")
    })
}

/// A running vdiskd; killed when dropped.
pub struct Vdiskd {
    pub url: String,
    child: Child,
}

impl Vdiskd {
    /// Starts it on a free port with its files in `data`.
    pub fn start(data: &Path, options: &[&str]) -> Self {
        Self::start_at("127.0.0.1:0", data, options)
    }

    /// Starts it where it is to listen.
    pub fn start_at(listen: &str, data: &Path, options: &[&str]) -> Self {
        let mut command = Command::new(program());
        command
            .args(["serve", "--listen", listen, "--log", "warn", "--data-dir"])
            .arg(data)
            .args(options);
        let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let url = line.trim().rsplit(' ').next().unwrap().to_owned();
        assert!(url.starts_with("http://"), "vdiskd said '{line}'");
        Self { url, child }
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL: nothing of it runs on.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and the exit status.
    pub fn terminate(mut self) -> i32 {
        let status = Command::new("kill")
            .args(["-TERM", &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
        self.child.wait().unwrap().code().unwrap_or(-1)
    }
}

impl Drop for Vdiskd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder in memory where there is room for big data.
pub fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    }
}

/// Every file below the pools.
pub fn pool_files(data: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![data.join("pools")];
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path)
            } else {
                found.push(path)
            }
        }
    }
    found
}
