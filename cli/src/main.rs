//! The program `vdisk`.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Refused: the program works all the same, and its secrets are no worse off than those of any other.
    let _ = vdisk_engine::crypto::refuse_core_dumps();
    ExitCode::from(vdisk_cli::run(std::env::args_os().collect()))
}
