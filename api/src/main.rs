//! The program `vdiskd`.

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use vdisk_api::commands::{Command, Failure, Program, healthcheck, inspect_child, quickstart, serve, token};
use vdisk_api::http::document;
use vdisk_api::settings::without_empty_variables;

fn main() -> ExitCode {
    if let Err(error) = vdisk_service::refuse_core_dumps() {
        eprintln!("vdiskd: core dumps cannot be prevented: {error}");
    }
    match run(program().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vdiskd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn program() -> Program {
    let command = without_empty_variables(Program::command(), &|name| std::env::var_os(name));
    let matches = command.get_matches();
    Program::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Openapi => Ok(std::io::stdout().write_all(document::json().as_bytes())?),
        Command::Healthcheck(options) => healthcheck::run(options),
        Command::InspectChild(options) => inspect_child::run(&options),
        Command::Serve(options) => block_on(serve::run(options)),
        Command::Token(options) => block_on(token::run(options)),
        Command::Quickstart(options) => block_on(quickstart::run(options)),
    }
}

/// Runs to the end of `work`. Threads that did not end with it are not waited for: what they do may be cut off anywhere.
fn block_on(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(work);
    runtime.shutdown_background();
    outcome
}
