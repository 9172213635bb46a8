//! Running the built program.

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs `vdisk` in a folder.
pub fn vdisk(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vdisk"))
        .args(args)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Runs `vdisk`, which must succeed, and gives its standard output.
pub fn ok(folder: &Path, args: &[&str]) -> String {
    let out = vdisk(folder, args);
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "vdisk {args:?}: {}\n{error}", out.status);
    String::from_utf8(out.stdout).unwrap()
}
