//! The program `vdisk`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(vdisk_cli::run(std::env::args_os().collect()))
}
