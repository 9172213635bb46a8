//! `vdisk`: disk images on the command line, with qemu-img's verbs, options, output and exit codes.
//!
//! One file a verb stands in `verbs`; [`spec`] turns names and option lists into open images; [`text`] reads and prints numbers,
//! sizes and JSON as qemu-img does. The program is [`run`]; what reads text from outside is public for the tests and fuzz targets.

#![deny(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "they panic when nobody reads what they print"
)]

pub mod app;
mod args;
pub mod options;
mod output;
mod progress;
mod secrets;
pub mod spec;
pub mod text;
mod tls;
mod verbs;

use std::ffi::OsString;

/// Does what a command line says, and gives the exit code.
pub fn run(argv: Vec<OsString>) -> u8 {
    app::set_name(argv.first().map(AsRef::as_ref));
    match args::parse(argv) {
        Ok(verb) => verbs::run(&verb),
        Err(code) => code,
    }
}
