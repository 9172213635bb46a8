//! `vdisk`: disk images on the command line, with qemu-img's verbs, options, output and exit codes.
//!
//! One file a verb stands in [`verbs`]; [`spec`] turns names and option lists into open images; [`text`] reads and prints numbers,
//! sizes and JSON as qemu-img does.

mod app;
mod args;
mod options;
mod output;
mod progress;
mod secrets;
mod spec;
mod text;
mod tls;
mod verbs;

use std::process::ExitCode;

fn main() -> ExitCode {
    // Refused: the program works all the same, and its secrets are no worse off than those of any other.
    let _ = vdisk_engine::crypto::refuse_core_dumps();
    let argv: Vec<_> = std::env::args_os().collect();
    app::set_name(argv.first().map(AsRef::as_ref));
    let code = match args::parse(argv) {
        Ok(verb) => verbs::run(&verb),
        Err(code) => code,
    };
    ExitCode::from(code)
}
