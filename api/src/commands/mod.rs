//! The program's commands, one a file.

pub mod healthcheck;
pub mod inspect_child;
pub mod quickstart;
pub mod serve;
pub mod token;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::settings::{Options, Settings};

/// Error of a command: one line for the person at the terminal.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Disk-image management over HTTP and gRPC.
#[derive(Parser)]
#[command(name = "vdiskd", version, about, arg_required_else_help = true)]
pub struct Program {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Serve HTTP and gRPC on one port
    Serve(Configured),
    /// Start on the embedded default and run the main job: an image, an overlay, a conversion
    Quickstart(quickstart::Quickstart),
    /// Make, list and revoke tokens while the service does not run
    Token(token::Token),
    #[command(name = vdisk_service::sandbox::COMMAND, hide = true)]
    InspectChild(inspect_child::InspectChild),
    /// Print the OpenAPI document
    Openapi,
    /// Ask a running service whether it is alive; exit status 0 when it is
    Healthcheck(Configured),
}

/// Options, and the file they may come from.
#[derive(Args)]
pub struct Configured {
    /// TOML file with options under the same names
    #[arg(long, env = "VDISKD_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
}

impl Configured {
    /// Flags over variables over the file over the defaults.
    ///
    /// # Errors
    /// Options that cannot be read or contradict each other.
    pub fn settings(self) -> Result<Settings, String> {
        let below = self.config.as_deref().map(Options::from_file).transpose()?;
        self.options.over(below.unwrap_or_default()).decide()
    }
}
