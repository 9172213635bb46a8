//! Programs of others that tests compare with.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Looks a program up in `PATH`.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")]);
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Whether all these programs are there; says which one is missing otherwise.
pub fn have(programs: &[&str]) -> bool {
    match programs.iter().find(|p| find(p).is_none()) {
        None => true,
        Some(missing) => {
            crate::skip(&format!("{missing} is not installed"));
            false
        }
    }
}

/// Runs a program, whatever its exit status.
///
/// # Panics
/// When it cannot be started.
pub fn run(program: &str, args: &[&str]) -> Output {
    let program = find(program).unwrap_or_else(|| PathBuf::from(program));
    Command::new(&program)
        .args(args)
        .output()
        .unwrap_or_else(|e| panic!("cannot start {}: {e}", program.display()))
}

/// Runs a program that must succeed, and gives its standard output.
///
/// # Panics
/// When it fails; the message holds its error output.
pub fn ok(program: &str, args: &[&str]) -> String {
    let out = run(program, args);
    let (stdout, stderr) = (
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr),
    );
    assert!(
        out.status.success(),
        "{program} {args:?}: {}\n{stdout}{stderr}",
        out.status
    );
    stdout.into_owned()
}

/// A path as an argument.
///
/// # Panics
/// When it is not UTF-8.
pub fn arg(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}
