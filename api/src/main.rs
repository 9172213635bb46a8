//! The program `vdiskd`.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use vdisk_api::commands::{Command, Failure, Program, healthcheck, inspect_child, quickstart, serve, token};
use vdisk_api::http::document;

fn main() -> ExitCode {
    if let Err(error) = vdisk_service::refuse_core_dumps() {
        eprintln!("vdiskd: core dumps cannot be prevented: {error}");
    }
    match run(Program::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vdiskd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Openapi => Ok(std::io::stdout().write_all(document::json().as_bytes())?),
        Command::Healthcheck(options) => healthcheck::run(options),
        Command::InspectChild(options) => inspect_child::run(&options),
        Command::Serve(options) => runtime()?.block_on(serve::run(options)),
        Command::Token(options) => runtime()?.block_on(token::run(options)),
        Command::Quickstart(options) => runtime()?.block_on(quickstart::run(options)),
    }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}
