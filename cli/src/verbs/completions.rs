//! `completions`: scripts that let a shell complete verbs and options. Not in qemu-img.

use clap_complete::Shell;

use crate::app::Outcome;
use crate::output;

/// Options.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the script.
pub fn run(args: &Args) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::args::command(), crate::app::name(), &mut script);
    output::print(&String::from_utf8_lossy(&script));
    Ok(0)
}
